"""Merging ahead of the module in use: the same results as without, and no more merges than are asked for."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from pipeline.merging.segment import Segment
from tests.merging.factory import Tower, assert_same_bits, make_segment, pair, random_state, weighted_sum

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
