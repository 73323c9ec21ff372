"""What four ranks do in the tests of the layer: every case over every dispatch, in one launch. Their tests import the cases."""

import torch
import torch.distributed as dist

from course.model import ModelConfig, MoE
from course.parallel.dispatch import Links
from course.parallel.exchange import exchange, exchange_counts
from course.parallel.experts import ExpertParallelMoE
from course.parallel.grid import Grid
from course.parallel.ledger import DISPATCHES, Ledger

RANKS, NODES = 4, 2
SMALL = {"width": 32, "experts": 8, "top_k": 3, "expert_width": 16}
SIGMOID = {"gate": "sigmoid", "selection_bias": True}
CASES = {  # config, tokens of each rank, dtype, experts that all tokens choose
    "uneven": (SMALL, [5, 2, 7, 3], "float32", []),
    "in float64": (SMALL, [5, 2, 7, 3], "float64", []),
    "odd width": (SMALL | {"width": 30, "expert_width": 9, "heads": 1, "kv_heads": 1}, [5, 2, 7, 3], "float32", []),
    "a rank without tokens": (SMALL, [5, 0, 7, 0], "float32", []),
    "no tokens at all": (SMALL, [0, 0, 0, 0], "float32", []),
    "all to one rank": (SMALL | SIGMOID | {"top_k": 2}, [5, 2, 0, 3], "float32", [4, 5]),
    "experts without tokens": (SMALL | SIGMOID | {"top_k": 2}, [5, 2, 7, 3], "float32", [1, 3, 6]),
    "dropped pairs": (SMALL | {"capacity_factor": 0.5}, [9, 0, 7, 1], "float32", []),
    "shared experts": (SMALL | {"shared_experts": 2}, [5, 2, 7, 3], "float32", []),
    "deepseek": (
        SMALL | SIGMOID | {"groups": 4, "top_groups": 2, "routed_scale": 2.5, "shared_experts": 1},
        [5, 2, 7, 3],
        "float32",
        [],
    ),
    "on kernels": (SMALL | SIGMOID | {"kernels": "triton"}, [2, 0, 3, 1], "float32", []),
}
WIRES = {"same": ("same", "same"), "fp8": ("fp8", "same"), "bf16": ("bf16", "bf16"), "deepseek": ("fp8", "bf16")}
DTYPES = ["float32", "float64", "bfloat16", "float16", "int64", "int32", "uint8", "float8_e4m3fn"]
WIRED = SMALL | {"width": 136, "shared_experts": 1}, [5, 0, 7, 3], "float32", []


def whole(case) -> tuple[MoE, list, list]:
    """The layer as one process has it, each rank's tokens, and the gradient of what comes out for each."""
    settings, tokens, dtype, chosen = case
    drawn = torch.Generator().manual_seed(11)
    moe = MoE(ModelConfig(**settings)).to(getattr(torch, dtype))

    def draw(*shape):
        return torch.randn(*shape, generator=drawn, dtype=torch.float64).to(getattr(torch, dtype))

    with torch.no_grad():
        for parameter in moe.parameters():
            parameter.copy_(draw(*parameter.shape) / parameter.shape[-1] ** 0.5)
        if chosen:
            moe.bias_E[chosen] = 10.0
    width = settings["width"]
    return moe, [draw(T, width) for T in tokens], [draw(T, width) for T in tokens]


def layer(case, links, dispatch, wires=("same", "same")):
    moe, x_RTD, dy_RTD = whole(case)
    x_TD, dy_TD = (each[links.rank] for each in (x_RTD, dy_RTD))
    ours = ExpertParallelMoE(moe.config, links, dispatch, *wires).to(x_TD.dtype)
    ours.load_whole(moe.state_dict())
    with Ledger() as ledger:
        y_TD, routing = ours(x_TD.requires_grad_())
        forward = ledger.gathered()
        routing.weights_TK.retain_grad()
        y_TD.backward(dy_TD)
        both = ledger.gathered()
    ours.sum_gradients()
    dropped = routing.kept_TK if routing.kept_TK is None else ~routing.kept_TK
    experts_TK = routing.indices_TK if dropped is None else routing.indices_TK.masked_fill(dropped, -1)
    return {
        "y": y_TD,
        "x": x_TD.grad,
        "weights": routing.weights_TK.grad,
        "experts": experts_TK,
        "parameters": {name: parameter.grad for name, parameter in ours.named_parameters()},
        "forward": {what: torch.from_numpy(bytes_RR) for what, bytes_RR in forward.items()},
        "both": {what: torch.from_numpy(bytes_RR) for what, bytes_RR in both.items()},
    }


def sent_by(rank: int) -> list[int]:
    """Rows to each rank: few, none to some, and never as many as come back."""
    return [(rank + 2 * q) % 5 for q in range(RANKS)]


def marked(sender: int, receiver: int, dtype: str) -> torch.Tensor:
    """The rows from one rank to another: three times a number that no other row has, exact in every dtype."""
    marks = 16 * sender + 4 * receiver + torch.arange(sent_by(sender)[receiver])
    rows = marks.to(torch.uint8).view(torch.float8_e4m3fn) if dtype == "float8_e4m3fn" else marks
    return rows.to(getattr(torch, dtype))[:, None].repeat(1, 3)


def trade(dtypes):
    """Rows of every dtype there and back, and their gradients in every wire format."""
    rank, sent = dist.get_rank(), sent_by(dist.get_rank())
    received = exchange_counts(torch.tensor(sent)).tolist()
    told: dict = {"received": received}
    for dtype in dtypes:
        rows = torch.cat([marked(rank, q, dtype) for q in range(RANKS)])
        got = exchange(rows, sent, received)
        told[dtype] = got, exchange(got, received, sent), exchange(rows[:, 0], sent, received)
    for wire in ("same", "bf16", "fp8"):
        rows = torch.randn(sum(sent), 300, generator=torch.Generator().manual_seed(rank)).requires_grad_()
        got = exchange(rows, sent, received, wire_back=wire)
        got.backward(got.detach())
        told[wire] = (
            rows.detach(),
            exchange(exchange(rows.detach(), sent, received, wire=wire), received, sent),
            rows.grad,
        )
    rows = told["fp8"][1]
    told["fp8 again"] = exchange(exchange(rows, sent, received, wire="fp8"), received, sent)
    faults = []
    for arguments in ((sent[:-1], received), ([n + 1 for n in sent], received), (sent, received, None, "fp4")):
        try:
            exchange(rows, *arguments)
        except ValueError as error:
            faults.append(str(error))
    return told | {"faults": faults}


def everything() -> dict:
    links = Links.join(Grid.from_environment())
    layers = {name: {dispatch: layer(case, links, dispatch) for dispatch in DISPATCHES} for name, case in CASES.items()}
    wired = {
        name: {dispatch: layer(WIRED, links, dispatch, wires) for dispatch in DISPATCHES}
        for name, wires in WIRES.items()
    }
    groups = [dist.get_process_group_ranks(group) for group in (links.everyone, links.across, links.within)]
    return {"layers": layers, "wired": wired, "trade": trade(DTYPES), "groups": groups}
