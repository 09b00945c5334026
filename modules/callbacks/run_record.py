"""What a run's folder says of itself: configuration, code and package versions."""

import importlib.metadata
import subprocess
from pathlib import Path


def record_run(run_dir: Path, resolved_config: str) -> None:
    """Write `config.yaml`, `code.txt` (git commit, diff) and `packages.txt` into a run's folder."""
    run_dir.mkdir(parents=True, exist_ok=True)
    (run_dir / "config.yaml").write_text(resolved_config, encoding="utf-8")
    (run_dir / "code.txt").write_text(
        _git("rev-parse", "HEAD") + _git("diff", "HEAD"), encoding="utf-8"
    )
    versions = sorted(
        {f"{d.metadata['Name']}=={d.version}" for d in importlib.metadata.distributions()},
        key=str.lower,
    )
    (run_dir / "packages.txt").write_text("\n".join(versions) + "\n", encoding="utf-8")


def git_commit() -> str:
    """Return the commit of the checkout that this code runs from; empty outside of one."""
    return _git("rev-parse", "HEAD").strip()


def git_is_dirty() -> bool:
    """Return whether files of that checkout were changed after its commit."""
    return bool(_git("status", "--porcelain", "--untracked-files=no"))


def _git(*arguments: str) -> str:
    """Return git's answer about the checkout that this code runs from; empty outside of one."""
    try:
        result = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=False,
        )
    except FileNotFoundError:  # no git on this machine
        return ""
    return result.stdout if result.returncode == 0 else ""
