"""Image towers of every kind that can be scored per sample, their ends, and images that fit them."""

import copy
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import timm
import torch
from open_clip.modified_resnet import ModifiedResNet
from open_clip.timm_model import TimmModel
from open_clip.transformer import LayerNormFp32, QuickGELU, VisionTransformer
from timm.layers import BatchNormAct2d
from torch import Tensor, nn

from tests.models.factory import State, perturbed


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
