"""Towers, ends and weights that cannot be scored per sample are refused, by the path and class of the layer."""

import copy
from collections.abc import Callable

import pytest
import timm
import torch
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from pipeline.models.per_sample import PerSampleTower, UnsupportedLayerError
from tests.models.factory import perturbed
from tests.models.towers import ends_of, images_for, made, states_of


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
