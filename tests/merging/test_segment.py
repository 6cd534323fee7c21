"""The oracle is the plain weighted sum, tensor by tensor in float64, of the state dicts of two or more ends."""

from collections.abc import Sequence
from itertools import combinations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.merging.segment import BLOCK_ELEMENTS, Segment

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


@st.composite
def simplex(draw: st.DrawFn, least: int = 2, most: int = 5) -> list[float]:
    """Weights of several ends, some of them 0, that sum to 1."""
    parts = draw(st.lists(st.integers(0, 1000), min_size=least, max_size=most).filter(any))
    return [part / sum(parts) for part in parts]


@pytest.mark.parametrize("ends", [1, 2, 3, 4])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_all_weight_on_one_end_gives_the_very_weights(dtype: torch.dtype, ends: int) -> None:
    segment, states = make_segment(dtype, ends=ends)
    segment.at([1 / ends] * ends)
    merges = segment.merges
    for end, state in enumerate(states):
        module = segment.at([float(other == end) for other in range(ends)])
        assert_same_bits(module, state)
        assert module is segment.ends[end]
    assert segment.merges == merges


@given(st.floats(0, 1))
def test_between_two_ends_every_tensor_is_interpolated(lam: float) -> None:
    segment, states = make_segment()
    state = segment.at(pair(lam)).state_dict()
    for key, value in weighted_sum(states, pair(lam)).items():
        torch.testing.assert_close(state[key].double(), value.double(), rtol=0, atol=1e-6)


@given(simplex())
def test_between_several_ends_every_tensor_is_the_weighted_sum(weights: list[float]) -> None:
    segment, states = make_segment(ends=len(weights))
    state = segment.at(weights).state_dict()
    for key, value in weighted_sum(states, weights).items():
        torch.testing.assert_close(state[key].double(), value.double(), rtol=0, atol=1e-6)


@given(simplex(least=3))
def test_double_precision_is_kept_between_several_ends(weights: list[float]) -> None:
    segment, states = make_segment(torch.float64, ends=len(weights))
    state = segment.at(weights).state_dict()
    for key, value in weighted_sum(states, weights).items():
        torch.testing.assert_close(state[key].double(), value.double(), rtol=0, atol=1e-14)


@given(simplex(least=3), st.floats(-9e-7, 9e-7))
def test_weights_that_sum_to_one_only_to_rounding_are_normalised(weights: list[float], excess: float) -> None:
    segment, states = make_segment(ends=len(weights))
    state = segment.at([weight * (1 + excess) for weight in weights]).state_dict()
    for key, value in weighted_sum(states, weights).items():
        torch.testing.assert_close(state[key].double(), value.double(), rtol=0, atol=1e-6)


def test_sums_longer_than_a_block_are_complete(monkeypatch: pytest.MonkeyPatch) -> None:
    weights = (0.2, 0.5, 0.3)
    whole, states = make_segment(ends=3)
    expected = whole.at(weights).state_dict()
    monkeypatch.setitem(BLOCK_ELEMENTS, "cpu", 50)
    blocks, _ = make_segment(ends=3)
    assert_same_bits(blocks.at(weights), expected)
    torch.testing.assert_close(expected["second.bias"].double(), weighted_sum(states, weights)["second.bias"])


@pytest.mark.parametrize("weights", [*(pair(lam) for lam in (0.01, 0.3, 0.5, 0.6, 0.99)), (0.2, 0.5, 0.3)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_low_precision_is_interpolated_in_float32_and_rounded_once(
    dtype: torch.dtype, weights: tuple[float, ...]
) -> None:
    segment, states = make_segment(dtype, ends=len(weights))
    for key, value in weighted_sum(states, weights).items():
        if value.is_floating_point():
            found = segment.at(weights).state_dict()[key]
            assert found.dtype == dtype
            half_a_step = torch.finfo(dtype).eps * value.abs() / 2
            assert ((found.double() - value).abs() <= 1.01 * half_a_step + 1e-7).all()


def test_an_end_of_weight_zero_is_not_read() -> None:
    states = [random_state(seed) for seed in (1, 2, 3)]
    states[1] = {key: value * torch.nan if value.is_floating_point() else value for key, value in states[1].items()}
    merged = Segment(Tower(), states).at((0.25, 0.0, 0.75)).state_dict()
    for key, value in weighted_sum([states[0], states[2]], (0.25, 0.75)).items():
        torch.testing.assert_close(merged[key].double(), value.double(), rtol=0, atol=1e-6)


def test_two_ends_of_three_give_what_a_segment_of_two_gives() -> None:
    three, states = make_segment(ends=3)
    two = Segment(Tower(), [states[0], states[2]])
    assert_same_bits(three.at((0.37, 0.0, 0.63)), two.at((0.37, 0.63)).state_dict())


@pytest.mark.parametrize("weights", [pair(0.37), (0.2, 0.5, 0.3)])
def test_a_merged_module_computes_what_a_module_of_its_own_computes(weights: tuple[float, ...]) -> None:
    segment, states = make_segment(ends=len(weights))
    plain = Tower().eval()
    plain.load_state_dict({key: value.to(states[0][key]) for key, value in weighted_sum(states, weights).items()})
    inputs = torch.randn(11, 7, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(segment.at(weights)(inputs), plain(inputs), rtol=1e-5, atol=1e-6)


def test_statistics_of_batch_norm_are_interpolated() -> None:
    segment, (generalist, expert) = make_segment()
    expected = (1 - 0.25) * generalist["norm.running_var"] + 0.25 * expert["norm.running_var"]
    torch.testing.assert_close(segment.at(pair(0.25)).norm.running_var, expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("weights", [pair(0.0), pair(0.4), pair(1.0), (0.2, 0.5, 0.3), (0.0, 0.0, 1.0)])
def test_integer_buffers_are_the_first_ends_not_interpolated(weights: tuple[float, ...]) -> None:
    segment, states = make_segment(ends=len(weights))
    module = segment.at(weights)
    assert torch.equal(module.positions, states[0]["positions"])
    assert module.positions.dtype == torch.int64
    assert module.norm.num_batches_tracked == states[0]["norm.num_batches_tracked"]


@pytest.mark.parametrize("weights", [pair(0.0), pair(0.4), pair(1.0), (0.2, 0.5, 0.3)])
def test_a_mask_of_minus_infinity_that_is_not_stored_stays_as_it_is(weights: tuple[float, ...]) -> None:
    assert torch.equal(make_segment(ends=len(weights))[0].at(weights).mask, Tower().mask)


@pytest.mark.parametrize("ends", [2, 3])
def test_equal_tensors_are_stored_once_and_cost_no_merge(ends: int) -> None:
    segment, _ = make_segment(ends=ends, shared=("second.weight", "second.bias"))
    whole, _ = make_segment(ends=ends)
    modules = (*segment.ends, segment.at([1 / ends] * ends))
    for name in ("weight", "bias"):
        assert len({getattr(module.second, name).data_ptr() for module in modules}) == 1
    assert segment.bytes_per_merge() < whole.bytes_per_merge()


def test_a_tensor_that_differs_in_the_last_end_only_is_merged() -> None:
    states = [random_state(seed) for seed in (1, 1, 2)]
    merged = Segment(Tower(), states).at((0.25, 0.25, 0.5)).first.weight
    expected = weighted_sum(states, (0.25, 0.25, 0.5))["first.weight"]
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-6)


def test_a_merge_moves_each_end_once_and_the_result_once() -> None:
    two, three = make_segment(ends=2)[0], make_segment(ends=3)[0]
    assert 3 * three.bytes_per_merge() == 4 * two.bytes_per_merge()
    assert three.bytes_per_merge(2) == two.bytes_per_merge()
    # Nine tensors that differ, each padded to 64 elements of four bytes; the largest has 35.
    assert two.bytes_per_merge() == 3 * 9 * 64 * 4
    assert two.bytes_held() == two.bytes_per_merge()
    assert 4 * two.bytes_held() == 3 * Segment(Tower(), [random_state(1), random_state(2)], ahead=True).bytes_held()


@pytest.mark.parametrize("ends", [2, 3])
def test_modules_share_nothing_that_differs(ends: int) -> None:
    segment, states = make_segment(ends=ends, shared=("second.weight",))
    modules = (*segment.ends, segment.at([1 / ends] * ends))
    spans = [
        (tensor.data_ptr(), tensor.data_ptr() + tensor.numel() * tensor.element_size())
        for module in modules
        for key, tensor in module.state_dict().items()
        if tensor.is_floating_point() and key != "second.weight"
    ]
    assert all(first[1] <= second[0] or second[1] <= first[0] for first, second in combinations(spans, 2))
    segment.at([0.5, 0.5, *[0.0] * (ends - 2)])
    for module, state in zip(segment.ends, states, strict=True):
        assert_same_bits(module, state)


def test_merging_leaves_the_given_state_dicts_and_module_alone() -> None:
    module, *ends = Tower(), *(random_state(seed) for seed in (1, 2, 3))
    before = [{key: value.clone() for key, value in state.items()} for state in (module.state_dict(), *ends)]
    Segment(module, ends).at((0.2, 0.5, 0.3))
    for state, copy in zip((module.state_dict(), *ends), before, strict=True):
        assert all(torch.equal(state[key], copy[key]) for key in copy)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_merged_tensors_start_at_aligned_offsets(dtype: torch.dtype) -> None:
    segment, _ = make_segment(dtype, ends=3)
    for module in (*segment.ends, segment.at((0.2, 0.5, 0.3))):
        views = [tensor for tensor in module.state_dict().values() if tensor.is_floating_point()]
        assert len({view.untyped_storage().data_ptr() for view in views}) == 1
        assert all(view.storage_offset() % 64 == 0 for view in views)
        assert all(view.is_contiguous() for view in views)


def test_only_new_weights_between_the_ends_cost_a_merge() -> None:
    segment, states = make_segment()
    merges = []
    for lam in (0.0, 0.3, 0.3, 1.0, 0.3, 0.0, 0.7, 0.3):
        segment.at(pair(lam))
        merges.append(segment.merges)
    assert merges == [0, 1, 1, 1, 1, 1, 2, 3]
    expected = weighted_sum(states, pair(0.3))
    torch.testing.assert_close(segment.at(pair(0.3)).first.weight.double(), expected["first.weight"], rtol=0, atol=1e-6)


@pytest.mark.parametrize("ahead", [False, True])
def test_a_merge_that_fails_half_way_is_not_taken_for_the_one_before(
    ahead: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = [random_state(seed) for seed in (1, 2)]
    segment = Segment(Tower(), states, ahead=ahead)
    segment.at(pair(0.3))
    segment.at(pair(0.6))

    def fail(_ends: list[Tensor], _weights: list[float], merged: Tensor) -> None:
        merged.fill_(torch.nan)
        raise torch.OutOfMemoryError("CUDA out of memory.")

    with monkeypatch.context() as patch:
        patch.setattr("pipeline.merging.segment._interpolate", fail)
        with pytest.raises(torch.OutOfMemoryError):
            segment.at(pair(0.9))
    for lam in (0.6, 0.3):
        expected = weighted_sum(states, pair(lam))["first.weight"]
        found = segment.at(pair(lam)).first.weight
        torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("ends", [1, 2, 3])
def test_identical_ends_never_cost_a_merge(ends: int) -> None:
    state = random_state(1)
    segment = Segment(Tower(), [{key: value.clone() for key, value in state.items()} for _ in range(ends)])
    assert_same_bits(segment.at([1 / ends] * ends), state)
    assert (segment.merges, segment.bytes_per_merge()) == (0, 0)


def test_merged_modules_are_for_inference_only() -> None:
    segment, _ = make_segment(ends=3)
    for module in (*segment.ends, segment.at((0.2, 0.5, 0.3))):
        assert not module.training
        assert not any(parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize(
    "weights",
    [
        (1 + 1e-3, -1e-3),
        (1.0,),
        (0.5, 0.25, 0.25),
        (0.5, 0.5001),
        (0.5, 0.4999),
        (0.0, 0.0),
        (float("nan"), 1.0),
        (float("inf"), 0.0),
    ],
)
def test_weights_that_are_no_combination_of_the_ends_are_refused(weights: tuple[float, ...]) -> None:
    segment, _ = make_segment()
    with pytest.raises(ValueError, match=r"'weights' must be 2 numbers >= 0 that sum to 1"):
        segment.at(weights)
    assert segment.merges == 0


@pytest.mark.parametrize("end", [0, 1, 2])
@pytest.mark.parametrize("change", ["missing", "unexpected"])
def test_state_dicts_with_other_keys_are_refused(end: int, change: str) -> None:
    states = [random_state(seed) for seed in (1, 2, 3)]
    if change == "missing":
        del states[end]["first.bias"]
    else:
        states[end]["third.bias"] = torch.zeros(3)
    with pytest.raises(ValueError, match="exactly the module's keys"):
        Segment(Tower(), states)


@pytest.mark.parametrize("value", [torch.zeros(6), torch.zeros(5, dtype=torch.float64)])
def test_state_dicts_with_another_shape_or_dtype_are_refused(value: Tensor) -> None:
    states = [random_state(1), random_state(2), random_state(3) | {"first.bias": value}]
    with pytest.raises(ValueError, match=r"'first\.bias' must have one shape and dtype"):
        Segment(Tower(), states)


@pytest.mark.parametrize("weights", [pair(0.5), (0.5, 0.25, 0.25)])
def test_tensors_of_several_dtypes_are_merged_together(weights: tuple[float, ...]) -> None:
    module = Tower()
    module.second.to(torch.bfloat16)
    ends = []
    for seed in range(len(weights)):
        state = random_state(seed)
        ends.append({key: value.bfloat16() if key.startswith("second.") else value for key, value in state.items()})
    segment = Segment(module, ends)
    merged = segment.at(weights)
    assert merged.second.weight.dtype == torch.bfloat16
    expected = weighted_sum(ends, weights)
    torch.testing.assert_close(merged.first.weight.double(), expected["first.weight"], rtol=0, atol=1e-6)
    torch.testing.assert_close(merged.second.weight.double(), expected["second.weight"], rtol=2**-8, atol=0)
    assert segment.merges == 1


def test_tied_weights_stay_tied() -> None:
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Linear(4, 4, bias=False)
            self.two = nn.Linear(4, 4, bias=False)
            self.two.weight = self.one.weight

    ends = [{key: torch.full((4, 4), value) for key in ("one.weight", "two.weight")} for value in (0.0, 1.0)]
    merged = Segment(Tied(), ends).at((0.75, 0.25))
    assert merged.one.weight is merged.two.weight
    assert torch.equal(merged.two.weight, torch.full((4, 4), 0.25))


@pytest.mark.parametrize("ends", [1, 2])
def test_equal_tensors_start_where_torch_would_let_them_start(ends: int) -> None:
    states = [random_state(1) for _ in range(ends)]
    misplaced = torch.zeros(36)[1:].view(5, 7).copy_(states[0]["first.weight"])
    assert misplaced.data_ptr() % 64
    for state in states:
        state["first.weight"] = misplaced
    module = Segment(Tower(), states).at([1 / ends] * ends)
    assert module.first.weight.data_ptr() % 64 == 0
    assert torch.equal(module.first.weight, misplaced)


AHEAD = [(0.0, 0.3), (0.3, 0.3), (0.3, 0.7), (0.7, 1.0), (1.0, 0.2), (0.2, 0.9), (0.9, 0.9), (0.9, 0.0)]


def test_merging_ahead_changes_neither_the_module_in_use_nor_any_result() -> None:
    states = [random_state(seed) for seed in (1, 2)]
    segment, plain = Segment(Tower(), states, ahead=True), Segment(Tower(), states)
    merges = []
    for lam, following in AHEAD:
        module, expected = segment.at(pair(lam)), plain.at(pair(lam))
        segment.prepare(pair(following))
        assert_same_bits(module, expected.state_dict())
        merges.append(segment.merges)
    # At each step the weights of the next one are merged, unless they are an end's or there already.
    assert merges == [1, 1, 2, 2, 3, 4, 4, 4]
    assert plain.merges == 4


def test_prepared_weights_are_handed_out_without_another_merge() -> None:
    states = [random_state(seed) for seed in (1, 2, 3)]
    segment = Segment(Tower(), states, ahead=True)
    first = segment.at((0.2, 0.5, 0.3))
    segment.prepare((0.1, 0.1, 0.8))
    assert segment.merges == 2
    second = segment.at((0.1, 0.1, 0.8))
    assert segment.merges == 2
    assert second is not first
    assert_same_bits(second, Segment(Tower(), states).at((0.1, 0.1, 0.8)).state_dict())
    segment.prepare((0.4, 0.4, 0.2))
    assert segment.at((0.4, 0.4, 0.2)) is first


def test_what_was_prepared_in_vain_is_merged_over() -> None:
    segment, _ = make_segment()
    ahead = Segment(Tower(), [random_state(seed) for seed in (1, 2)], ahead=True)
    ahead.at(pair(0.1))
    ahead.prepare(pair(0.2))
    ahead.prepare(pair(0.3))
    assert_same_bits(ahead.at(pair(0.4)), segment.at(pair(0.4)).state_dict())
    assert_same_bits(ahead.at(pair(0.2)), segment.at(pair(0.2)).state_dict())


def test_prepared_weights_must_be_a_combination_too() -> None:
    segment = Segment(Tower(), [random_state(seed) for seed in (1, 2)], ahead=True)
    with pytest.raises(ValueError, match=r"'weights' must be 2 numbers >= 0 that sum to 1"):
        segment.prepare((0.5, 0.6))


def test_both_merged_modules_share_nothing_that_differs() -> None:
    segment = Segment(Tower(), [random_state(seed) for seed in (1, 2)], ahead=True)
    first = segment.at(pair(0.3))
    segment.prepare(pair(0.6))
    second = segment.at(pair(0.6))
    places = [{value.data_ptr() for value in module.parameters()} for module in (*segment.ends, first, second)]
    assert all(not one & other for one, other in combinations(places, 2))


class Convolutions(nn.Module):
    """A convolution, which has four dimensions, and a layer that has two."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 6, 3)
        self.second = nn.Linear(6, 4)

    def forward(self, images: Tensor) -> Tensor:
        return self.second(self.first(images).mean(dim=(2, 3)))


@pytest.mark.parametrize("shared", [(), ("first.weight",)])
def test_channels_last_changes_how_kernels_lie_and_no_value(shared: tuple[str, ...]) -> None:
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append(Convolutions().state_dict())
    states[1] |= {key: states[0][key].clone() for key in shared}
    plain, last = Segment(Convolutions(), states), Segment(Convolutions(), states, channels_last=True)
    images = torch.randn(5, 3, 8, 8)
    for weights in (pair(0.0), pair(0.3), pair(1.0)):
        module, expected = last.at(weights), plain.at(weights)
        assert_same_bits(module, expected.state_dict())
        assert module.first.weight.is_contiguous(memory_format=torch.channels_last)
        assert not module.first.weight.is_contiguous()
        found = module(images.contiguous(memory_format=torch.channels_last))
        torch.testing.assert_close(found, expected(images), rtol=1e-5, atol=1e-6)
    assert last.merges == plain.merges == 1


@pytest.mark.skipif(not torch.cuda.is_available(), reason="streams are CUDA's: there is no CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_forwards_see_whole_merges_and_merges_wait_for_forwards(dtype: torch.dtype) -> None:
    """Large layers, so that merges and forwards that were out of order would overlap."""
    states = []
    for seed in (1, 2):
        torch.manual_seed(seed)
        states.append({key: value.to(dtype) for key, value in nn.Linear(4096, 4096).state_dict().items()})
    module = nn.Linear(4096, 4096).to(device="cuda", dtype=dtype)
    ahead, plain = Segment(module, states, ahead=True), Segment(module, states)
    inputs = torch.randn(4096, 4096, device="cuda", dtype=dtype)
    lambdas = [0.1, 0.9, 0.2, 0.8, 0.0, 0.3, 0.7, 0.7, 1.0, 0.4]
    with torch.inference_mode():
        expected = [plain.at(pair(lam))(inputs).cpu() for lam in lambdas]
        found = []
        for lam, following in zip(lambdas, [*lambdas[1:], 0.5], strict=True):
            merged = ahead.at(pair(lam))
            ahead.prepare(pair(following))
            found.append(merged(inputs))
    # The last merge may still be under way; its buffers must not be given back before it ends.
    torch.cuda.synchronize()
    assert all(torch.equal(ours.cpu(), theirs) for ours, theirs in zip(found, expected, strict=True))
