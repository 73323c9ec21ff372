"""Going on with a run of `kernels.py` that was interrupted: which of its rows still hold."""

import hashlib
import json
from pathlib import Path

import torch
import triton

HERE = Path(__file__).resolve().parent
RESTS_ON = ("course/kernels/*.py", "course/hardware/*.py", "course/model/*.py", "benchmarks/*.py")


def rests_on(its_card: dict | None, rounds: int) -> dict:
    """What must be the same for a row to be kept: files by content, card, versions, rounds."""
    digest = hashlib.sha256()
    for path in sorted(path for pattern in RESTS_ON for path in HERE.parent.glob(pattern)):
        digest.update(path.name.encode() + path.read_bytes())
    versions = {"torch": torch.__version__, "triton": triton.__version__}
    return {"files": digest.hexdigest(), "card": its_card, "rounds": rounds, "versions": versions}


def rows_done(out: Path | None, basis: dict) -> dict[tuple, dict]:
    """Rows of an earlier record that rest on the same and did not fail."""
    if out is None or not out.exists():
        return {}
    before = json.loads(out.read_text())
    if before.get("rests_on") != basis:
        return {}
    rows = [*before["rows"], *before["layers"]]
    return {place(row): row for row in rows if not (row["failed"] or {}).get("row")}


def place(row: dict) -> tuple:
    return (row["case"], row["pass"]) if "case" in row else (row["kernel"],)


def sorted_rows(done: dict[tuple, dict], places: list[tuple]) -> dict[str, list[dict]]:
    rows = [done[its] for its in places if its in done]
    return {"rows": [row for row in rows if "case" not in row], "layers": [row for row in rows if "case" in row]}
