"""Text from a model: one token after the other, or several at once, guessed by the multi-token modules and checked.

Shapes: S tokens of the prompt, V vocabulary, D width.
"""

from collections.abc import Collection, Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from course.model.transformer import Transformer


@torch.no_grad()
def generate(
    model: Transformer,
    prompt_S: Int64[Tensor, " S"],
    count: int,
    temperature: float = 1.0,
    top_p: float = 1.0,
    generator: torch.Generator | None = None,
    ends: Collection[int] = (),
) -> Iterator[int]:
    """Yield up to `count` tokens that continue the prompt, one at a time; one of `ends` is yielded and is the last.

    When the context is full it goes on from the later half of what it has seen. Raises: ValueError for an empty prompt.
    """
    _require(prompt_S)
    seen = prompt_S.tolist()
    context = model.config.context
    room = min(context, len(seen) + count)
    caches, new = model.new_caches(1, room), seen[-context:]
    for _ in range(count):
        if caches[0].length + len(new) > context:
            caches, new = model.new_caches(1, room), seen[-(context // 2) :]
        logits_V = model(torch.tensor([new], device=prompt_S.device), caches)[0, -1]
        new = [sample(logits_V, temperature, top_p, generator)]
        seen += new
        yield new[0]
        if new[0] in ends:
            return


class Round(NamedTuple):
    """What one run of the model brought."""

    tokens: list[int]
    guessed: int  # how many tokens were guessed beforehand
    right: int  # and how many of them, from the first on, the model would have said itself


@torch.no_grad()
def speculate(
    model: Transformer, prompt_S: Int64[Tensor, " S"], count: int, ends: Collection[int] = ()
) -> Iterator[Round]:
    """The likeliest continuation, as `generate` with temperature 0 gives it, in rounds.

    A round runs the model once, on the last token and on what the multi-token modules guess to follow. Every guess that
    equals what the model says itself is kept, and one token more comes for free (V3 report, section 5.4.3; Leviathan et
    al. 2023). When the context is nearly full it goes on without guesses.

    Raises: ValueError for an empty prompt, and for a model without multi-token modules.
    """
    _require(prompt_S)
    if not model.mtp:
        raise ValueError("the model has no multi-token modules, so nothing can guess: mtp_layers is 0")
    depth, seen, start = len(model.mtp), prompt_S.tolist(), len(prompt_S)
    room = min(model.config.context, start + count + depth)
    caches, further = model.new_caches(1, room), [model.new_cache(1, room) for _ in model.mtp]
    hidden = [
        torch.zeros(1, 0, model.config.width).to(model.head.weight) for _ in range(depth)
    ]  # what each module read
    checked, new = 0, seen  # positions in the cache; tokens that are not
    while len(seen) - start < count:
        if len(seen) + depth > model.config.context:
            rest = generate(model, torch.tensor(seen), start + count - len(seen), temperature=0.0, ends=ends)
            yield from (Round([token], 0, 0) for token in rest)
            return
        features = model.features(_row(new, prompt_S), caches)
        said = model.head(features.hidden_BSD)[0, len(seen) - checked - 1 :].argmax(-1).tolist()
        guesses = new[len(seen) - checked :]
        right = next((i for i, guess in enumerate(guesses) if guess != said[i]), len(guesses))
        kept = [*guesses[:right], said[right]]
        last = next((i + 1 for i, token in enumerate(kept) if token in ends), len(kept))
        kept = kept[: min(last, start + count - len(seen))]
        yield Round(kept, len(guesses), right)
        if kept[-1] in ends:
            return
        known = len(seen) + len(kept) - 1  # positions whose hidden state came from right tokens
        hidden[0] = torch.cat([hidden[0], features.hidden_BSD[:, : known - checked]], dim=1)
        seen += kept
        for cache in caches:
            cache.length = known
        checked = known
        new = seen[known:] + _guess(model, seen, hidden, further)


def _guess(model: Transformer, seen: list[int], hidden: list[Tensor], caches: list) -> list[int]:
    """A guess of each module. hidden: what the modules read at each position; the first entry is up to date."""
    guesses: list[int] = []
    known = len(seen) - 1
    for k, (module, cache) in enumerate(zip(model.mtp, caches, strict=True), start=1):
        first = cache.length
        tokens = (seen + guesses)[first + k : known + k]
        cos, sin = model.rope(torch.arange(first, known, device=hidden[0].device))
        out_BSD = module(
            model.embedding(_row(tokens, hidden[0])), hidden[k - 1][:, first:known], cos, sin, cache
        ).hidden_BSD
        if k < len(hidden):
            hidden[k] = torch.cat([hidden[k][:, :first], out_BSD], dim=1)
        guesses.append(int(model.head(out_BSD[:, -1]).argmax()))
        cache.length = max(0, known - k + 1)  # at later positions it has read guesses
    return guesses


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


def _row(tokens: list[int], like: Tensor) -> Int64[Tensor, "1 S"]:
    return torch.tensor([tokens], dtype=torch.int64, device=like.device)


def _require(prompt_S: Tensor) -> None:
    if not len(prompt_S):
        raise ValueError("generation needs a prompt of at least one token")
