"""The table of layers whose per-sample form is known, and the builder of each.

A layer counts as known by its exact class, not by what it is derived from: a subclass may have another forward.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import open_clip.modified_resnet as clip_resnet
import open_clip.transformer as clip
import timm.models.resnet as timm_resnet
import timm.models.vision_transformer as timm_vit
from open_clip.timm_model import TimmModel
from timm.layers.attention import Attention as TimmAttention
from timm.layers.attention_pool import AttentionPoolLatent
from timm.layers.layer_scale import LayerScale as TimmLayerScale
from timm.layers.mlp import Mlp
from timm.layers.norm import LayerNorm as TimmLayerNorm
from timm.layers.norm_act import BatchNormAct2d
from timm.layers.patch_dropout import PatchDropout as TimmPatchDropout
from timm.layers.patch_embed import PatchEmbed
from torch import Tensor, nn
from torch.nn.modules.linear import NonDynamicallyQuantizableLinear

from pipeline.models.per_sample import attention, embeddings
from pipeline.models.per_sample.ends import Ends
from pipeline.models.per_sample.layers import SampleBatchNorm2d, SampleLayerNorm, SampleScale
from pipeline.models.per_sample.products import SampleConv2d, SampleLinear

# Modules without parameters and buffers act on each sample alone if they come from one of these.
PARAMETERLESS_SOURCES = {
    "torch.nn.modules.activation",
    "torch.nn.modules.dropout",
    "torch.nn.modules.flatten",
    "torch.nn.modules.pooling",
    "timm.layers.activations",
    "timm.layers.adaptive_avgmax_pool",
    "timm.layers.drop",
}
PARAMETERLESS = {nn.Identity, clip.QuickGELU, clip.PatchDropout, TimmPatchDropout}


@dataclass(frozen=True, slots=True)
class KnownLayer:
    """How to build a layer's per-sample form, and all tensors of its own that it may have."""

    build: Callable[[Ends[Any]], nn.Module]
    tensors: frozenset[str] = frozenset()


def is_parameterless(module: nn.Module) -> bool:
    """Whether a module without tensors of its own is known to act on each sample alone."""
    return type(module) in PARAMETERLESS or type(module).__module__ in PARAMETERLESS_SOURCES


def _container(ends: Ends[nn.Module]) -> nn.Module:
    return ends.rebuilt(type(ends.first))


def _batch_first_container(ends: Ends[clip.Transformer]) -> nn.Module:
    ends.require("is not batch first", satisfied=ends.first.batch_first)
    return _container(ends)


def _linear(ends: Ends[nn.Linear]) -> nn.Module:
    return ends.linear("weight", "bias")


def _conv2d(ends: Ends[nn.Conv2d]) -> nn.Module:
    layer = ends.first
    ends.require(f"pads with {layer.padding_mode}", satisfied=layer.padding_mode == "zeros")
    geometry = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    return SampleConv2d(ends.tensors("weight"), ends.optional("bias"), ends.batch, **geometry)


def _layer_norm(ends: Ends[nn.LayerNorm]) -> nn.Module:
    layer = ends.first
    ends.require("normalises more than one axis", satisfied=len(layer.normalized_shape) == 1)
    ends.require("uses timm's fast norm", satisfied=not getattr(layer, "_fast_norm", False))
    return SampleLayerNorm(ends.rows("weight"), ends.optional_rows("bias"), layer.eps)


def _batch_norm(ends: Ends[nn.BatchNorm2d]) -> nn.Module:
    layer = ends.first
    affine = (ends.rows("weight"), ends.rows("bias")) if layer.affine else None
    after = [ends.children[name] for name in ("drop", "act") if name in ends.children]
    return SampleBatchNorm2d(ends.rows("running_mean"), ends.rows("running_var"), affine, layer.eps, after)


def _scale(ends: Ends[nn.Module]) -> nn.Module:
    return SampleScale(ends.rows("gamma"))


def _multihead_attention(ends: Ends[nn.MultiheadAttention]) -> nn.Module:
    layer = ends.first
    ends.require("is not batch first", satisfied=layer.batch_first)
    ends.require("adds keys of zero", satisfied=not layer.add_zero_attn)
    together, biases = ends.optional("in_proj_weight"), ends.optional("in_proj_bias")
    if together is None:
        packed, weights = None, [ends.tensors(f"{role}_proj_weight") for role in "qkv"]
    else:
        packed, weights = SampleLinear(together, biases, ends.batch), _thirds(together)
    separate = tuple(
        SampleLinear(w, b, ends.batch) for w, b in zip(weights, _thirds(biases) if biases else [None] * 3, strict=True)
    )
    return attention.SampleMultiheadAttention(packed, separate, ends.children["out_proj"], layer.num_heads)


def _thirds(packed: Sequence[Tensor]) -> list[list[Tensor]]:
    """Tensors of queries, keys and values, for each of them one by end."""
    return [list(part) for part in zip(*(tensor.chunk(3) for tensor in packed), strict=True)]


def _attention(ends: Ends[clip.Attention]) -> nn.Module:
    module = ends.rebuilt(attention.SampleAttention)
    module.per_sample_in_proj = ends.linear("in_proj_weight", "in_proj_bias")
    module.per_sample_head_scale = ends.optional_rows("head_scale")
    return module


def _attentional_pooler(ends: Ends[clip.AttentionalPooler]) -> nn.Module:
    module = ends.rebuilt(attention.SampleAttentionalPooler)
    module.per_sample_query = ends.rows("query")
    return module


def _attention_pool2d(ends: Ends[clip_resnet.AttentionPool2d]) -> nn.Module:
    module = ends.rebuilt(attention.SampleAttentionPool2d)
    module.per_sample_positions = ends.rows("positional_embedding")
    return module


def _clip_vision_transformer(ends: Ends[clip.VisionTransformer]) -> nn.Module:
    ends.require("returns tokens beside the features", satisfied=not ends.first.output_tokens)
    module = ends.rebuilt(embeddings.SampleClipVisionTransformer)
    module.per_sample_class_embedding = ends.rows("class_embedding")
    module.per_sample_positional_embedding = ends.rows("positional_embedding")
    proj = ends.optional("proj")
    module.per_sample_proj = None if proj is None else SampleLinear([end.T for end in proj], None, ends.batch)
    return module


def _timm_vision_transformer(ends: Ends[timm_vit.VisionTransformer]) -> nn.Module:
    ends.require("resamples its positions", satisfied=not ends.first.dynamic_img_size)
    module = ends.rebuilt(embeddings.SampleVisionTransformer)
    found = {name: ends.optional_rows(name) for name in ("cls_token", "reg_token", "pos_embed")}
    module.per_sample_tensors = {name: tensor for name, tensor in found.items() if tensor is not None}
    return module


def _attention_pool_latent(ends: Ends[AttentionPoolLatent]) -> nn.Module:
    module = ends.rebuilt(embeddings.SampleAttentionPoolLatent)
    module.per_sample_latent = ends.rows("latent")
    return module


def _known(build: Callable[[Ends[Any]], nn.Module], *tensors: str) -> KnownLayer:
    return KnownLayer(build, frozenset(tensors))


_AFFINE = ("weight", "bias")
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")

KNOWN_LAYERS: Mapping[type[nn.Module], KnownLayer] = {
    nn.Linear: _known(_linear, *_AFFINE),
    NonDynamicallyQuantizableLinear: _known(_linear, *_AFFINE),
    nn.Conv2d: _known(_conv2d, *_AFFINE),
    nn.LayerNorm: _known(_layer_norm, *_AFFINE),
    clip.LayerNorm: _known(_layer_norm, *_AFFINE),
    clip.LayerNormFp32: _known(_layer_norm, *_AFFINE),
    TimmLayerNorm: _known(_layer_norm, *_AFFINE),
    nn.BatchNorm2d: _known(_batch_norm, *_AFFINE, *_STATISTICS),
    BatchNormAct2d: _known(_batch_norm, *_AFFINE, *_STATISTICS),
    clip.LayerScale: _known(_scale, "gamma"),
    TimmLayerScale: _known(_scale, "gamma"),
    nn.MultiheadAttention: _known(
        _multihead_attention, "in_proj_weight", "in_proj_bias", "q_proj_weight", "k_proj_weight", "v_proj_weight"
    ),
    clip.Attention: _known(_attention, "in_proj_weight", "in_proj_bias", "head_scale"),
    clip.AttentionalPooler: _known(_attentional_pooler, "query"),
    clip_resnet.AttentionPool2d: _known(_attention_pool2d, "positional_embedding"),
    AttentionPoolLatent: _known(_attention_pool_latent, "latent"),
    clip.VisionTransformer: _known(_clip_vision_transformer, "class_embedding", "positional_embedding", "proj"),
    timm_vit.VisionTransformer: _known(_timm_vision_transformer, "cls_token", "reg_token", "pos_embed"),
    # These read no tensors but through their children.
    nn.Sequential: _known(_container),
    nn.ModuleList: _known(_container),
    TimmModel: _known(_container),
    clip.Transformer: _known(_batch_first_container),
    clip.ResidualAttentionBlock: _known(_container),
    clip.CustomResidualAttentionBlock: _known(_container),
    clip_resnet.ModifiedResNet: _known(_container),
    clip_resnet.Bottleneck: _known(_container),
    timm_resnet.ResNet: _known(_container),
    timm_resnet.BasicBlock: _known(_container),
    timm_resnet.Bottleneck: _known(_container),
    timm_vit.Block: _known(_container),
    TimmAttention: _known(_container),
    Mlp: _known(_container),
    PatchEmbed: _known(_container),
}
# As they are when this table is made: a class changed later is not the one that was read.
KNOWN_FORWARDS = {kind: kind.forward for kind in KNOWN_LAYERS}
