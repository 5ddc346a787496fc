"""How is a stream opened? Its header checked, the prior it asks for found, its prefixes' states walked to."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dcodec.container import BitstreamError, Header
from dcodec.prior import Prior, catalog

if TYPE_CHECKING:
    from dcodec.prior.counted import Counted
    from dcodec.state import Setting, State

Progress = Callable[[int, int, str], None]  # bits done, bits in all, a note


@dataclass(frozen=True)
class Session:
    """A stream about to be decoded, of which the first `size` bytes are used. begin: when it was opened, in seconds."""

    data: bytes
    size: int
    header: Header
    setting: "Setting"
    counted: "Counted"
    begin: float
    progress: Progress | None

    @classmethod
    def of(
        cls, data: bytes, size: int | None, prior: str | os.PathLike[str] | Prior | None, device: str, chunk: int,
        max_side: int, progress: Progress | None = None,
    ) -> "Session":  # fmt: skip
        """Open a stream: arguments as for `dcodec.decode`.

        Raises BitstreamError when it is damaged, too large, made with another prior or, if native, on another machine.
        """
        begin = time.perf_counter()
        size = len(data) if size is None else min(size, len(data))
        header = Header.unpack(data[: max(size, 0)])
        if max(header.width, header.height) > max_side:
            raise BitstreamError(
                f"the stream describes {header.width}x{header.height} pixels, the limit is {max_side} a side (--max-side)"
            )
        from dcodec.exact.machine import check_device, fingerprint
        from dcodec.prior.counted import Counted
        from dcodec.state import Setting  # now that there is something to decode

        check_device(device)
        native = bool(header.machine)
        if native and header.machine != fingerprint(device, chunk):
            raise BitstreamError(
                "the stream was made with --arithmetic native, on another machine or with other software, threads or device: "
                "only the one that wrote it reads it"
            )
        loaded = _prior_of(header, prior, device, "native" if native else "exact")
        if header.prompt:
            loaded = catalog.prompted(loaded, header.prompt, header.guidance)
        counted = Counted(loaded, header.height, header.width)
        return cls(data, size, header, Setting.of(header, counted, device, chunk), counted, begin, progress)

    def states(self, sizes: list[int]) -> Iterator[tuple[int, "State"]]:
        """The state that each prefix settles."""
        from dcodec import stream

        bits = 8 * (max(sizes) - self.header.size)

        def tell(done: float) -> None:
            if self.progress:
                self.progress(min(int(done), bits), bits, "")

        yield from stream.states(self.data, self.header, self.setting, sizes, tell)

    def fill(self, report: dict[str, Any] | None) -> None:
        """What it has cost so far."""
        if report is not None:
            report.update(
                bytes=self.size, bpp=8 * self.size / (self.header.width * self.header.height),
                nfe=round(self.counted.evaluations), denoiser_seconds=self.counted.seconds,
                seconds=time.perf_counter() - self.begin,
            )  # fmt: skip


def _prior_of(header: Header, prior: str | os.PathLike[str] | Prior | None, device: str, arithmetic: str) -> Prior:
    """The prior that a stream was made with, or BitstreamError."""
    if prior is not None and not isinstance(prior, (str, os.PathLike)):
        _same(header, prior)
        return prior
    entry = catalog.find(os.fspath(prior)) if prior is not None else catalog.identify(header.prior)
    if entry is None:
        raise BitstreamError(f"the stream needs prior {header.prior.hex()}, which is not installed (--prior PATH)")
    if entry.digest:  # known before gigabytes are read
        _same(header, entry)
    loaded = catalog.load(entry, device, arithmetic)
    _same(header, loaded)
    return loaded


def _same(header: Header, prior: catalog.Entry | Prior) -> None:
    if prior.digest[:2] != header.prior:
        raise BitstreamError(
            f"the stream was made with prior {header.prior.hex()}, not with {prior.name} {prior.digest[:2].hex()}"
        )
