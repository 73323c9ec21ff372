"""Causal self-attention with grouped key-value heads and a cache for generation.

(Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023.)

Shapes: B batch, S new positions, N positions so far (S and the cached ones), D width, H query heads, G kv heads,
C features of a key, V of a value, P RoPE pairs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course.model.config import ModelConfig
from course.model.norm import RMSNorm
from course.model.rope import apply_rope


class KVCache:
    """The keys and values of one layer, so far: generation then computes one new position a step."""

    def __init__(self, config: ModelConfig, batch: int, length: int, like: Tensor):
        """Room for `length` positions, in the dtype and on the device of `like`."""
        heads = config.heads if config.latent else config.kv_heads
        self.keys = like.new_empty(batch, heads, length, config.head_width)
        self.values = like.new_empty(batch, heads, length, config.value_width)
        self.length = 0

    def append(
        self, k_BGSC: Float[Tensor, "B G S C"], v_BGSV: Float[Tensor, "B G S V"]
    ) -> tuple[Float[Tensor, "B G N C"], Float[Tensor, "B G N V"]]:
        """Store new positions; return all of them. Raises: ValueError when the cache is full."""
        start, self.length = self.length, self.length + k_BGSC.shape[2]
        if self.length > self.keys.shape[2]:
            raise ValueError(f"{self.length} positions do not fit into a cache of {self.keys.shape[2]}")
        self.keys[:, :, start : self.length] = k_BGSC
        self.values[:, :, start : self.length] = v_BGSV
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


def causal_attention(
    q_BHSC: Float[Tensor, "B H S C"],
    k_BGNC: Float[Tensor, "B G N C"],
    v_BGNV: Float[Tensor, "B G N V"],
    scale: float | None = None,
    seen_BSN: Bool[Tensor, "B S N"] | None = None,
) -> Float[Tensor, "B H S V"]:
    """softmax(scale * q k^T) v, where the S queries are the last of the N positions and see none after their own.

    Query head h reads kv head h // (H / G). scale: 1 / sqrt(C) unless given. seen_BSN: which keys each query sees, in
    place of all up to its own.
    """
    H, S, G, N = *q_BHSC.shape[1:3], *k_BGNC.shape[1:3]
    C, V = k_BGNC.shape[-1], v_BGNV.shape[-1]
    if V < C:  # PyTorch's fused kernels want one width: those of zeros cost less than to go without
        v_BGNV = F.pad(v_BGNV, (0, C - V))
    if S == N > 1 and seen_BSN is None:
        y_BHSC = F.scaled_dot_product_attention(q_BHSC, k_BGNC, v_BGNV, is_causal=True, scale=scale, enable_gqa=H != G)
        return y_BHSC[..., :V]
    # The H / G heads that share a kv head are as many queries of that head: nothing is copied.
    q_BGQC = q_BHSC.unflatten(1, (G, H // G)).flatten(2, 3)
    mask = seen_BSN
    if mask is None and S > 1:
        mask = torch.ones(1, S, N, dtype=torch.bool, device=q_BHSC.device).tril(N - S)
    mask = None if mask is None else mask[:, None].repeat(1, 1, H // G, 1)
    y_BGQC = F.scaled_dot_product_attention(q_BGQC, k_BGNC, v_BGNV, mask, scale=scale)
    return y_BGQC.unflatten(2, (H // G, S)).flatten(1, 2)[..., :V]


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_width, self.rope_layout, self.kernels = config.head_width, config.rope_layout, config.kernels
        q_width, kv_width = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, q_width, bias=config.qkv_bias)
        self.key = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.value = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.output = nn.Linear(q_width, config.width, bias=config.output_bias)
        if config.qk_norm:
            self.query_norm = RMSNorm(config.head_width, config.norm_eps, config.kernels)
            self.key_norm = RMSNorm(config.head_width, config.norm_eps, config.kernels)
        self.qk_norm = config.qk_norm

    def forward(
        self,
        x_BSD: Float[Tensor, "B S D"],
        cos_SP: Float[Tensor, "S P"],
        sin_SP: Float[Tensor, "S P"],
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B S D"]:
        q_BHSC, k_BGSC, v_BGSC = (self._heads(part(x_BSD)) for part in (self.query, self.key, self.value))
        if self.qk_norm:
            q_BHSC, k_BGSC = self.query_norm(q_BHSC), self.key_norm(k_BGSC)
        q_BHSC = apply_rope(q_BHSC, cos_SP, sin_SP, self.rope_layout, self.kernels)
        k_BGSC = apply_rope(k_BGSC, cos_SP, sin_SP, self.rope_layout, self.kernels)
        k_BGNC, v_BGNC = cache.append(k_BGSC, v_BGSC) if cache is not None else (k_BGSC, v_BGSC)
        y_BHSC = causal_attention(q_BHSC, k_BGNC, v_BGNC)
        return self.output(y_BHSC.transpose(1, 2).flatten(2))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
