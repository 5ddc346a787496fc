"""Arithmetic that gives the same bits on every machine.

Two kinds of operation are allowed in anything that encoder and decoder must share:

* a *single* IEEE operation per element (add, sub, mul, div of tensors, rint, clamp, numpy's sqrt), and
* sums and products of *integers held in floats*, bounded so that every partial sum is exact
  (below 2**53 in float64, 2**24 in float32): any order, blocking or fused multiply-add gives the same bits.

`torch.sqrt`, `exp`, `lerp`, `add(alpha=)`, `randn`, `sum` of fractions and LAPACK are neither, and differ between machines.
"""
