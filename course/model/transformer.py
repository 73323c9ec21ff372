"""The language model: embedding, pre-norm blocks of attention and feed-forward, a head; its loss and its sampling.

Shapes: B batch, S sequence, V vocabulary, D width, T = B * S tokens.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from course.model.attention import Attention, KVCache
from course.model.config import ModelConfig
from course.model.moe import MoE, Routing
from course.model.norm import RMSNorm
from course.model.rope import rope_table
from course.model.router import balance_loss
from course.model.swiglu import SwiGLU


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed_forward(norm(x)): the residual stream itself is never normalised."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.attention_norm = RMSNorm(config.width, config.norm_eps)
        self.attention = Attention(config)
        self.feed_forward_norm = RMSNorm(config.width, config.norm_eps)
        self.feed_forward = MoE(config) if config.experts else SwiGLU(config.width, config.mlp_width)

    def forward(self, x_BSD: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None) -> tuple[Tensor, Routing | None]:
        x_BSD = x_BSD + self.attention(self.attention_norm(x_BSD), cos, sin, cache)
        h_BSD = self.feed_forward_norm(x_BSD)
        if isinstance(self.feed_forward, SwiGLU):
            return x_BSD + self.feed_forward(h_BSD), None
        y_TD, routing = self.feed_forward(h_BSD.flatten(0, 1))
        return x_BSD + y_TD.view_as(x_BSD), routing


class Output(NamedTuple):
    logits_BSV: Tensor
    routings: list[Routing]  # one a mixture layer


class Loss(NamedTuple):
    total: Tensor  # what to minimise: cross entropy, and the balance loss times the config's balance_weight
    cross_entropy: Tensor  # nats a token
    routings: list[Routing]


class Transformer(nn.Module):
    """A decoder-only language model. Weights are drawn from the global torch generator: seed it first."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self.initialise()
        self.tie()

    def tie(self) -> "Transformer":
        """Let head and embedding be one matrix where the config says so."""
        if self.config.tied:
            self.head.weight = self.embedding.weight
        return self

    @torch.no_grad()
    def initialise(self):
        """Normal with standard deviation 0.02; what writes to the residual stream is divided by sqrt(2 * layers), so
        that the stream's size does not grow with depth (GPT-2 report, section 2.3)."""
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.ndim > 1:
                writes = name.endswith(("output.weight", "down_DI", "down_EDI"))
                parameter.normal_(std=0.02 / (2 * self.config.layers) ** 0.5 if writes else 0.02)

    def forward(self, tokens_BS: Int64[Tensor, "B S"], caches: list[KVCache] | None = None) -> Float[Tensor, "B S V"]:
        """Logits of the next token at every position, in float32 or better. See `outputs`."""
        return self.outputs(tokens_BS, caches).logits_BSV

    def outputs(self, tokens_BS: Int64[Tensor, "B S"], caches: list[KVCache] | None = None) -> Output:
        """Logits, and how each mixture layer routed. With caches (`new_caches`), tokens continue what they hold.

        Raises: ValueError when the sequence is longer than the config's context.
        """
        c = self.config
        start = caches[0].length if caches else 0
        end = start + tokens_BS.shape[1]
        if end > c.context:
            raise ValueError(f"a sequence of {end} tokens is longer than the context of {c.context}")
        positions_S = torch.arange(start, end, device=tokens_BS.device)
        cos, sin = rope_table(positions_S, c.head_width, c.rope_theta, c.rope_scaling)
        x_BSD = self.embedding(tokens_BS)
        cos, sin = cos.to(x_BSD), sin.to(x_BSD)
        routings = []
        for i, block in enumerate(self.blocks):
            x_BSD, routing = block(x_BSD, cos, sin, caches[i] if caches else None)
            routings += [routing] if routing else []
        logits_BSV = self.head(self.norm(x_BSD))
        return Output(logits_BSV.to(torch.promote_types(logits_BSV.dtype, torch.float32)), routings)

    def new_caches(self, batch: int, length: int | None = None) -> list[KVCache]:
        """Empty caches, one a layer, with room for `length` positions; the config's context by default."""
        length = self.config.context if length is None else length
        return [KVCache(self.config, batch, length, like=self.head.weight) for _ in self.blocks]

    def loss(self, tokens_BS: Int64[Tensor, "B S"], targets_BS: Int64[Tensor, "B S"]) -> Loss:
        """Cross entropy of the targets, and for a mixture the weighted balance loss, averaged over the layers."""
        logits_BSV, routings = self.outputs(tokens_BS)
        cross_entropy = F.cross_entropy(logits_BSV.flatten(0, 1), targets_BS.flatten())
        if not routings:
            return Loss(cross_entropy, cross_entropy, routings)
        balance = torch.stack([balance_loss(r.probabilities_TE, r.indices_TK) for r in routings]).mean()
        return Loss(cross_entropy + self.config.balance_weight * balance, cross_entropy, routings)

    @torch.no_grad()
    def generate(
        self,
        prompt_S: Int64[Tensor, " S"],
        count: int,
        temperature: float = 1.0,
        top_p: float = 1.0,
        generator: torch.Generator | None = None,
        ends: Collection[int] = (),
    ) -> Iterator[int]:
        """Yield up to `count` tokens that continue the prompt, one at a time; one of `ends` is yielded and is the last.

        When the context is full it goes on from the later half of what it has seen. Raises: ValueError for an empty
        prompt.
        """
        if not len(prompt_S):
            raise ValueError("generation needs a prompt of at least one token")
        seen = prompt_S.tolist()
        context = self.config.context
        room = min(context, len(seen) + count)
        caches, new = self.new_caches(1, room), seen[-context:]
        for _ in range(count):
            if caches[0].length + len(new) > context:
                caches, new = self.new_caches(1, room), seen[-(context // 2) :]
            logits_V = self(torch.tensor([new], device=prompt_S.device), caches)[0, -1]
            new = [sample(logits_V, temperature, top_p, generator)]
            seen += new
            yield new[0]
            if new[0] in ends:
                return


def sample(
    logits_V: Float[Tensor, " V"],
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
) -> int:
    """Draw one token id. Temperature 0 is the largest logit.

    Nucleus sampling (Holtzman et al. 2020): keep the fewest tokens, most probable first, whose probabilities reach
    top_p; always at least one.
    """
    if temperature == 0:
        return int(logits_V.argmax())
    probabilities_V, ids_V = (logits_V / temperature).softmax(-1).sort(descending=True, stable=True)
    before_V = probabilities_V.cumsum(-1) - probabilities_V
    probabilities_V = probabilities_V.masked_fill(before_V >= top_p, 0)
    probabilities_V[0] = probabilities_V[0].clamp(min=1e-9)
    return int(ids_V[torch.multinomial(probabilities_V, 1, generator=generator)])
