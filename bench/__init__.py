"""How good is dcodec, next to what everybody has? `python -m bench rd` measures, `python -m bench table` sums up.

`codecs` makes files and decodes them, `metrics` compares pictures, `measure` keeps the CSV of both, `table` averages it;
`__main__` is the command line.
"""
