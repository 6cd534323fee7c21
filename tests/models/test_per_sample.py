"""The oracle is a plain tower that loads a state dict interpolated in float64, and sees one image at a time."""

import copy
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from hypothesis import given
from hypothesis import strategies as st
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import LayerNormFp32, QuickGELU, VisionTransformer
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from pipeline.merging.segment import Segment
from pipeline.models.architectures import load_architecture
from pipeline.models.per_sample import PerSampleTower, UnsupportedLayerError, products
from pipeline.models.per_sample.batch import BatchWeights
from tests.models.factory import RESNET10, TINY, TINY_RESNET, State, along, blended, perturbed, write_config

CPU = torch.device("cpu")
TOLERANCE = 1e-5
WEIGHTS = {
    1: [(1.0,)] * 2,
    2: [along(lam) for lam in (0.0, 1.0, 0.3, 0.85, 0.5, 0.004)],
    3: [(1.0, 0.0, 0.0), (0.0, 0.0, 1.0), (0.0, 0.4, 0.6), (0.2, 0.3, 0.5), (0.7, 0.0, 0.3), (0.1, 0.9, 0.0)],
}


def clip_vit(**options: Any) -> nn.Module:
    settings = {"patch_size": 4, "width": 64, "layers": 2, "heads": 2, "mlp_ratio": 2.0, "output_dim": 24} | options
    return VisionTransformer(image_size=28, **settings)


def timm_vit(**options: Any) -> nn.Module:
    settings = {"patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 0} | options
    return timm.create_model("vit_tiny_patch16_224", img_size=32, **settings)


def wrapped_timm_vit(pool: str, proj: str) -> nn.Module:
    """open_clip's adapter around a timm trunk, which cannot be told the trunk's size itself."""
    tower = TimmModel("vit_tiny_patch16_224", 24, pool=pool, proj=proj)
    tower.trunk = timm_vit(embed_dim=192, num_heads=3, depth=1, global_pool=pool)
    return tower


WIDE = "resnet18"
TOWERS: dict[str, Callable[[], nn.Module]] = {
    "class token": clip_vit,
    "QuickGELU": partial(clip_vit, act_layer=QuickGELU),
    "average pooling": partial(clip_vit, pool_type="avg"),
    "LayerScale": partial(clip_vit, ls_init_value=0.4),
    "no first norm": partial(clip_vit, no_ln_pre=True),
    "last norm after pooling": partial(clip_vit, pool_type="avg", final_ln_after_pool=True),
    "LayerNormFp32": partial(clip_vit, norm_layer=LayerNormFp32),
    "fixed positions": partial(clip_vit, pos_embed_type="sin_cos_2d"),
    "patch dropout": partial(clip_vit, patch_dropout=0.5),
    "attentional pooler": partial(clip_vit, attentional_pool=True, attn_pooler_heads=2, attn_pooler_queries=5),
    "two poolers": partial(
        clip_vit, attentional_pool="cascade", attn_pooler_heads=2, attn_pooler_queries=5, output_dim=64
    ),
    "custom blocks": partial(
        clip_vit, qk_norm=True, scale_heads=True, scale_attn_inner=True, scale_attn=True, scale_fc=True
    ),
    "ModifiedResNet": partial(ModifiedResNet, [1, 2, 1, 1], output_dim=16, heads=4, image_size=64, width=16),
    "timm ViT": timm_vit,
    "timm ViT, all parts": partial(
        timm_vit, qk_norm=True, init_values=0.3, reg_tokens=2, no_embed_class=True, pre_norm=True, global_pool="avg"
    ),
    "resnet10t": partial(timm.create_model, "resnet10t", num_classes=0),
    "resnet10t, norm with activation": partial(
        timm.create_model, "resnet10t", num_classes=0, norm_layer=BatchNormAct2d, act_layer=nn.SiLU
    ),
    # Of its full width, as it is published: seconds a case.
    WIDE: partial(timm.create_model, "resnet18", num_classes=0),
    "resnet26": partial(timm.create_model, "resnet26", num_classes=0, channels=(16, 16, 32, 32)),
    "wrapped timm ViT": partial(wrapped_timm_vit, "token", "linear"),
    "wrapped timm ViT, MLP": partial(wrapped_timm_vit, "avg", "mlp"),
    "wrapped timm ViT, attention pool as in SigLIP": partial(wrapped_timm_vit, "map", "none"),
}


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Iterator[None]:
    """What a worker has by default; on tiny models a second thread only waits."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


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


def ends_of(tower: nn.Module, states: Sequence[State]) -> list[nn.Module]:
    ends = []
    for state in states:
        end = copy.deepcopy(tower).eval()
        end.load_state_dict(state)
        ends.append(end)
    return ends


def states_of(tower: nn.Module, count: int) -> list[State]:
    return [perturbed(tower.state_dict(), seed, spread=0.1) for seed in range(count)]


def images_for(tower: nn.Module, count: int, seed: int = 0) -> Tensor:
    sizes = {VisionTransformer: 28, ModifiedResNet: 64}
    return torch.randn(count, 3, *[sizes.get(type(tower), 32)] * 2, generator=torch.Generator().manual_seed(seed))


def made(name: str) -> nn.Module:
    torch.manual_seed(0)
    return TOWERS[name]().eval()


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


class DoublingLinear(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


class BatchMean(nn.Module):
    """Has no parameters, but lets images see each other."""

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(dim=0, keepdim=True)


def with_doubling_linear(tower: nn.Module) -> None:
    tower.transformer.resblocks[1].mlp.c_fc = DoublingLinear(64, 128)


def with_batch_mean(tower: nn.Module) -> None:
    tower.ln_pre = BatchMean()


def with_own_forward(tower: nn.Module) -> None:
    layer = tower.transformer.resblocks[0].mlp.c_proj
    layer.forward = lambda x: nn.functional.linear(x, layer.weight)


def with_hook(tower: nn.Module) -> None:
    tower.ln_post.register_forward_hook(lambda module, inputs, output: output * module.weight)


def with_unknown_parameter(tower: nn.Module) -> None:
    tower.transformer.resblocks[0].gate = nn.Parameter(torch.ones(1))


def with_unknown_buffer(tower: nn.Module) -> None:
    tower.conv1.register_buffer("mask", torch.ones(4, 4))


def with_length_first(tower: nn.Module) -> None:
    tower.transformer.batch_first = False


def with_tokens(tower: nn.Module) -> None:
    tower.output_tokens = True


def with_circular_padding(tower: nn.Module) -> None:
    tower.conv1.padding_mode = "circular"


def with_zero_key(tower: nn.Module) -> None:
    tower.transformer.resblocks[1].attn.add_zero_attn = True


@pytest.mark.parametrize(
    ("change", "path", "kind"),
    [
        (with_doubling_linear, "transformer.resblocks.1.mlp.c_fc", "DoublingLinear"),
        (with_batch_mean, "ln_pre", "BatchMean"),
        (with_own_forward, "transformer.resblocks.0.mlp.c_proj", "Linear"),
        (with_hook, "ln_post", "LayerNorm"),
        (with_unknown_parameter, "transformer.resblocks.0", "ResidualAttentionBlock"),
        (with_unknown_buffer, "conv1", "Conv2d"),
        (with_length_first, "transformer", "Transformer"),
        (with_tokens, "the tower", "VisionTransformer"),
        (with_circular_padding, "conv1", "Conv2d"),
        (with_zero_key, "transformer.resblocks.1.attn", "MultiheadAttention"),
    ],
)
def test_a_changed_layer_is_refused_by_path_and_class(
    change: Callable[[nn.Module], None], path: str, kind: str
) -> None:
    ends = [made("class token") for _ in range(2)]
    for seed, end in enumerate(ends):
        change(end.eval())
        end.eval().load_state_dict(perturbed(end.state_dict(), seed, spread=0.1))
    with pytest.raises(UnsupportedLayerError, match=rf"^{path} \(\S+\.{kind}\) "):
        PerSampleTower(ends)


@pytest.mark.parametrize(
    ("architecture", "layer"),
    [
        ("convnext_atto", r"^the tower \(timm\.models\.convnext\.ConvNeXt\)"),
        ("seresnet18", r"^layer1\.0\.se \(timm\.layers\.squeeze_excite\.SEModule\)"),
    ],
)
def test_an_architecture_with_unknown_layers_is_refused(architecture: str, layer: str) -> None:
    tower = timm.create_model(architecture, num_classes=0).eval()
    with pytest.raises(UnsupportedLayerError, match=layer):
        PerSampleTower(ends_of(tower, states_of(tower, 2)))


def test_a_class_whose_forward_was_replaced_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    tower = made("class token")
    ends = ends_of(tower, states_of(tower, 2))
    monkeypatch.setattr(VisionTransformer, "forward", lambda self, x: x)
    with pytest.raises(UnsupportedLayerError, match=r"^the tower \(open_clip"):
        PerSampleTower(ends)


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ([[0.5, 0.5]], "a row for each of the 2 images, got 1"),
        ([[1.0, 0.0, 0.0]] * 2, r"must be \[N, 2\], got \[2, 3\]"),
        ([[0.5, 0.5], [0.7, 0.7]], r"sum to 1, got .* in row 1"),
        ([[1.5, -0.5], [0.5, 0.5]], r"sum to 1, got .* in row 0"),
        ([[float("nan"), 1.0], [0.5, 0.5]], r"sum to 1, got .* in row 0"),
    ],
)
def test_weights_that_are_no_combination_are_refused(weights: list[list[float]], message: str) -> None:
    tower = made("class token")
    run = PerSampleTower(ends_of(tower, states_of(tower, 2)))
    with pytest.raises(ValueError, match=message):
        run(images_for(tower, 2), torch.tensor(weights))


def test_ends_of_two_architectures_are_refused() -> None:
    tower, other = made("class token"), made("class token")
    other.transformer.resblocks[1].ln_2.eps = 1e-3
    with pytest.raises(ValueError, match=r"differ at transformer\.resblocks\.1\.ln_2"):
        PerSampleTower([tower, other])
    with pytest.raises(ValueError, match="differ at the tower itself"):
        PerSampleTower([tower, made("timm ViT")])
    with pytest.raises(ValueError, match="evaluation mode"):
        PerSampleTower([tower, copy.deepcopy(tower).train()])


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
