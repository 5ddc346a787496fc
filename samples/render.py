"""Render the sample pictures of this folder: procedural scenes made to have the statistics of photographs.

Usage: python samples/render.py [landscape] [still] [facade] [gray]   (no argument: all of them)

Only numpy and pillow are needed, and every random number comes from a fixed seed. The pictures are CC0.
"""

import sys
from pathlib import Path

from facade import facade
from landscape import landscape
from PIL import Image
from still import still

HERE = Path(__file__).resolve().parent


def gray() -> Image.Image:
    """A grey picture of odd size: the cliff, the woods and the shore of the landscape."""
    return landscape().convert("L").crop((12, 36, 12 + 173, 36 + 99))


def main() -> None:
    """Render the pictures named on the command line, or all."""
    makers = {"landscape": landscape, "still": still, "facade": facade, "gray": gray}
    for name in sys.argv[1:] or list(makers):
        makers[name]().save(HERE / f"{name}.png", optimize=True)


if __name__ == "__main__":
    main()
