"""Attention layers that read their parameters themselves, with each sample's own.

Attention between queries, keys and values is left as it is: only the projections know the samples' weights.

Shapes: N samples, L positions, H heads, D width.
"""

import torch
from open_clip.modified_resnet import AttentionPool2d
from open_clip.transformer import Attention, AttentionalPooler
from torch import Tensor, nn
from torch.nn import functional

from pipeline.models.per_sample.batch import SampleTensor
from pipeline.models.per_sample.products import SampleLinear


class SampleMultiheadAttention(nn.Module):
    """``nn.MultiheadAttention`` (batch first, no mask) as open_clip's towers call it.

    ``packed`` projects self-attention's input to queries, keys and values in one product; it is absent where keys have
    a width of their own. ``separate`` are the three projections.
    """

    def __init__(
        self, packed: SampleLinear | None, separate: tuple[SampleLinear, ...], out_proj: nn.Module, heads: int
    ) -> None:
        super().__init__()
        self._packed = packed
        self._query, self._key, self._value = separate
        self._out_proj = out_proj
        self._heads = heads

    def forward(
        self, query: Tensor, key: Tensor, value: Tensor, *, need_weights: bool, attn_mask: Tensor | None = None
    ) -> tuple[Tensor, None]:
        """Output [N, L, D] for inputs [N, L, ...], and None in place of the attention weights."""
        assert not need_weights
        assert attn_mask is None
        if self._packed is not None and query is key and key is value:
            q, k, v = self._packed(query).chunk(3, dim=-1)
        else:
            q, k, v = self._query(query), self._key(key), self._value(value)
        return self._out_proj(attend(q, k, v, self._heads)), None


class SampleAttention(Attention):  # type: ignore[misc]
    """open_clip's own attention, without scaled cosine; optional parts (norms of queries and keys) are children."""

    per_sample_in_proj: SampleLinear
    per_sample_head_scale: SampleTensor | None

    def forward(self, x: Tensor, attn_mask: Tensor | None = None) -> Tensor:
        """Output [N, L, D] for inputs [N, L, D]."""
        assert attn_mask is None
        q, k, v = (split_heads(part, self.num_heads) for part in self.per_sample_in_proj(x).chunk(3, dim=-1))
        y = functional.scaled_dot_product_attention(self.ln_q(q), self.ln_k(k), v)
        if self.per_sample_head_scale is not None:
            y = y * self.per_sample_head_scale.rows(y.dtype)
        output: Tensor = self.out_proj(self.ln_inner(join_heads(y)))
        return output


class SampleAttentionalPooler(AttentionalPooler):  # type: ignore[misc]
    """open_clip's attentional pooler, whose queries are parameters."""

    per_sample_query: SampleTensor

    def forward(self, x: Tensor) -> Tensor:
        """Pooled tokens [N, queries, D] of tokens [N, L, context width]."""
        context = self.ln_k(x)
        queries = self.ln_q(self.per_sample_query.rows(x.dtype).expand(len(x), -1, -1))
        pooled: Tensor = self.attn(queries, context, context, need_weights=False)[0]
        return pooled


class SampleAttentionPool2d(AttentionPool2d):  # type: ignore[misc]
    """open_clip's attention pool of ResNets. Only the mean's query is computed: the others' outputs are not used."""

    per_sample_positions: SampleTensor

    def forward(self, x: Tensor) -> Tensor:
        """Features [N, output width] of feature maps [N, D, H, W]."""
        pixels_NLD = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([pixels_NLD.mean(dim=1, keepdim=True), pixels_NLD], dim=1)
        tokens = tokens + self.per_sample_positions.rows(x.dtype)
        pooled = attend(self.q_proj(tokens[:, :1]), self.k_proj(tokens), self.v_proj(tokens), self.num_heads)
        features: Tensor = self.c_proj(pooled)[:, 0]
        return features


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """Multi-head attention [N, L, D] of projected queries [N, L, D], keys and values [N, S, D]."""
    q, k, v = (split_heads(part, heads) for part in (q, k, v))
    return join_heads(functional.scaled_dot_product_attention(q, k, v))


def split_heads(x: Tensor, heads: int) -> Tensor:
    """View [N, H, L, D / H] of [N, L, D]."""
    return x.view(*x.shape[:-1], heads, x.shape[-1] // heads).transpose(1, 2)


def join_heads(x: Tensor) -> Tensor:
    """Inverse of :func:`split_heads`."""
    return x.transpose(1, 2).flatten(2)
