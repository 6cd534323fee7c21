"""The oracle is a plain tower that loads a state dict interpolated in float64, and sees one image at a time."""

import copy
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from pipeline.merging.segment import Segment
from pipeline.models.architectures import load_architecture
from pipeline.models.per_sample import PerSampleTower, products
from pipeline.models.per_sample.batch import BatchWeights
from tests.models.factory import RESNET10, TINY, TINY_RESNET, State, along, blended, write_config
from tests.models.towers import TOWERS, WIDE, ends_of, images_for, made, states_of

CPU = torch.device("cpu")
TOLERANCE = 1e-5
WEIGHTS = {
    1: [(1.0,)] * 2,
    2: [along(lam) for lam in (0.0, 1.0, 0.3, 0.85, 0.5, 0.004)],
    3: [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.4, 0.6), (0.2, 0.3, 0.5), (0.7, 0.0, 0.3), (0.1, 0.9, 0.0)],
}
pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(params=["merged kernels", "interpolated outputs", "by shape"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways of a product on each layer, whatever its shape, and the choice by shape."""
    if request.param != "by shape":
        least = 0 if request.param == "merged kernels" else 1 << 62
        for name in ("LINEAR_POSITIONS", "CONVOLUTION_POSITIONS"):
            monkeypatch.setattr(products, name, least)
        for name in ("LINEAR_MULTIPLICATIONS", "CONVOLUTION_MULTIPLICATIONS"):
            monkeypatch.setattr(products, name, 0)
        monkeypatch.setattr(products, "BLOCK_ELEMENTS", 40 * 64)
    return str(request.param)


@torch.inference_mode()
def merged_one_by_one(
    tower: nn.Module, states: Sequence[State], images: Tensor, weights: Sequence[Sequence[float]]
) -> Tensor:
    plain = copy.deepcopy(tower)
    features = []
    for image, row in zip(images, weights, strict=True):
        plain.load_state_dict(blended(states, row))
        features.append(plain(image[None]))
    return torch.cat(features)


def relative(found: Tensor, expected: Tensor) -> float:
    assert found.shape == expected.shape
    return float((found - expected).abs().max() / expected.abs().max())


@pytest.mark.parametrize("ends", [2, 3])
@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name == WIDE)) for name in TOWERS])
def test_every_image_is_scored_as_by_its_own_merge(name: str, ends: int, way: str) -> None:
    tower = made(name)
    states, weights = states_of(tower, ends), WEIGHTS[ends]
    images = images_for(tower, len(weights))
    expected = merged_one_by_one(tower, states, images, weights)
    found = PerSampleTower(ends_of(tower, states))(images, torch.tensor(weights))
    assert relative(found, expected) <= TOLERANCE
    first_end = merged_one_by_one(tower, states, images[2:3], weights[:1])
    assert relative(expected[2:3], first_end) > 1000 * TOLERANCE, "the ends are apart"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("name", ["class token", "ModifiedResNet", "timm ViT, all parts", WIDE])
def test_a_gpu_scores_as_by_each_merge(name: str) -> None:
    tower = made(name)
    states, weights = states_of(tower, 2), WEIGHTS[2]
    images = images_for(tower, len(weights))
    ends = [end.cuda() for end in ends_of(tower, states)]
    found = PerSampleTower(ends)(images.cuda(), torch.tensor(weights))
    assert found.is_cuda
    assert relative(found.cpu(), merged_one_by_one(tower, states, images, weights)) <= TOLERANCE


@pytest.mark.parametrize("config", ["transformer", "resnet", "classifier"])
def test_ends_of_a_segment_agree_with_its_merges(tmp_path: Path, config: str) -> None:
    """As the scorer holds them: tensors that are equal in both ends lie in one place."""
    configs = {"transformer": TINY, "resnet": TINY_RESNET, "classifier": RESNET10}
    torch.manual_seed(0)
    tower = load_architecture(str(write_config(tmp_path, configs[config]))).build().visual
    states = states_of(tower, 2)
    frozen = next(key for key in states[0] if key.endswith("conv1.weight") or key.startswith("conv1.0"))
    states[1][frozen] = states[0][frozen].clone()
    segment = Segment(tower, states)
    images = torch.randn(6, 3, *{"transformer": (28, 28), "resnet": (32, 32), "classifier": (40, 32)}[config])
    found = PerSampleTower(segment.ends)(images, torch.tensor(WEIGHTS[2]))
    with torch.inference_mode():
        expected = torch.cat([segment.at(row)(image[None]) for row, image in zip(WEIGHTS[2], images, strict=True)])
    assert relative(found, expected) <= TOLERANCE


@pytest.mark.parametrize(
    "name", ["class token", "ModifiedResNet", "timm ViT, all parts", pytest.param(WIDE, marks=pytest.mark.slow)]
)
def test_rows_of_one_end_are_the_plain_towers(name: str, way: str) -> None:
    tower = made(name)
    ends = ends_of(tower, states_of(tower, 3))
    images = images_for(tower, 6)
    found = PerSampleTower(ends)(images, torch.eye(3)[[0, 1, 2, 2, 1, 0]])
    with torch.inference_mode():
        for row, end in enumerate((0, 1, 2, 2, 1, 0)):
            assert relative(found[row : row + 1], ends[end](images[row : row + 1])) <= TOLERANCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("name", ["class token", "attentional pooler", "ModifiedResNet", "timm ViT, all parts"])
def test_batch_mates_and_places_change_no_bit_of_a_row(name: str, dtype: torch.dtype, way: str) -> None:
    tower = made(name)
    states = states_of(tower, 2)
    images, weights = images_for(tower, 6).to(dtype), torch.tensor(WEIGHTS[2])
    run = PerSampleTower([end.to(dtype) for end in ends_of(tower, states)])
    whole = run(images, weights)
    for row in range(6):
        others = torch.tensor([along(0.9)] * 6)
        others[row] = weights[row]
        strangers = images_for(tower, 6, seed=1).to(dtype)
        strangers[row] = images[row]
        assert torch.equal(run(strangers, others)[row], whole[row])
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    assert torch.equal(run(images[order], weights[order]), whole[order])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize(
    "name", ["class token", "ModifiedResNet", "timm ViT, all parts", pytest.param(WIDE, marks=pytest.mark.slow)]
)
def test_low_precision_is_as_near_to_float32_as_a_merge_is(name: str, dtype: torch.dtype, way: str) -> None:
    tower = made(name)
    states, weights = states_of(tower, 3), WEIGHTS[3]
    images = images_for(tower, len(weights))
    exact = merged_one_by_one(tower, states, images, weights)
    coarse_tower = copy.deepcopy(tower).to(dtype)
    coarse_states = [{k: v.to(dtype) if v.is_floating_point() else v for k, v in s.items()} for s in states]
    merged = merged_one_by_one(coarse_tower, coarse_states, images.to(dtype), weights).float()
    found = PerSampleTower(ends_of(coarse_tower, coarse_states))(images.to(dtype), torch.tensor(weights))
    assert found.dtype == dtype
    assert 0 < relative(found.float(), exact) <= 2 * relative(merged, exact) + torch.finfo(dtype).eps


def test_layers_that_are_equal_in_all_ends_are_called_once() -> None:
    tower = made("class token")
    states = states_of(tower, 2)
    for key, value in states[0].items():
        if not key.startswith(("transformer.resblocks.1.", "transformer.resblocks.0.mlp.c_fc.weight")):
            states[1][key] = value.clone()
    ends = ends_of(tower, states)
    run = PerSampleTower(ends)
    called = []
    for index, end in enumerate(ends):
        for path, module in end.named_modules():
            module.register_forward_pre_hook(lambda *_, index=index, path=path: called.append((index, path)))
    images = images_for(tower, 6)
    found = run(images, torch.tensor(WEIGHTS[2]))
    assert relative(found, merged_one_by_one(tower, states, images, WEIGHTS[2])) <= TOLERANCE
    plain = {path for index, path in called if index == 0}
    assert {"conv1", "ln_pre", "transformer.resblocks.0.attn", "transformer.resblocks.0.mlp.c_proj"} <= plain
    assert not any(
        path.startswith("transformer.resblocks.1.") and path.endswith(("attn", "ln_1", "c_fc")) for path in plain
    )
    assert len(called) == len(set(called))
    assert {index for index, _ in called} == {0}


def test_one_end_is_the_plain_tower_to_the_bit() -> None:
    tower = made("timm ViT")
    (end,) = ends_of(tower, states_of(tower, 1))
    images = images_for(tower, 2)
    with torch.inference_mode():
        assert torch.equal(PerSampleTower([end])(images, torch.tensor(WEIGHTS[1])), end(images))


def test_the_ends_are_left_as_they_were() -> None:
    tower = made("timm ViT, all parts")
    states = states_of(tower, 2)
    ends = ends_of(tower, states)
    images = images_for(tower, 6)
    with torch.inference_mode():
        before = [end(images) for end in ends]
        PerSampleTower(ends)(images, torch.tensor(WEIGHTS[2]))
        assert all(torch.equal(end(images), features) for end, features in zip(ends, before, strict=True))
    for end, state in zip(ends, states, strict=True):
        assert end.state_dict().keys() == state.keys()
        assert all(torch.equal(value, state[key]) for key, value in end.state_dict().items())


@given(st.lists(st.lists(st.integers(0, 9), min_size=3, max_size=3).filter(any), min_size=1, max_size=5))
def test_nested_interpolation_is_the_weighted_sum(counts: list[list[int]]) -> None:
    weights = torch.tensor([[count / sum(row) for count in row] for row in counts], dtype=torch.float64)
    ends = torch.randn(3, 7, generator=torch.Generator().manual_seed(0))
    batch = BatchWeights(3)
    batch.set(weights, CPU)
    found = batch.interpolate([end[None] for end in ends], torch.float32)
    torch.testing.assert_close(found.double(), weights @ ends.double(), rtol=0, atol=1e-6)
    for row, corner in zip(found, weights, strict=True):
        if corner.max() == 1:
            assert torch.equal(row, ends[int(corner.argmax())])
