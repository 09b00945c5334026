"""The Khronos glTF validator for tests: `make validator` installs it."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

VALIDATOR = Path(__file__).resolve().parents[1] / "gltf_validator"


def khronos_errors(*paths: Path) -> dict[str, list[str]]:
    """Return the errors of each GLB by file name; skip the test where the validator is missing."""
    node = shutil.which("node")
    if node is None:
        pytest.skip("Node.js is not installed: GLBs were not validated")
    if not (VALIDATOR / "node_modules/gltf-validator").is_dir():
        pytest.skip("the Khronos validator is not installed: run make validator")
    result = subprocess.run(
        [node, str(VALIDATOR / "validate.mjs"), *map(str, paths)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert result.returncode in (0, 1), result.stderr
    return {Path(file).name: errors for file, errors in json.loads(result.stdout).items()}
