"""Which formats does Pillow learn from other packages? JPEG XL and HEIF, in every process that is to code them."""

import importlib
import importlib.metadata

from bench.points import Missing

PACKAGES = {"jxl": ("pillow_jxl", "pillow-jxl-plugin"), "heic": ("pillow_heif", "pillow-heif")}  # module and package


def teach(name: str) -> str:
    """Make Pillow know a format of PACKAGES from now on; the package's version. Missing when it is not installed."""
    module, package = PACKAGES[name]
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise Missing(f"it needs the package {package} (pip install 'dcodec[bench]')") from error
    if name == "heic":  # the other registers itself
        found.register_heif_opener()
    return importlib.metadata.version(package)
