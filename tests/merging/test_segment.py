"""The oracle is the plain weighted sum, tensor by tensor in float64, of the state dicts of two or more ends."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from pipeline.merging.segment import BLOCK_ELEMENTS, Segment
from tests.merging.factory import Tower, assert_same_bits, make_segment, pair, random_state, weighted_sum


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


def test_a_tensor_that_differs_in_the_last_end_only_is_merged() -> None:
    states = [random_state(seed) for seed in (1, 1, 2)]
    merged = Segment(Tower(), states).at((0.25, 0.25, 0.5)).first.weight
    expected = weighted_sum(states, (0.25, 0.25, 0.5))["first.weight"]
    torch.testing.assert_close(merged.double(), expected, rtol=0, atol=1e-6)


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
