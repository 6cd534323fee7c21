"""Towers and pools that add their own parameters to the tokens, with each sample's own.

They keep the library's forward where it takes tensors that have a row for each sample, and replace the methods that
do not.

Shapes: N samples, L tokens, D width, H×W pixels.
"""

from collections.abc import Mapping

import torch
from open_clip.transformer import VisionTransformer as ClipVisionTransformer
from timm.layers.attention_pool import AttentionPoolLatent
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor

from pipeline.models.per_sample.batch import SampleTensor
from pipeline.models.per_sample.products import SampleLinear


class SampleClipVisionTransformer(ClipVisionTransformer):  # type: ignore[misc]
    """open_clip's image transformer; ``per_sample_proj`` is None where features are not projected."""

    per_sample_class_embedding: SampleTensor
    per_sample_positional_embedding: SampleTensor
    per_sample_proj: SampleLinear | None

    def _embeds(self, x: Tensor) -> Tensor:
        patches_NLD = self.conv1(x).flatten(2).transpose(1, 2)
        class_N1D = self.per_sample_class_embedding.rows(patches_NLD.dtype)[:, None].expand(len(x), -1, -1)
        tokens = torch.cat([class_N1D, patches_NLD], dim=1)
        tokens += self.per_sample_positional_embedding.rows(tokens.dtype)
        embedded: Tensor = self.ln_pre(self.patch_dropout(tokens))
        return embedded

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, output width] of images [N, 3, H, W]."""
        pooled, _ = self._pool(self.transformer(self._embeds(x)))
        features: Tensor = pooled if self.per_sample_proj is None else self.per_sample_proj(pooled)
        return features


class SampleVisionTransformer(VisionTransformer):
    """timm's image transformer; ``per_sample_tensors`` are its tokens and positions [1, L, D] by attribute."""

    per_sample_tensors: Mapping[str, SampleTensor]

    def _pos_embed(self, x: Tensor) -> Tensor:
        for name, tensor in self.per_sample_tensors.items():
            vars(self)[name] = tensor.rows(x.dtype).squeeze(1)
        return super()._pos_embed(x)


class SampleAttentionPoolLatent(AttentionPoolLatent):
    """timm's attention pool, whose query ``latent`` [1, L, D] is a parameter."""

    per_sample_latent: SampleTensor

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Pooled features of tokens [N, L, D]."""
        vars(self)["latent"] = self.per_sample_latent.rows(x.dtype).squeeze(1)
        pooled: Tensor = super().forward(x, attn_mask)
        return pooled
