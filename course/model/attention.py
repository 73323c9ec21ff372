"""Causal self-attention with grouped key-value heads and a cache for generation.

(Vaswani et al. 2017, section 3.2; grouped heads: Ainslie et al. 2023.)

Shapes: B batch, S new positions, N positions so far (S and the cached ones), D width, H query heads, G kv heads,
C features a head, P = C/2 RoPE pairs.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from course.model.config import ModelConfig
from course.model.rope import apply_rope


class KVCache:
    """The keys and values of one layer, so far: generation then computes one new position a step."""

    def __init__(self, config: ModelConfig, batch: int, length: int, like: Tensor):
        """Room for `length` positions, in the dtype and on the device of `like`."""
        self.keys = like.new_empty(batch, config.kv_heads, length, config.head_width)
        self.values = torch.empty_like(self.keys)
        self.length = 0

    def append(
        self, k_BGSC: Float[Tensor, "B G S C"], v_BGSC: Float[Tensor, "B G S C"]
    ) -> tuple[Float[Tensor, "B G N C"], Float[Tensor, "B G N C"]]:
        """Store new positions; return all of them. Raises: ValueError when the cache is full."""
        start, self.length = self.length, self.length + k_BGSC.shape[2]
        if self.length > self.keys.shape[2]:
            raise ValueError(f"{self.length} positions do not fit into a cache of {self.keys.shape[2]}")
        self.keys[:, :, start : self.length] = k_BGSC
        self.values[:, :, start : self.length] = v_BGSC
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


def causal_attention(
    q_BHSC: Float[Tensor, "B H S C"], k_BGNC: Float[Tensor, "B G N C"], v_BGNC: Float[Tensor, "B G N C"]
) -> Float[Tensor, "B H S C"]:
    """softmax(q k^T / sqrt(C)) v, where the S queries are the last of the N positions and see none after their own.

    Query head h reads kv head h // (H / G).
    """
    H, S, G, N = *q_BHSC.shape[1:3], *k_BGNC.shape[1:3]
    if S == N > 1:
        return F.scaled_dot_product_attention(q_BHSC, k_BGNC, v_BGNC, is_causal=True, enable_gqa=H != G)
    # The H / G heads that share a kv head are as many queries of that head: nothing is copied.
    q_BGQC = q_BHSC.unflatten(1, (G, H // G)).flatten(2, 3)
    mask_QN = None
    if S > 1:
        mask_QN = torch.ones(S, N, dtype=torch.bool, device=q_BHSC.device).tril(N - S).repeat(H // G, 1)
    return F.scaled_dot_product_attention(q_BGQC, k_BGNC, v_BGNC, mask_QN).view_as(q_BHSC)


class Attention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.head_width, self.rope_layout = config.head_width, config.rope_layout
        q_width, kv_width = config.heads * config.head_width, config.kv_heads * config.head_width
        self.query = nn.Linear(config.width, q_width, bias=config.qkv_bias)
        self.key = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.value = nn.Linear(config.width, kv_width, bias=config.qkv_bias)
        self.output = nn.Linear(q_width, config.width, bias=config.output_bias)

    def forward(
        self,
        x_BSD: Float[Tensor, "B S D"],
        cos_SP: Float[Tensor, "S P"],
        sin_SP: Float[Tensor, "S P"],
        cache: KVCache | None = None,
    ) -> Float[Tensor, "B S D"]:
        q_BHSC = apply_rope(self._heads(self.query(x_BSD)), cos_SP, sin_SP, self.rope_layout)
        k_BGSC = apply_rope(self._heads(self.key(x_BSD)), cos_SP, sin_SP, self.rope_layout)
        v_BGSC = self._heads(self.value(x_BSD))
        k_BGNC, v_BGNC = cache.append(k_BGSC, v_BGSC) if cache is not None else (k_BGSC, v_BGSC)
        y_BHSC = causal_attention(q_BHSC, k_BGNC, v_BGNC)
        return self.output(y_BHSC.transpose(1, 2).flatten(2))

    def _heads(self, x_BSD: Tensor) -> Tensor:
        return x_BSD.unflatten(-1, (-1, self.head_width)).transpose(1, 2)
