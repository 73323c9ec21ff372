"""One launch of four ranks serves all tests of exchange, layer and ledger."""

from pathlib import Path

import pytest

from course.parallel import run_ranks


@pytest.fixture(scope="session")
def ran():
    """What each of four ranks on two make-believe nodes has to tell: `ranked_layers.everything`."""
    file = Path(__file__).parent / "ranked_layers.py"
    return run_ranks(file, "everything", 4, nodes=2, seconds=100, say=None)
