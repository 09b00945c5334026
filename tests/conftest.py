"""What tests need and a machine may lack: each mark skips with its reason."""

from pathlib import Path

import pytest
import torch
from shared_assets import ASSETS

REPOSITORY = Path(__file__).resolve().parents[1]

REASONS = {
    "blender": (
        not (REPOSITORY / ".venv-blender/bin/python").exists(),
        "no .venv-blender: run make install",
    ),
    "gpu": (not torch.cuda.is_available(), "no CUDA device"),
    "assets": (not ASSETS.is_dir(), "the development assets are not beside this checkout"),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        for mark, (missing, reason) in REASONS.items():
            if missing and item.get_closest_marker(mark):
                item.add_marker(pytest.mark.skip(reason=reason))
