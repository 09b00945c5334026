"""Seconds and peak memory of a piece of work."""

import time

import numpy as np
import pytest

from modules.reporting.cost import CLEAR_REFS, measured


def test_the_clock_and_the_peak_are_those_of_the_block_alone():
    if not CLEAR_REFS.exists():
        pytest.skip("this system does not tell the peak of a process's memory")
    figures: dict[str, float] = {}
    with measured(figures, "large"):
        held = np.ones(64 * 2**20, dtype=np.uint8)  # 64 MB
        time.sleep(0.05)
    del held
    with measured(figures, "small"):
        pass
    assert 0.05 <= figures["seconds_large"] < 5.0
    assert figures["seconds_small"] < 0.05
    assert 50.0 < figures["memory_mb_large"] - figures["memory_mb_small"] < 80.0
