"""Where the development assets lie; a user does not have them, and tests marked `assets` skip."""

from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "shared" / "assets"
