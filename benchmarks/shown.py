"""Tables of what `kernels.py` found; a cell that was not measured is empty."""

from rich.console import Console
from rich.table import Table


def show(rows: list[dict], layers: list[dict], console: Console) -> None:
    if rows:
        console.print(kernels(rows))
    if layers:
        console.print(layer_counts(layers))
    if measured := [row for row in layers if row["seconds"]]:
        console.print(layer_times(measured))
    compiled = [row for row in [*rows, *(step for row in layers for step in row["steps"])] if row["machine_code"]]
    if compiled:
        console.print(machine_code(compiled))


def table(title: str, *columns: str, left: int = 1) -> Table:
    its = Table(title=title)
    for number, column in enumerate(columns):
        its.add_column(column, justify="left" if number < left else "right", overflow="fold")
    return its


def kernels(rows: list[dict]) -> Table:
    whose = ("ours", "eager", "compiled")
    its = table("Share of the measured roof that binds", "kernel", "size", "GB", "GFLOP", *whose, "goal", left=2)
    for row in rows:
        numbers = f"{row['bytes'] / 1e9:.3g}", f"{row['flops'] / 1e9:.3g}"
        its.add_row(
            row["kernel"], row["size"], *numbers, *(percent(row["share_of_roof"], who) for who in whose), goal(row)
        )
    return its


def layer_counts(rows: list[dict]) -> Table:
    columns = ("TFLOP", "GB", "bound, ms", "by", "our steps, ms", "kept for backward, MB", "goal")
    its = table(
        "Routed experts: least time by the data sheet, of the pass and of our steps in turn",
        "case",
        "pass",
        *columns,
        left=2,
    )
    for row in rows:
        its.add_row(
            row["case"],
            row["pass"],
            f"{row['flops'] / 1e12:.3g}",
            f"{row['bytes'] / 1e9:.3g}",
            f"{row['bound']['seconds'] * 1e3:.3g}",
            row["bound"]["by"],
            f"{row['steps_bound_seconds'] * 1e3:.3g}",
            megabytes(row["kept_bytes"]),
            goal(row),
        )
    return its


def layer_times(rows: list[dict]) -> Table:
    whose = tuple(dict.fromkeys(who for row in rows for who in row["seconds"]))
    its = table(
        "Routed experts as measured, ms; then ours",
        *("case", "pass", *whose, "bf16 roof", "copy", "tokens/s", "most held in the pass, MB"),
        left=2,
    )
    for row in rows:
        its.add_row(
            row["case"],
            row["pass"],
            *(f"{row['seconds'][who] * 1e3:.3g}" if who in row["seconds"] else "" for who in whose),
            percent(row["share_of_product"], "ours"),
            percent(row["share_of_copy"], "ours"),
            f"{row['tokens_per_second']['ours']:,.0f}",
            megabytes(row["peak_bytes"]),
        )
    return its


def machine_code(rows: list[dict]) -> Table:
    columns = ("tensor cores", "spilled bytes", "registers", "occupancy", "times", "bound, us")
    its = table(
        "Machine code; the bound is of the function that launches it, least and most over the rows", "kernel", *columns
    )
    seen: dict[tuple, list[float]] = {}
    for row in rows:
        for one in row["machine_code"]:
            core = ", ".join(f"{count} {kind}" for kind, count in one.get("tensor_core", {}).items())
            said = one["error"] or core, *(one.get(name, "") for name in ("spill_bytes", "registers", "occupancy"))
            seen.setdefault((one["kernel"], *map(str, said)), []).append(
                row["bound"]["seconds"] * 1e6 if row["bound"] else float("nan")
            )
    for (kernel, *said), bounds in sorted(seen.items()):
        span = " to ".join(dict.fromkeys(f"{bound:.3g}" for bound in (min(bounds), max(bounds))))
        its.add_row(kernel, *said, str(len(bounds)), span)
    return its


def percent(its: dict | None, who: str) -> str:
    return f"{its[who]:.0%}" if its and who in its else ""


def megabytes(its: dict | None) -> str:
    return ", ".join(f"{who} {count / 1e6:,.3g}" for who, count in (its or {}).items() if count is not None)


def goal(row: dict) -> str:
    if row["goal"] is None:
        return ""
    verdict = {None: "", True: ": met", False: ": MISSED"}[row["met"]]
    return f"{row['goal']['share']:.0%}{verdict}"
