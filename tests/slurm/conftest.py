"""A SLURM cluster of two nodes on this machine, for the tests of slurm/*.sbatch."""

import pytest
from two_nodes import TwoNodes, why_not


@pytest.fixture
def cluster(tmp_path):
    """The running cluster; the test is skipped, saying why, where it cannot be had."""
    reason = why_not()
    if reason:
        pytest.skip(reason)
    with TwoNodes(tmp_path / "slurm") as nodes:
        yield nodes
