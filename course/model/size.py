"""`course size`: what models own, and what a token costs in them."""

import json

from rich.console import Console
from rich.table import Table

from course.model.config import ModelConfig
from course.model.count import CONTEXT, active_parameters, kv_bytes_per_token, total_parameters, train_flops_per_token
from course.model.presets import PRESETS


class UnknownModel(Exception):
    """There is no preset of that name: one sentence."""


def size_command(name: str | None, as_json: bool) -> None:
    """Print one preset's counts, or those of all presets. `as_json`: one object, or a list of them."""
    names = list(PRESETS) if name is None else [name]
    try:
        rows = [size(name) for name in names]
    except ValueError as error:
        raise UnknownModel(str(error)) from None
    if as_json:
        print(json.dumps(rows if name is None else rows[0], indent=1))
        return
    table = Table("model", box=None, pad_edge=False)
    for column in ("total", "active", "KV bytes", "train GFLOP"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        counts = [f"{row[key]:,}" for key in ("total", "active", "kv_bytes_per_token")]
        table.add_row(row["name"], *counts, f"{row['train_gflop_per_token']:,.4g}")
    console = Console(highlight=False)
    console.print(table)
    console.print(
        "Parameters in all, and those that one token meets, embedding and head included.\n"
        "A token's share of the KV cache, in BF16.\n"
        f"Training, forward and backward, for one token of {CONTEXT:,}, attention causal."
    )


def size(name: str) -> dict[str, str | int | float]:
    """Counts of a preset. Raises: ValueError with the names there are."""
    config = ModelConfig.preset(name)
    return {
        "name": name,
        "total": total_parameters(config),
        "active": active_parameters(config),
        "kv_bytes_per_token": kv_bytes_per_token(config),
        "train_gflop_per_token": train_flops_per_token(config) / 1e9,
    }
