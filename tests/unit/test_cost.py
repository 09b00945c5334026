"""Seconds and peak memory of a piece of work."""

import json
import subprocess
import sys

import pytest

from modules.reporting.cost import CLEAR_REFS

MEASURE = """
import json, time
import numpy as np
from modules.reporting.cost import measured

figures = {}
with measured(figures, "large"):
    held = np.ones(64 * 2**20, dtype=np.uint8)  # 64 MB
    time.sleep(0.05)
del held
with measured(figures, "small"):
    pass
print(json.dumps(figures))
"""


def test_the_clock_and_the_peak_are_those_of_the_block_alone():
    """In a process of its own: one that ran other tests may hold memory that is free to it."""
    if not CLEAR_REFS.exists():
        pytest.skip("this system does not tell the peak of a process's memory")
    command = [sys.executable, "-c", MEASURE]
    told = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    figures: dict[str, float] = json.loads(told)
    assert 0.05 <= figures["seconds_large"] < 5.0
    assert figures["seconds_small"] < 0.05
    assert 50.0 < figures["memory_mb_large"] - figures["memory_mb_small"] < 80.0
