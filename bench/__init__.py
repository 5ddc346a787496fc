"""How good is dcodec, next to what everybody has? `python -m bench rd` measures, `report` shows, `table` and `peers` sum up.

`points` is the interface of codecs; `codecs` (dcodec, Pillow's), `bpg` and `peers` (others on our prior) stand behind it.
`metrics` and `lpips` compare pictures, `kid` sets of them, `measure` keeps the CSV, `kept` the pictures. From rows alone:
`curves`, `bd`, `table`, and `report` with `album` and `svg`. Of a prior by itself: `prior`, `limit`, `source`, `digits`.
`__main__` is the command line.
"""

import os
from pathlib import Path


def data_folder() -> Path:
    """Where test pictures, LPIPS' weights and others' points lie: DCODEC_DATA, or shared/data beside the repository."""
    return Path(os.environ.get("DCODEC_DATA") or Path(__file__).parents[2] / "shared" / "data")
