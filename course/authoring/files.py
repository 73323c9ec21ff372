"""Writing a file whole or not at all."""

import os
import time
from pathlib import Path

HOUR = 3600.0


def write(path: Path, content: str | bytes) -> None:
    """Put `content` at `path` in one step: a reader, or a kill at any moment, sees the old file or the new one."""
    data = content.encode("utf-8", "replace") if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    sweep(path, older_than=HOUR)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as out:
            out.write(data)
            out.flush()
            os.fsync(out.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def sweep(path: Path, older_than: float = 0.0) -> None:
    """Remove what a killed writer of `path` left beside it, when it is older than so many seconds."""
    for left in path.parent.glob(f".{path.name}.*.tmp"):
        try:
            if time.time() - left.stat().st_mtime >= older_than:
                left.unlink()
        except OSError:
            continue


def free_name(path: Path, word: str = "") -> Path:
    """The first name like `04_moe.unreadable-1.ipynb` beside `path` that is not taken."""
    number = 1
    while (free := path.with_name(f"{path.stem}.{word}{number}{path.suffix}")).exists():
        number += 1
    return free
