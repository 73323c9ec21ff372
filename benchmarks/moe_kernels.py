"""The routed experts of a mixture layer at published shapes: contestants, inputs, and what one pass must compute and move.

ours         `course.kernels`: routed_experts, and with gradients routed_experts_with_grad
grouped_mm   `course.model` as it is eager: sort, gather, `torch.nn.functional.grouped_mm`, SwiGLU, grouped_mm, weighted index_add
loop         `course.model.expert_loop`, an expert after the other
peers        what can be imported here of PEERS, libraries that take the weights as they lie; none is required

Routing is drawn once a case and is not part of a pass: the gate's product and top-k come before. FLOPs are the model's: 6 D I
a pair forward and 12 backward. Our kernels compute gate and up again in backward, 4 D I more, for which they get no credit.
Bytes are the least that a pass moves: in each direction the weights of the experts that somebody chose and every input once,
every output once; nothing that lies between.

Magnitudes are those of a model in training: x 1 (it was normed), weights 0.02, the output's gradient 1e-3; bf16 throughout,
routing weights float32 that sum to one. DeepSeek-V3's are one rank of expert parallelism after the dispatch: each row that
arrived is for one of its experts.

Shapes: T tokens, D width, E experts, I an expert's hidden width, K experts a token, P = T K pairs.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec

import torch
from timing import said
from torch import Tensor

from course.kernels.autograd_moe import routed_experts_with_grad
from course.kernels.catalogue import Sizes
from course.kernels.routed_experts import routed_experts
from course.model import combine, expert_loop, grouped_experts, sort_by_expert

REFERENCE = "grouped_mm"  # what ours is compared with
FORWARD, BOTH = "forward", "forward and backward"
QWEN3 = "Qwen3-30B-A3B: defaults of Qwen3MoeConfig in transformers 5, made for that checkpoint"
NEXT = "Qwen3-Next-80B-A3B: defaults of Qwen3NextConfig in transformers 5, made for that checkpoint"
V3 = "DeepSeek-V3 report (arXiv 2412.19437), section 4.2: width 7168, 256 experts of width 2048; here those of one rank"


@dataclass(frozen=True)
class Case:
    experts: int
    width: int
    hidden: int
    top_k: int
    tokens: int
    source: str

    @property
    def pairs(self) -> int:
        return self.tokens * self.top_k


TOKENS = (128, 8192, 32_768)
CASES = (
    {f"qwen3-30b/{T}": Case(128, 2048, 768, 8, T, QWEN3) for T in TOKENS}
    | {f"v3-rank-{E}/{32_768 // E}-each": Case(E, 7168, 2048, 1, 32_768, V3) for E in (8, 16, 32)}
    | {f"qwen3-next/{T}": Case(512, 2048, 512, 10, T, NEXT) for T in TOKENS}
)
TINY = Sizes(
    tokens=24, width=64, heads=2, turned=16, hidden=32, vocab=100, square=64
)  # the catalogue's for a rehearsal
TINY_CASES = {
    "tiny/24": Case(4, 32, 16, 2, 24, "for a rehearsal"),
    "tiny-rank-2/8-each": Case(2, 32, 16, 1, 16, "for a rehearsal"),
}


def grouped_mm(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor) -> Tensor:
    order_P, offsets_E1 = sort_by_expert(ids_TK, len(gate_up_EFD))
    return sorted_grouped_mm(x_TD, order_P, offsets_E1, weights_TK, gate_up_EFD, down_EDI)


def sorted_grouped_mm(x_TD, order_P, offsets_E1, weights_TK, gate_up_EFD, down_EDI) -> Tensor:
    rows_PD = x_TD.index_select(0, order_P // weights_TK.shape[1])
    return combine(grouped_experts(rows_PD, gate_up_EFD, down_EDI, offsets_E1), order_P, weights_TK).to(x_TD.dtype)


def loop(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor) -> Tensor:
    return expert_loop(x_TD, ids_TK, weights_TK.to(x_TD.dtype), gate_up_EFD, down_EDI)  # index_add takes one dtype


def _liger() -> Callable:
    from liger_kernel.ops.fused_moe import LigerFusedMoEFunction

    return lambda x, ids, weights, gate_up, down: LigerFusedMoEFunction.apply(x, gate_up, down, ids.int(), weights)


def _transformers() -> Callable:
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeExperts

    def call(x_TD: Tensor, ids_TK: Tensor, weights_TK: Tensor, gate_up_EFD: Tensor, down_EDI: Tensor) -> Tensor:
        E, width, hidden = down_EDI.shape
        config = Qwen3MoeConfig(hidden_size=width, moe_intermediate_size=hidden, num_experts=E)
        config._experts_implementation = "grouped_mm"
        with torch.device("meta"):
            block = Qwen3MoeExperts(config)
        del block.gate_up_proj, block.down_proj
        block.gate_up_proj, block.down_proj = gate_up_EFD, down_EDI  # plain tensors: gradients go to who gave them
        return block(x_TD, ids_TK, weights_TK)

    return call


PEERS = {"liger_kernel": _liger, "transformers": _transformers}  # package -> the layer as it does it


def contestants(backward: bool) -> tuple[dict[str, Callable], dict[str, str]]:
    """Every way to do the forward pass, REFERENCE first; and of the peers that are not here, why."""
    calls = {REFERENCE: grouped_mm, "ours": routed_experts_with_grad if backward else routed_experts, "loop": loop}
    missing = {}
    for package, make in PEERS.items():
        try:
            if find_spec(package) is None:
                missing[package] = "not installed"
            else:
                calls[package] = make()
        except Exception as error:  # an optional library that does not start is no reason to stop
            missing[package] = said(error)
    return calls, missing


def without(forward: Callable) -> Callable:
    """A pass from x, ids, routing weights, gate_up, down (and dout, which it does not need) to the output."""
    return lambda *inputs: torch.no_grad()(forward)(*inputs[:5])


def with_gradients(forward: Callable) -> Callable:
    """The same to the output and the gradients of x, the routing weights, gate_up and down."""

    def call(x_TD, ids_TK, weights_TK, gate_up_EFD, down_EDI, dout_TD):
        leaves = [tensor.detach().requires_grad_() for tensor in (x_TD, weights_TK, gate_up_EFD, down_EDI)]
        x, weights, gate_up, down = leaves
        out_TD = forward(x, ids_TK, weights, gate_up, down)
        return out_TD.detach(), *torch.autograd.grad(out_TD, leaves, dout_TD)

    return call


@cache
def routing(case: Case) -> Tensor:
    """ids [T, K], drawn uniformly on the CPU, so that they are the same on every machine; no expert twice for a token."""
    rng = torch.Generator().manual_seed(case.experts + case.tokens)
    if case.top_k == 1:
        return torch.randperm(case.tokens, generator=rng)[:, None] % case.experts  # a rank's: equal shares
    return torch.rand(case.tokens, case.experts, generator=rng).topk(case.top_k).indices


def drawing(case: Case, device: str) -> Callable[[int], tuple]:
    """From a round's number to x, ids, routing weights, gate_up, down, dout: x and dout fresh, the others drawn once."""
    T, D, E, F = case.tokens, case.width, case.experts, 2 * case.hidden

    def normal(rng: torch.Generator, scale: float, *shape: int) -> Tensor:
        return torch.randn(shape, generator=rng, device=device, dtype=torch.bfloat16).mul_(scale)

    rng = torch.Generator(device).manual_seed(10**6)
    ids_TK = routing(case).to(device)
    weights_TK = torch.rand(T, case.top_k, generator=rng, device=device).softmax(-1)
    gate_up_EFD, down_EDI = normal(rng, 0.02, E, F, D), normal(rng, 0.02, E, D, F // 2)

    def draw(number: int) -> tuple:
        fresh = torch.Generator(device).manual_seed(number)
        return normal(fresh, 1.0, T, D), ids_TK, weights_TK, gate_up_EFD, down_EDI, normal(fresh, 1e-3, T, D)

    return draw


def counts(case: Case, backward: bool) -> dict:
    """FLOPs and bytes of a pass, and how many tokens the experts get. bf16: two bytes."""
    T, P, expert = case.tokens, case.pairs, 3 * case.width * case.hidden  # elements of an expert's weights
    each_E = routing(case).flatten().bincount(minlength=case.experts)
    used = int((each_E > 0).sum())
    weights, tokens, chosen = 2 * used * expert, 2 * T * case.width, (8 + 4) * P  # ids and routing weights
    moved = weights + 2 * tokens + chosen
    if (
        backward
    ):  # reads weights, x and dout again, writes dx, the routing weights' gradient, and all experts' gradients
        moved += weights + 3 * tokens + chosen + 4 * P + 2 * case.experts * expert
    spread = {"mean": P / case.experts, "least": int(each_E.min()), "most": int(each_E.max())}
    return {"flops": (6 if backward else 2) * P * expert, "bytes": moved, "tokens_an_expert": spread}
