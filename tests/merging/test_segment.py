"""The oracle is plain interpolation, tensor by tensor, of two state dicts."""

from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
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


def make_segment(dtype: torch.dtype = torch.float32, *, shared: tuple[str, ...] = ()) -> tuple[Segment[Tower], ...]:
    generalist, expert = random_state(1, dtype), random_state(2, dtype)
    expert |= {key: generalist[key].clone() for key in shared}
    return Segment(Tower().to(dtype), generalist, expert), generalist, expert


def interpolated(generalist: State, expert: State, lam: float) -> State:
    return {
        key: (1 - lam) * value.double() + lam * expert[key].double() if value.is_floating_point() else value
        for key, value in generalist.items()
    }


def assert_same_bits(module: nn.Module, expected: State) -> None:
    state = module.state_dict()
    assert state.keys() == expected.keys()
    for key, value in expected.items():
        if value.is_floating_point():
            assert torch.equal(state[key], value), key
            assert state[key].dtype == value.dtype


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_both_ends_are_the_very_weights(dtype: torch.dtype) -> None:
    segment, generalist, expert = make_segment(dtype)
    segment.at(0.3)
    assert_same_bits(segment.at(0.0), generalist)
    assert_same_bits(segment.at(1.0), expert)
    assert segment.at(0.0) is segment.generalist
    assert segment.at(1.0) is segment.expert


@given(st.floats(0, 1))
def test_between_the_ends_every_tensor_is_interpolated(lam: float) -> None:
    segment, generalist, expert = make_segment()
    state = segment.at(lam).state_dict()
    for key, value in interpolated(generalist, expert, lam).items():
        torch.testing.assert_close(state[key].double(), value.double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("lam", [0.01, 0.3, 0.5, 0.6, 0.99])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_interpolated_in_float32_and_rounded_once(dtype: torch.dtype, lam: float) -> None:
    segment, generalist, expert = make_segment(dtype)
    for key, value in interpolated(generalist, expert, lam).items():
        if value.is_floating_point():
            found = segment.at(lam).state_dict()[key]
            assert found.dtype == dtype
            half_a_step = torch.finfo(dtype).eps * value.abs() / 2
            assert ((found.double() - value).abs() <= 1.01 * half_a_step + 1e-7).all()


def test_a_merged_module_computes_what_a_module_of_its_own_computes() -> None:
    segment, generalist, expert = make_segment()
    plain = Tower().eval()
    plain.load_state_dict(
        {key: value.to(generalist[key]) for key, value in interpolated(generalist, expert, 0.37).items()}
    )
    inputs = torch.randn(11, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(segment.at(0.37)(inputs), plain(inputs), rtol=1e-5, atol=1e-6)


def test_statistics_of_batch_norm_are_interpolated() -> None:
    segment, generalist, expert = make_segment()
    expected = (1 - 0.25) * generalist["norm.running_var"] + 0.25 * expert["norm.running_var"]
    torch.testing.assert_close(segment.at(0.25).norm.running_var, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_integer_buffers_are_copied_not_interpolated(lam: float) -> None:
    segment, generalist, _ = make_segment()
    module = segment.at(lam)
    assert torch.equal(module.positions, generalist["positions"])
    assert module.positions.dtype == torch.int64
    assert module.norm.num_batches_tracked == generalist["norm.num_batches_tracked"]


@pytest.mark.parametrize("lam", [0.0, 0.4, 1.0])
def test_a_mask_of_minus_infinity_that_is_not_stored_stays_as_it_is(lam: float) -> None:
    assert torch.equal(make_segment()[0].at(lam).mask, Tower().mask)


def test_equal_tensors_are_stored_once_and_cost_no_merge() -> None:
    shared = ("second.weight", "second.bias")
    segment, *_ = make_segment(shared=shared)
    whole, *_ = make_segment()
    modules = (segment.generalist, segment.expert, segment.at(0.5))
    for name in ("weight", "bias"):
        assert len({getattr(module.second, name).data_ptr() for module in modules}) == 1
    assert segment.bytes_per_merge < whole.bytes_per_merge


def test_modules_share_nothing_that_differs() -> None:
    segment, generalist, expert = make_segment(shared=("second.weight",))
    modules = (segment.generalist, segment.expert, segment.at(0.5))
    spans = [
        (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size())
        for module in modules
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point() and key != "second.weight"
    ]
    assert all(first[1] <= second[0] or second[1] <= first[0] for first, second in combinations(spans, 2))
    segment.at(0.9)
    assert_same_bits(segment.generalist, generalist)
    assert_same_bits(segment.expert, expert)


def test_merging_leaves_the_given_state_dicts_and_module_alone() -> None:
    module, generalist, expert = Tower(), random_state(1), random_state(2)
    before = [
        {key: value.clone() for key, value in state.items()} for state in (module.state_dict(), generalist, expert)
    ]
    Segment(module, generalist, expert).at(0.5)
    for state, copy in zip((module.state_dict(), generalist, expert), before, strict=True):
        assert all(torch.equal(state[key], copy[key]) for key in copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_tensors_start_at_aligned_offsets(dtype: torch.dtype) -> None:
    segment, *_ = make_segment(dtype)
    for module in (segment.generalist, segment.expert, segment.at(0.5)):
        views = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
        assert len({view.untyped_storage().data_ptr() for view in views}) == 1
        assert all(view.storage_offset() % 64 == 0 for view in views)
        assert all(view.is_contiguous() for view in views)


def test_only_a_new_lambda_between_the_ends_costs_a_merge() -> None:
    segment, generalist, expert = make_segment()
    merges = []
    for lam in (0.0, 0.3, 0.3, 1.0, 0.3, 0.0, 0.7, 0.3):
        segment.at(lam)
        merges.append(segment.merges)
    assert merges == [0, 1, 1, 1, 1, 1, 2, 3]
    expected = interpolated(generalist, expert, 0.3)
    torch.testing.assert_close(segment.at(0.3).first.weight.double(), expected["first.weight"], rtol=0, atol=1e-6)


def test_identical_ends_never_cost_a_merge() -> None:
    state = random_state(1)
    segment = Segment(Tower(), state, {key: value.clone() for key, value in state.items()})
    assert_same_bits(segment.at(0.5), state)
    assert (segment.merges, segment.bytes_per_merge) == (0, 0)


def test_merged_modules_are_for_inference_only() -> None:
    for module in (make_segment()[0].at(lam) for lam in (0.0, 0.5, 1.0)):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("lam", [-1e-9, 1 + 1e-9, float("nan"), float("inf")])
def test_a_lambda_outside_zero_to_one_is_refused(lam: float) -> None:
    with pytest.raises(ValueError, match=r"'lam' must lie in \[0, 1\]"):
        make_segment()[0].at(lam)


@pytest.mark.parametrize("end", [0, 1])
@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_state_dicts_with_other_keys_are_refused(end: int, change: str) -> None:
    states = [random_state(1), random_state(2)]
    if change == "missing":
        del states[end]["first.bias"]
    else:
        states[end]["third.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="exactly the module's keys"):
        Segment(Tower(), *states)


def test_tensors_of_several_dtypes_are_merged_together() -> None:
    module = Tower()
    module.second.to(torch.bfloat16)
    ends = []
    for seed in (1, 2):
        state = random_state(seed)
        ends.append({key: value.bfloat16() if key.startswith("second.") else value for key, value in state.items()})
    segment = Segment(module, *ends)
    merged = segment.at(0.5)
    assert merged.second.weight.dtype == torch.bfloat16
    torch.testing.assert_close(merged.first.weight, (ends[0]["first.weight"] + ends[1]["first.weight"]) / 2)
    assert segment.merges == 1


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)
            self.two = nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

    ends = [{key: torch.full((4, 4), value) for key in ("one.weight", "two.weight")} for value in (0.0, 1.0)]
    merged = Segment(Tied(), *ends).at(0.25)
    assert merged.one.weight is merged.two.weight
    assert torch.equal(merged.two.weight, torch.full((4, 4), 0.25))
