"""How good is dcodec, next to what everybody has? `python -m bench rd` measures, `report` shows, `table` and `peers` sum up.

`points` is the interface of codecs; `codecs` (dcodec, Pillow's), `bpg` and `peers` (others on our prior) stand behind it.
`metrics` and `lpips` compare pictures, `measure` keeps the CSV, `kept` the pictures. From rows alone: `curves`, `bd`, `table`,
and `report` with `album` and `svg`. Of a prior by itself: `prior`, `limit`, `source`, `digits`. `__main__` is the command line.
"""
