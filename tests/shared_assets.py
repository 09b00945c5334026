"""Where the development assets and small weights lie; a user does not have them: tests skip."""

from pathlib import Path

import pytest

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
WEIGHTS = ASSETS.parent / "weights"
"""Small published weights, see modules/latents/taef2.py."""

needs_weights = pytest.mark.skipif(
    not WEIGHTS.is_dir(), reason="the development weights are not beside this checkout"
)
