"""The wheel carries the notebooks as package data; everything else about the package is in pyproject.toml."""

import shutil
from pathlib import Path

from setuptools import setup
from setuptools.command.build_py import build_py

HERE = Path(__file__).parent
RECORDS = "benchmarks/results/*.json", "benchmarks/results/*/*"
CARRIED = "notebooks/*.ipynb", "labs/*.ipynb", "labs/*.md", "solutions/*.ipynb", *RECORDS


class WithNotebooks(build_py):
    """Copies notebooks and the records they show to course/_data, in the wheel only: a clone reads them where they are."""

    def run(self):
        super().run()
        if self.editable_mode:
            return
        for source, target in self.notebooks().items():
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(source, target)

    def notebooks(self) -> dict[Path, Path]:
        data = Path(self.build_lib) / "course" / "_data"
        found = [path for pattern in CARRIED for path in HERE.glob(pattern)]
        return {path: data / path.relative_to(HERE) for path in sorted(found)}

    def get_outputs(self, include_bytecode=True):
        return super().get_outputs(include_bytecode) + [str(target) for target in self.notebooks().values()]


setup(cmdclass={"build_py": WithNotebooks})
