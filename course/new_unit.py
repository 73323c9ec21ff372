"""`course new-unit`: the sources of a unit that builds and passes its gates, with an example to write over."""

import re
from pathlib import Path

from course.authoring import files, places

TEMPLATES = Path(__file__).parent / "template"


class NewUnitError(Exception):
    """Why a unit cannot be begun: one sentence."""


def new_unit_command(slug: str) -> list[Path]:
    """Write a unit's lesson, solution and first exercise, and print what comes next.

    slug: its number and name, as 05_deepseek_moe.
    Returns: the files. Raises: NewUnitError for a name of another form, a number that is taken, or outside a clone.
    """
    if not re.fullmatch(r"\d\d_[a-z][a-z0-9_]*", slug):
        raise NewUnitError(
            f"{slug} is not a unit's name: two digits, an underscore and small letters, as 05_deepseek_moe."
        )
    root = places.root()
    if not places.is_clone(root):
        raise NewUnitError("A unit is begun in a clone of the repository, and this is an installed course.")
    number = slug[:2]
    package = root / "course" / "exercises" / f"u{number}"
    taken = [path for folder in ("notebooks", "solutions") for path in (root / folder).glob(f"{number}_*.py")]
    if taken or package.exists():
        there = (taken or [package])[0]
        raise NewUnitError(f"Unit {number} exists already: {there.relative_to(root)}.")
    sources = {
        root / "notebooks" / f"{slug}.py": "lesson",
        root / "solutions" / f"{slug}.py": "solution",
        package / "example.py": "exercise",
    }
    for path, template in sources.items():
        files.write(path, _filled((TEMPLATES / f"{template}.py").read_text("utf-8"), slug))
        print(path.relative_to(root))
    files.write(package / "__init__.py", f'"""The exercises of unit {number}."""\n')
    print(f"Write over the example, then: course build {number}, course build --check, make test-fast.")
    return [*sources]


def _filled(template: str, slug: str) -> str:
    title = slug[3:].replace("_", " ").capitalize()
    return template.replace("99_slug", slug).replace("TITLE", title).replace("99", slug[:2])
