"""The lightning indexer of DeepSeek-V3.2: a small attention that chooses, for each query, which keys the real one looks at
(DeepSeek-V3.2-Exp report, section 2.1).

index score(t, s) = sum over heads of weight(t, head) * relu(q(t, head) . k(s)), with one key a position; the `index_topk`
positions of the largest scores are seen, the query's own and earlier ones alone. DeepSeek runs it in FP8 behind a Hadamard
transform, which leaves the products as they are; here and in `transformers` it runs in the dtype of the model.

Shapes: B batch, S new positions, N positions so far, D width, Q latent of queries, H index heads, C features of one.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from course.model.config import ModelConfig
from course.model.rope import apply_rope
from course.model.router import largest_k


class Indexer(nn.Module):
    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = c = config
        self.query = nn.Linear(c.q_lora_rank, c.index_heads * c.index_head_dim, bias=False)
        self.key = nn.Linear(c.width, c.index_head_dim, bias=False)
        self.key_norm = nn.LayerNorm(c.index_head_dim, eps=1e-6)
        self.weight = nn.Linear(c.width, c.index_heads, bias=False)

    def forward(
        self, x_BSD: Tensor, latent_BSQ: Tensor, cos_SP: Tensor, sin_SP: Tensor, cache=None
    ) -> Bool[Tensor, "B S N"]:
        """Which keys each query sees. No gradient passes: a choice has none. cache: a LatentCache that has just been given
        the rows of these positions."""
        with torch.no_grad():
            return self.choose(self.scores(x_BSD, latent_BSQ, cos_SP, sin_SP, cache))

    def scores(
        self, x_BSD: Tensor, latent_BSQ: Tensor, cos_SP: Tensor, sin_SP: Tensor, cache=None
    ) -> Float[Tensor, "B S N"]:
        """Index scores in float32 or better, minus infinity for keys after the query's own."""
        c = self.config
        q_BHSC = self.query(latent_BSQ).unflatten(-1, (c.index_heads, c.index_head_dim)).transpose(1, 2)
        k_BSC = self._turned(self.key_norm(self.key(x_BSD))[:, None], cos_SP, sin_SP)[:, 0]
        k_BNC = k_BSC if cache is None else cache.append_index(k_BSC)
        q_BHSC = self._turned(q_BHSC, cos_SP, sin_SP)
        wide = torch.promote_types(x_BSD.dtype, torch.float32)
        agreement_BHSN = F.relu(q_BHSC.to(wide) @ k_BNC[:, None].to(wide).mT)
        weight_BSH = self.weight(x_BSD).to(wide) * (c.index_heads * c.index_head_dim) ** -0.5
        scores_BSN = torch.einsum("bsh,bhsn->bsn", weight_BSH, agreement_BHSN)
        S, N = scores_BSN.shape[1:]
        later_SN = torch.ones(S, N, dtype=torch.bool, device=x_BSD.device).triu(N - S + 1)
        return scores_BSN.masked_fill(later_SN, float("-inf"))

    def choose(self, scores_BSN: Float[Tensor, "B S N"]) -> Bool[Tensor, "B S N"]:
        """The `index_topk` largest scores of each query, fewer where fewer keys lie behind it. Ties go to the earlier key:
        they are common, since a key with which every head disagrees has the score 0."""
        rows_TN = scores_BSN.flatten(0, 1)
        best_TK = largest_k(rows_TN, min(self.config.index_topk, rows_TN.shape[1]))
        chosen_TN = torch.zeros_like(rows_TN, dtype=torch.bool).scatter(1, best_TK, True)
        return (chosen_TN & (rows_TN > float("-inf"))).view_as(scores_BSN)

    def _turned(self, x_BHSC: Tensor, cos_SP: Tensor, sin_SP: Tensor) -> Tensor:
        """RoPE on the first features; in pairs by halves, whatever layout the attention has."""
        turned = self.config.qk_rope_head_dim
        rope, rest = x_BHSC[..., :turned], x_BHSC[..., turned:]
        return torch.cat([apply_rope(rope, cos_SP, sin_SP, "half", self.config.kernels), rest], dim=-1)


def indexer_loss(scores_BSN: Float[Tensor, "B S N"], attention_BHSN: Float[Tensor, "B H S N"]) -> Float[Tensor, ""]:
    """What trains an indexer: the mean over queries of KL(p || softmax(scores)), p the attention of all heads, summed and
    divided by its sum (report, equations 3 and 4).

    scores_BSN: minus infinity for keys that do not count. attention_BHSN: detached here; give the scores of a detached
    input as well, so that the model learns from its own loss alone.
    """
    target_BSN = attention_BHSN.detach().sum(dim=1)
    target_BSN = target_BSN.masked_fill(scores_BSN == float("-inf"), 0.0)
    target_BSN = target_BSN / target_BSN.sum(dim=-1, keepdim=True)
    log_q_BSN = scores_BSN.log_softmax(dim=-1).masked_fill(scores_BSN == float("-inf"), 0.0)
    return (torch.special.xlogy(target_BSN, target_BSN) - target_BSN * log_q_BSN).sum(dim=-1).mean()
