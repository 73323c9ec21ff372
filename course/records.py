"""The recorded experiments that the lessons quote: what was run, on which machine and when, by which rule, and what came out."""

import json
import textwrap
from pathlib import Path

from course.authoring.places import root

WIDTH = 110  # characters


def recorded(name: str) -> dict:
    """Read `benchmarks/results/NAME.json`; print its command, date, machine and, where it has one, the rule for its verdicts.

    Raises: ValueError where there is no such record, with those that there are.
    """
    record = json.loads(_existing(f"{name}.json").read_text())
    machine = record["machine"]
    print(f"recorded: {record['command']}, {record['date']}, {machine['cores']} cores ({machine['cpu']})")
    if "rule" in record:
        print(textwrap.fill(record["rule"], WIDTH))
    return record


def recorded_folder(name: str) -> Path:
    """The folder `benchmarks/results/NAME`, of a record that is more than a JSON file.

    Raises: ValueError where there is none, with the records that there are.
    """
    return _existing(name)


def _existing(name: str) -> Path:
    folder = root() / "benchmarks" / "results"
    if not (folder / name).exists():
        known = ", ".join(sorted(path.stem for path in folder.glob("*"))) or "none here"
        raise ValueError(f"there is no record {name.removesuffix('.json')!r}; there is {known}")
    return folder / name
