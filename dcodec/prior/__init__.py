"""What does a codec need of a prior? A denoiser at fixed noise levels, and an identity.

The shipped ones: `gaussian` (closed form, no weights), `photo` and `mnist` (integer networks); `adapter` makes one of any
diffusers model. See `catalog` for finding them.
"""

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from dcodec.prior.latent import Latent

# 2**(i / 8)
EIGHTHS = (1.0, 1.0905077326652577, 1.189207115002721, 1.2968395546510096, 1.4142135623730951,
            1.5422108254079407, 1.681792830507429, 1.8340080864093424)  # fmt: skip
# the noise levels that every prior knows: an eighth of an octave apart, 2**-6 .. 2**5 (range [-1, 1])
SIGMAS = tuple(2.0 ** (i // 8 - 6) * EIGHTHS[i % 8] for i in range(89))

DOUBT = 2.0  # of networks


class Prior(Protocol):
    """A denoiser D(x; sigma) = E[x0 | x = x0 + sigma n] with the same bits everywhere.

    Called with (B, C, h, w) float32, any h and w, and sigma one of SIGMAS; gives the same shape and dtype.
    channels: the C it knows. Gray pictures are the luma coordinate of colours, sqrt(3) times the usual gray.
    """

    @property
    def name(self) -> str:
        """What `--prior` calls it."""

    @property
    def digest(self) -> bytes:
        """sha256 of all that defines it, 32 bytes; the first two stand in every header."""

    @property
    def channels(self) -> tuple[int, ...]:
        """Channel counts it can denoise."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Height and width of the only pictures that it knows well, at their own scale; None when any scale will do."""

    @property
    def doubt(self) -> float:
        """How much larger its squared errors are than a right prior's on what was measured: 1 for a right one.

        Measured (bench/NOTES.md): samples are the better for trusting measurements more than a network's own posterior would.
        """

    @property
    def turned(self) -> bool:
        """Whether it knows pictures mirrored, flipped and transposed."""

    @property
    def latent(self) -> "Latent | None":
        """The autoencoder on whose latents the walk runs, if it does not run on pictures."""

    def __call__(self, x: "Tensor", sigma: float) -> "Tensor":
        """E[x0 | x]."""

    def to(self, device: str) -> "Prior":
        """The same prior on a device."""
