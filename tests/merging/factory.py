"""A tower that has one of everything, its state dicts, and their plain weighted sum in float64."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pipeline.merging.segment import Segment

State = dict[str, Tensor]


class Tower(nn.Module):
    """One of everything that a tower has: matrices, a scalar, statistics, a counter, a mask that is not stored."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(7, 5)
        self.norm = nn.BatchNorm1d(5)
        self.second = nn.Linear(5, 3)
        self.logit_scale = nn.Parameter(torch.tensor(2.5))
        self.register_buffer("mask", torch.full((3, 3), -torch.inf).triu(1), persistent=False)
        self.register_buffer("positions", torch.arange(6), persistent=True)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.logit_scale * (self.second(self.norm(self.first(inputs))) @ self.mask.exp())


def random_state(seed: int, dtype: torch.dtype = torch.float32) -> State:
    generator = torch.Generator().manual_seed(seed)

    def draw(value: Tensor) -> Tensor:
        if not value.is_floating_point():
            return value + seed
        # Statistics of BatchNorm are positive.
        return torch.rand(value.shape, generator=generator).add(0.1).to(dtype)

    return {key: draw(value) for key, value in Tower().state_dict().items()}


def make_segment(
    dtype: torch.dtype = torch.float32, *, ends: int = 2, shared: tuple[str, ...] = ()
) -> tuple[Segment[Tower], list[State]]:
    states = [random_state(seed, dtype) for seed in range(1, ends + 1)]
    for state in states[1:]:
        state |= {key: states[0][key].clone() for key in shared}
    return Segment(Tower().to(dtype), states), states


def weighted_sum(states: list[State], weights: Sequence[float]) -> State:
    return {
        key: sum(weight * state[key].double() for weight, state in zip(weights, states, strict=True))
        if first.is_floating_point()
        else first
        for key, first in states[0].items()
    }


def pair(lam: float) -> tuple[float, float]:
    return (1 - lam, lam)


def assert_same_bits(module: nn.Module, expected: State) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        if value.is_floating_point():
            assert torch.equal(state[key], value), key
            assert state[key].dtype == value.dtype
