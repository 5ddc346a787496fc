"""Which timestep of a diffusers scheduler has noise sigma, and what does its model predict there?

Read from the scheduler's configuration, in arithmetic that is the same everywhere: diffusers' own tables are float32 sums that
differ between machines. Noise is told by sigma, the deviation of x_t / signal from x0 (Karras et al. 2022, arXiv 2206.00364,
section 2): variance-preserving schedulers have sigma = sqrt(1 / abar - 1), flow matching has sigma = t / (1 - t).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from dcodec.exact import functions

Array = NDArray[np.float64]

FLOW = ("FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler")
PREDICTIONS = ("epsilon", "sample", "v_prediction")
STEPS = 1024  # timesteps are told in units of 1 / STEPS


@dataclass(frozen=True)
class Timesteps:
    """prediction: epsilon, sample, v_prediction or flow. log_sigmas: (T,) rising, of timesteps 0 .. T-1; empty for flow."""

    prediction: str
    log_sigmas: tuple[float, ...]
    count: int

    @classmethod
    def of(cls, config: Mapping[str, Any]) -> "Timesteps":
        """From a scheduler's configuration (scheduler_config.json). Raises ValueError for schedulers without such a table."""
        name = str(config.get("_class_name", "scheduler"))
        count = int(config.get("num_train_timesteps", 1000))
        if name in FLOW:
            return cls("flow", (), count)
        prediction = config.get("prediction_type") or "epsilon"
        if prediction not in PREDICTIONS:
            raise ValueError(f"{name} predicts {prediction!r}: known are {', '.join(PREDICTIONS)}")
        abar = np.array(_running_product(1.0 - _betas(config, name, count)))
        if config.get("rescale_betas_zero_snr"):  # Lin et al. 2024, algorithm 1; the last step is noise alone
            root = np.sqrt(abar)
            root = (root - root[-1]) * (root[0] / (root[0] - root[-1]))
            abar = (root * root)[:-1]
        log_sigmas = functions.log(1.0 / abar - 1.0) * 0.5
        return cls(prediction, tuple(log_sigmas.tolist()), count)

    def at(self, sigma: float) -> float:
        """The timestep whose noise is `sigma`, between neighbours on log sigma; the nearest end when it lies beyond."""
        if self.prediction == "flow":
            return round(sigma / (1.0 + sigma) * self.count * STEPS) / STEPS
        log_sigma, table = float(functions.log(sigma)), self.log_sigmas
        i = int(np.clip(np.searchsorted(table, log_sigma), 1, len(table) - 1))
        t = i - 1 + (log_sigma - table[i - 1]) / (table[i] - table[i - 1])
        return round(min(max(t, 0.0), len(table) - 1.0) * STEPS) / STEPS

    def scales(self, sigma: float) -> tuple[float, float, float]:
        """(a, b, c), float32 numbers, of D(x, sigma) = b x + c model(a x, at(sigma)).

        Epsilon and v: Salimans and Ho 2022, arXiv 2202.00512, section 4; flow: Lipman et al. 2023, arXiv 2210.02747, eq. 23.
        """
        signal = 1.0 / (1.0 + sigma) if self.prediction == "flow" else 1.0 / math.sqrt(1.0 + sigma * sigma)
        b, c = {
            "epsilon": (1.0, -sigma),
            "sample": (0.0, 1.0),
            "v_prediction": (signal * signal, -sigma * signal),
            "flow": (signal, -sigma * signal),
        }[self.prediction]
        return float(np.float32(signal)), float(np.float32(b)), float(np.float32(c))


def _betas(config: Mapping[str, Any], name: str, count: int) -> Array:
    """Variances added at each timestep, as diffusers names their schedules."""
    if config.get("trained_betas"):
        return np.array(config["trained_betas"], np.float64)
    if "beta_schedule" not in config and "beta_start" not in config:
        raise ValueError(f"{name} has no noise schedule that this version knows (beta_start, beta_end, beta_schedule)")
    schedule = config.get("beta_schedule", "linear")
    first, last = float(config.get("beta_start", 1e-4)), float(config.get("beta_end", 0.02))
    if schedule == "linear":
        return _even(first, last, count)
    if schedule == "scaled_linear":
        return np.square(_even(math.sqrt(first), math.sqrt(last), count))
    if schedule == "squaredcos_cap_v2":  # Nichol and Dhariwal 2021, eq. 17
        bar = np.square(functions.cos((np.arange(count + 1) / count + 0.008) / 1.008 * (math.pi / 2)))
        return np.asarray(np.minimum(1.0 - bar[1:] / bar[:-1], 0.999), np.float64)
    if schedule == "sigmoid":
        return np.asarray((last - first) / (1.0 + functions.exp(-_even(-6.0, 6.0, count))) + first, np.float64)
    raise ValueError(f"{name} has beta_schedule {schedule!r}, which this version does not know")


def _even(first: float, last: float, count: int) -> Array:
    """`count` numbers, evenly from `first` to `last`."""
    return np.asarray(first + np.arange(count) * ((last - first) / max(count - 1, 1)), np.float64)


def _running_product(x: Array) -> list[float]:
    """Products of the first 1, 2, ... numbers, one rounding a step."""
    out, product = [], 1.0
    for value in x.tolist():
        product *= value
        out.append(product)
    return out
