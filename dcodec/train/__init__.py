"""How is a prior made from photographs? `fit` trains the float network, `quantize` makes the exact integer one of it."""
