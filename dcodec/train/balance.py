"""How should a network's channels be scaled, so that eight bits read all of them alike?

Between the blocks of one resolution runs a stream of channels, read in steps that are the same for all of them. Multiplying
a channel by a positive number where it is written, and dividing by it where it is read, changes nothing else: ReLUs let it
through. So channels are brought half of the way to the same reach (cross-layer equalization: Nagel et al. 2019, arXiv
1906.04721); all of the way, the errors of weights that read weak channels would count for as much as those of strong ones.
"""

import torch
from torch import Tensor

from dcodec.prior.network import ending
from dcodec.train import model
from dcodec.train.model import State

REACH = 0.9995  # share of a channel's values within it
POWER = 0.5  # how far scales go
VALUES = 2**18  # of a channel, that are looked at


@torch.no_grad()
def balance(state: State, inp: Tensor, levels: Tensor) -> State:
    """Weights of the same function. inp: (N, 2 C, h, w) inputs of the network; levels: (N,) their noise levels, integer."""
    reaches: dict[int, list[Tensor]] = {}

    def watch(stage: int, x: Tensor) -> None:
        values = x.relu().transpose(0, 1).flatten(1)  # (C, N h w)
        values = values[:, :: max(1, values.shape[1] // VALUES)]
        reaches.setdefault(stage, []).append(values.float().quantile(REACH, 1).clamp_min(1e-3).log())

    model.body(state, inp, levels, watch)
    out = {key: value.clone() for key, value in state.items()}
    for stage, read in reaches.items():
        reach = torch.stack(read).mean(0)  # (C,)
        _scale(out, stage, (POWER * (reach.mean() - reach)).exp())
    return out


def _scale(state: State, stage: int, by: Tensor) -> None:
    """Multiply the channels of a stage's stream by positive numbers (C,), in place, and undo it where they are read."""
    outputs, inputs = by.view(-1, 1, 1, 1), by.view(1, -1, 1, 1)  # of convolutions; transposed ones have them the other way

    def written(name: str, axis: Tensor = outputs) -> None:
        state[f"{name}.weight"] *= axis
        state[f"{name}.bias"] *= by

    def read(name: str, axis: Tensor = inputs) -> None:
        state[f"{name}.weight"] /= axis

    if model.reads(state, stage):
        written(ending("inp", stage))
        read(ending("out", stage))
    for way in ("down", "up"):
        for name in model.blocks(state, f"{way}.{stage}"):
            read(f"{name}.a")
            state[f"{name}.g"] *= inputs
            if model.flows(state, name):
                read(f"{name}.v")
                written(f"{name}.v")
    if stage:
        written(f"ds.{stage - 1}")
        read(f"us.{stage - 1}", outputs)
    if stage < model.halvings(state):
        read(f"ds.{stage}")
        written(f"us.{stage}", inputs)
