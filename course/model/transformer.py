"""The language model: embedding, blocks, a head, multi-token modules behind it; and its loss.

Shapes: B batch, S sequence, V vocabulary, D width, T = B * S tokens.
"""

from collections.abc import Iterator
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor, nn

from course.model.attention import KVCache
from course.model.balance import balance_loss, sequence_balance_loss
from course.model.block import Block, Cache
from course.model.config import ModelConfig
from course.model.latent_attention import FORMS, LatentCache
from course.model.moe import MoE, Routing
from course.model.mtp import MTPModule
from course.model.norm import RMSNorm
from course.model.rope import rope_table
from course.model.router import largest_k


class Features(NamedTuple):
    hidden_BSD: Tensor  # after the last norm: what the head reads
    routings: list[Routing]


class Output(NamedTuple):
    logits_BSV: Tensor
    routings: list[Routing]  # one a mixture layer


class Loss(NamedTuple):
    total: Tensor  # what to minimise: cross entropy, and the others times the config's weights
    cross_entropy: Tensor  # nats a token
    routings: list[Routing]  # one a mixture layer, those of multi-token modules last
    further: Tensor | None = None  # cross entropy of the multi-token modules, their mean


class Transformer(nn.Module):
    """A decoder-only language model. Weights are drawn from the global torch generator: seed it first."""

    def __init__(self, config: ModelConfig):
        super().__init__()
        self.config = config
        self.embedding = nn.Embedding(config.vocab, config.width)
        self.blocks = nn.ModuleList(Block(config, layer) for layer in range(config.layers))
        self.norm = RMSNorm(config.width, config.norm_eps, config.kernels)
        self.head = nn.Linear(config.width, config.vocab, bias=False)
        self.mtp = nn.ModuleList(MTPModule(config) for _ in range(config.mtp_layers))
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

    def forward(self, tokens_BS: Int64[Tensor, "B S"], caches: list[Cache] | None = None) -> Float[Tensor, "B S V"]:
        """Logits of the next token at every position, in float32 or better. See `outputs`."""
        return self.outputs(tokens_BS, caches).logits_BSV

    def outputs(self, tokens_BS: Int64[Tensor, "B S"], caches: list[Cache] | None = None) -> Output:
        """Logits, and how each mixture layer routed. With caches (`new_caches`), tokens continue what they hold.

        Raises: ValueError when the sequence is longer than the config's context.
        """
        features = self.features(tokens_BS, caches)
        return Output(_wide(self.head(features.hidden_BSD)), features.routings)

    def features(self, tokens_BS: Int64[Tensor, "B S"], caches: list[Cache] | None = None) -> Features:
        """What the head reads, and how each mixture layer routed."""
        start = caches[0].length if caches else 0
        end = start + tokens_BS.shape[1]
        if end > self.config.context:
            raise ValueError(f"a sequence of {end} tokens is longer than the context of {self.config.context}")
        cos, sin = self.rope(torch.arange(start, end, device=tokens_BS.device))
        x_BSD = self.embedding(tokens_BS)
        routings = []
        for i, block in enumerate(self.blocks):
            x_BSD, routing = block(x_BSD, cos, sin, caches[i] if caches else None)
            routings += [routing] if routing else []
        return Features(self.norm(x_BSD), routings)

    def rope(self, positions_S: Int64[Tensor, " S"]) -> tuple[Float[Tensor, "S P"], Float[Tensor, "S P"]]:
        """Cosine and sine for these positions, in the dtype of the weights."""
        c = self.config
        cos, sin = rope_table(positions_S, c.rope_width, c.rope_theta, c.rope_scaling)
        return cos.to(self.embedding.weight), sin.to(self.embedding.weight)

    def new_caches(self, batch: int, length: int | None = None, form: str = "absorbed") -> list[Cache]:
        """Empty caches, one a layer, with room for `length` positions; the config's context by default.

        form: of latent attention, see `course.model.latent_attention`; other attention has only one.
        """
        return [self.new_cache(batch, length, form) for _ in self.blocks]

    def new_cache(self, batch: int, length: int | None = None, form: str = "absorbed") -> Cache:
        """An empty cache of one layer. Raises: ValueError for a form that does not exist."""
        if form not in FORMS or (form == "expanded" and self.config.index_topk):
            raise ValueError(
                f"there is no cache of form {form!r}: choose one of {', '.join(FORMS)}; an indexer needs latents"
            )
        length, like = self.config.context if length is None else length, self.head.weight
        if not self.config.latent or form == "expanded":
            return KVCache(self.config, batch, length, like)
        return LatentCache(self.config, batch, length, like, absorb=form == "absorbed")

    def mixtures(self) -> Iterator[MoE]:
        """The mixture layers, in the order of a loss's routings."""
        return (module for module in self.modules() if isinstance(module, MoE))

    def loss(self, tokens_BS: Int64[Tensor, "B S"], targets_BS: Int64[Tensor, "B S"]) -> Loss:
        """Cross entropy of the targets; that of the multi-token modules, and the balance losses, as the config weighs them.

        The balance losses are means over the layers.
        """
        c, (hidden_BSD, routings) = self.config, self.features(tokens_BS)
        cross_entropy = self._cross_entropy(hidden_BSD, targets_BS)
        further, more = self._further(hidden_BSD, targets_BS) if self.mtp else (None, [])
        total, routings = cross_entropy, routings + more
        if further is not None:
            total = total + c.mtp_weight * further
        if routings and c.balance_weight:
            balance = torch.stack([balance_loss(r.probabilities_TE, r.indices_TK) for r in routings]).mean()
            total = total + c.balance_weight * balance
        if routings and c.sequence_balance_weight:
            sequences = torch.stack([_balance_of_sequences(r, len(tokens_BS), c.top_k) for r in routings]).mean()
            total = total + c.sequence_balance_weight * sequences
        return Loss(total, cross_entropy, routings, further)

    def _further(self, hidden_BSD: Tensor, targets_BS: Tensor) -> tuple[Tensor, list[Routing]]:
        """Cross entropy of each multi-token module, their mean (V3 report, equations 24 and 25). Module k reads the target
        of k - 1 positions further on, and predicts that of k: of every window the last k positions have none."""
        losses, routings = [], []
        cos, sin = self.rope(torch.arange(targets_BS.shape[1], device=targets_BS.device))
        for k, module in enumerate(self.mtp, start=1):
            embedded_BSD, hidden_BSD = self.embedding(targets_BS[:, k - 1 : -1]), hidden_BSD[:, :-1]
            hidden_BSD, routing = module(embedded_BSD, hidden_BSD, cos[:-k], sin[:-k])
            routings += [routing] if routing else []
            losses.append(self._cross_entropy(hidden_BSD, targets_BS[:, k:]))
        return torch.stack(losses).mean(), routings

    def _cross_entropy(self, hidden_BSD: Tensor, targets_BS: Tensor) -> Tensor:
        """Of the head's logits, in float32 whatever their dtype; the mean in nats."""
        logits_TV, targets_T = self.head(hidden_BSD).flatten(0, 1), targets_BS.flatten()
        if self.config.kernels == "triton":
            from course.kernels.autograd import cross_entropy_with_grad

            return cross_entropy_with_grad(logits_TV, targets_T)[0]
        return F.cross_entropy(_wide(logits_TV), targets_T)


def _balance_of_sequences(routing: Routing, batch: int, k: int) -> Tensor:
    """As the V3 report counts: the k largest scores, whatever bias and groups made of them."""
    largest_TK = largest_k(routing.probabilities_TE.detach(), k)
    return sequence_balance_loss(*(part.unflatten(0, (batch, -1)) for part in (routing.probabilities_TE, largest_TK)))


def _wide(logits: Tensor) -> Tensor:
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
