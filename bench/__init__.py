"""How good is dcodec, next to what everybody has? `python -m bench rd` measures, `python -m bench table` sums up.

`codecs` makes files and decodes them, `metrics` compares pictures, `table` averages; `__main__` is the command line and
keeps the CSV of measurements.
"""
