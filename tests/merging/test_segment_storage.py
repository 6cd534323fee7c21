"""Where the tensors of a segment lie, what its modules share, and what its merges cost."""

from itertools import combinations

import pytest
import torch
from torch import Tensor, nn

from pipeline.merging.segment import Segment
from tests.merging.factory import Tower, assert_same_bits, make_segment, pair, random_state, weighted_sum


@pytest.mark.parametrize("ends", [2, 3])
def test_equal_tensors_are_stored_once_and_cost_no_merge(ends: int) -> None:
    segment, _ = make_segment(ends=ends, shared=("second.weight", "second.bias"))
    whole, _ = make_segment(ends=ends)
    modules = (*segment.ends, segment.at([1 / ends] * ends))
    for name in ("weight", "bias"):
        assert len({getattr(module.second, name).data_ptr() for module in modules}) == 1
    assert segment.bytes_per_merge() < whole.bytes_per_merge()


def test_a_merge_moves_each_end_once_and_the_result_once() -> None:
    two, three = make_segment(ends=2)[0], make_segment(ends=3)[0]
    assert 3 * three.bytes_per_merge() == 4 * two.bytes_per_merge()
    assert three.bytes_per_merge(2) == two.bytes_per_merge()
    # Nine tensors that differ, each padded to 64 elements of four bytes; the largest has 35.
    assert two.bytes_per_merge() == 3 * 9 * 64 * 4
    assert two.bytes_held() == two.bytes_per_merge()
    assert 4 * two.bytes_held() == 3 * Segment(Tower(), [random_state(1), random_state(2)], ahead=True).bytes_held()


@pytest.mark.parametrize("ends", [1, 2, 3])
def test_bytes_are_those_of_all_tensors_each_once(ends: int) -> None:
    segment, _ = make_segment(ends=ends, shared=("second.weight", "second.bias"))
    modules = (*segment.ends, segment.at([1 / ends] * ends))
    storages = [tensor.untyped_storage() for module in modules for tensor in module.state_dict().values()]
    distinct = {storage.data_ptr(): storage.nbytes() for storage in storages}
    assert segment.bytes_held() + segment.bytes_shared() == sum(distinct.values())


def test_what_is_forgotten_is_merged_again() -> None:
    segment, _ = make_segment()
    before = {key: value.clone() for key, value in segment.at(pair(0.3)).state_dict().items()}
    segment.forget()
    assert_same_bits(segment.at(pair(0.3)), before)
    assert segment.merges == 2


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


@pytest.mark.parametrize("ends", [1, 2, 3])
def test_identical_ends_never_cost_a_merge(ends: int) -> None:
    state = random_state(1)
    segment = Segment(Tower(), [{key: value.clone() for key, value in state.items()} for _ in range(ends)])
    assert_same_bits(segment.at([1 / ends] * ends), state)
    assert (segment.merges, segment.bytes_per_merge()) == (0, 0)


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
