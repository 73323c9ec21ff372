"""The recorded experiments that the lessons quote: what was run, on which machine and when, by which rule, and what came out."""

import json
import textwrap

from course.authoring.places import root

WIDTH = 110  # characters


def recorded(name: str) -> dict:
    """Read `benchmarks/results/NAME.json`; print its command, date, machine and, where it has one, the rule for its verdicts.

    Raises: ValueError where there is no such record, with those that there are.
    """
    folder = root() / "benchmarks" / "results"
    path = folder / f"{name}.json"
    if not path.is_file():
        known = ", ".join(sorted(path.stem for path in folder.glob("*.json"))) or "none here"
        raise ValueError(f"there is no record {name!r}; there is {known}")
    record = json.loads(path.read_text())
    machine = record["machine"]
    print(f"recorded: {record['command']}, {record['date']}, {machine['cores']} cores ({machine['cpu']})")
    if "rule" in record:
        print(textwrap.fill(record["rule"], WIDTH))
    return record
