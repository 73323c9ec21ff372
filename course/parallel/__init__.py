"""Experts on many ranks, on `torch.distributed`: what travels, and how many bytes.

grid        ranks on nodes, experts on ranks
exchange    all-to-all of rows, with its gradient
dispatch    tokens to their experts' ranks and back, in one hop or two
experts     the expert-parallel mixture layer
ledger      bytes from rank to rank, counted and calculated
ranks       several ranks started from a notebook
rank        one of them

Importing this package imports neither torch nor NumPy.
"""

from importlib import import_module

_LAZY = {
    "ExpertParallelMoE": "experts",
    "Grid": "grid",
    "Ledger": "ledger",
    "Links": "dispatch",
    "RanksError": "ranks",
    "by_hop": "ledger",
    "copies": "ledger",
    "expected": "ledger",
    "run_ranks": "ranks",
}


def __getattr__(name: str):
    if name in _LAZY:
        return getattr(import_module(f"course.parallel.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'course.parallel' has no attribute {name!r}")
