"""Multi-head latent attention: keys and values of all heads come from one narrow latent, and the latent is what is cached
(DeepSeek-V2 report, section 2.1; V3 report, section 2.1.1).

A head's key has two parts: nope, made from the latent, and rope, which carries the position and is one for all heads. Three
forms compute the same numbers, up to rounding:

expanded     every position's keys and values are made once, and cached: H * (C + V) numbers a token
reexpanded   the latents are cached, R + P2 numbers a token, and expanded again in every step
absorbed     the latents are cached, and never expanded: what would turn a latent into a key is applied to the query
             instead, and what would turn it into a value to the result. H queries then share one key, the latent itself.

Shapes: B batch, S new positions, N positions so far, D width, H heads, Q latent of queries, R latent of keys and values,
L = R + P2 cached numbers a token, C = O + P2 features of a key (O nope, P2 rope, in pairs P), V of a value.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from course.model.attention import KVCache, causal_attention
from course.model.config import ModelConfig
from course.model.indexer import Indexer
from course.model.norm import RMSNorm
from course.model.rope import YarnScaling, apply_rope, yarn_mscale

FORMS = ("expanded", "reexpanded", "absorbed")
LATENT_EPS = 1e-6  # of the norms of the latents, whatever the model's other norms have: DeepSeek's code


class LatentCache:
    """The latents and turned keys of one layer so far: R + P2 numbers a token, however many heads there are."""

    def __init__(self, config: ModelConfig, batch: int, length: int, like: Tensor, absorb: bool = True):
        """Room for `length` positions, in the dtype and on the device of `like`. absorb: or expand in every step."""
        self.rows = like.new_empty(batch, length, config.kv_lora_rank + config.qk_rope_head_dim)
        self.index_keys = like.new_empty(batch, length, config.index_head_dim if config.index_topk else 0)
        self.length = 0
        self.absorb = absorb

    def append(self, rows_BSL: Float[Tensor, "B S L"]) -> Float[Tensor, "B N L"]:
        """Store new positions; return all of them. Raises: ValueError when the cache is full."""
        start, self.length = self.length, self.length + rows_BSL.shape[1]
        if self.length > self.rows.shape[1]:
            raise ValueError(f"{self.length} positions do not fit into a cache of {self.rows.shape[1]}")
        self.rows[:, start : self.length] = rows_BSL
        return self.rows[:, : self.length]

    def append_index(self, keys_BSC: Float[Tensor, "B S C"]) -> Float[Tensor, "B N C"]:
        """Store the indexer's keys of the positions that were appended last; return those of all."""
        self.index_keys[:, self.length - keys_BSC.shape[1] : self.length] = keys_BSC
        return self.index_keys[:, : self.length]


class LatentAttention(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        if c.q_lora_rank:
            self.query_down = nn.Linear(c.width, c.q_lora_rank, bias=c.qkv_bias)
            self.query_norm = RMSNorm(c.q_lora_rank, LATENT_EPS, c.kernels)
        self.query_up = nn.Linear(c.q_lora_rank or c.width, c.heads * c.head_width, bias=False)
        self.kv_down = nn.Linear(c.width, c.kv_lora_rank + c.qk_rope_head_dim, bias=c.qkv_bias)
        self.kv_norm = RMSNorm(c.kv_lora_rank, LATENT_EPS, c.kernels)
        self.kv_up = nn.Linear(c.kv_lora_rank, c.heads * (c.qk_nope_head_dim + c.v_head_dim), bias=False)
        self.output = nn.Linear(c.heads * c.v_head_dim, c.width, bias=c.output_bias)
        if c.index_topk:
            self.indexer = Indexer(c)

    @property
    def scale(self) -> float:
        """1 / sqrt(C), also when absorbed: C is the width of the key that was never made. YaRN's second factor sharpens the
        softmax; half of it would sit in cosine and sine, which the nope part does not pass through."""
        scaling = self.config.rope_scaling
        stretched = isinstance(scaling, YarnScaling) and scaling.mscale_all_dim
        sharper = yarn_mscale(scaling.factor, scaling.mscale_all_dim) ** 2 if stretched else 1.0
        return self.config.head_width**-0.5 * sharper

    def forward(
        self,
        x_BSD: Float[Tensor, "B S D"],
        cos_SP: Float[Tensor, "S P"],
        sin_SP: Float[Tensor, "S P"],
        cache: KVCache | LatentCache | None = None,
    ) -> Float[Tensor, "B S D"]:
        c, S = self.config, x_BSD.shape[1]
        latent_BSQ = self.query_norm(self.query_down(x_BSD)) if c.q_lora_rank else x_BSD
        q_BHSC = self.query_up(latent_BSQ).unflatten(-1, (c.heads, c.head_width)).transpose(1, 2)
        q_nope, q_rope = q_BHSC.split([c.qk_nope_head_dim, c.qk_rope_head_dim], dim=-1)
        q_rope = apply_rope(q_rope, cos_SP, sin_SP, c.rope_layout, c.kernels)
        latent_BSR, k_rope = self.kv_down(x_BSD).split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        k_rope = apply_rope(k_rope[:, None], cos_SP, sin_SP, c.rope_layout, c.kernels)[:, 0]
        rows_BNL = torch.cat([self.kv_norm(latent_BSR), k_rope], dim=-1)
        if isinstance(cache, LatentCache):
            rows_BNL = cache.append(rows_BNL)
        seen_BSN = None
        if c.index_topk:
            seen_BSN = self.indexer(x_BSD, latent_BSQ, cos_SP, sin_SP, cache)
        if isinstance(cache, LatentCache) and cache.absorb and self.absorbing_pays(S):
            if S == 1 and seen_BSN is not None:  # one query reads what it sees, and nothing else
                rows_BNL, seen_BSN = rows_BNL[seen_BSN[:, 0]].view(len(x_BSD), -1, rows_BNL.shape[-1]), None
            y_BHSV = self._absorbed(q_nope, q_rope, rows_BNL, seen_BSN)
        else:
            k_BHNC, v_BHNV = self.expand(rows_BNL)
            if isinstance(cache, KVCache):
                k_BHNC, v_BHNV = cache.append(k_BHNC, v_BHNV)
            y_BHSV = causal_attention(torch.cat([q_nope, q_rope], dim=-1), k_BHNC, v_BHNV, self.scale, seen_BSN)
        return self.output(y_BHSV.transpose(1, 2).flatten(2))

    def absorbing_pays(self, queries: int) -> bool:
        """Whether `queries` of a head cost fewer FLOPs against the latents than the expansion would: in decoding, and not
        for a prompt. Either way the cost grows with N, so N does not matter."""
        c = self.config
        wider = 2 * c.kv_lora_rank - c.qk_nope_head_dim - c.v_head_dim
        return queries * wider < c.kv_lora_rank * (c.qk_nope_head_dim + c.v_head_dim)

    def expand(self, rows_BNL: Float[Tensor, "B N L"]) -> tuple[Float[Tensor, "B H N C"], Float[Tensor, "B H N V"]]:
        """The keys and values of all heads."""
        c = self.config
        latent_BNR, k_rope = rows_BNL.split([c.kv_lora_rank, c.qk_rope_head_dim], dim=-1)
        kv = self.kv_up(latent_BNR).unflatten(-1, (c.heads, -1)).transpose(1, 2)
        k_nope, v_BHNV = kv.split([c.qk_nope_head_dim, c.v_head_dim], dim=-1)
        return torch.cat([k_nope, k_rope[:, None].expand(-1, c.heads, -1, -1)], dim=-1), v_BHNV

    def _absorbed(self, q_nope: Tensor, q_rope: Tensor, rows_BNL: Tensor, seen_BSN: Tensor | None) -> Tensor:
        c = self.config
        per_head = self.kv_up.weight.unflatten(0, (c.heads, -1))
        key_HOR, value_HVR = per_head.split([c.qk_nope_head_dim, c.v_head_dim], dim=1)
        q_BHSL = torch.cat([q_nope @ key_HOR, q_rope], dim=-1)
        # The rows are keys and values at once; of a value, the turned features are computed and dropped.
        mixed_BHSL = causal_attention(q_BHSL, rows_BNL[:, None], rows_BNL[:, None], self.scale, seen_BSN)
        return mixed_BHSL[..., : c.kv_lora_rank] @ value_HVR.mT
