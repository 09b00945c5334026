"""What a demo's folder remembers between starts: how it was made, and how long each stage took."""

import json
from pathlib import Path
from typing import Any

from data_pipeline.contract import UserError
from modules.reporting.page import write_text


def claim_run(folder: Path, settings: dict[str, Any]) -> None:
    """Make the run's folder, or make sure that it was made with the same settings.

    Raises:
        UserError: the folder holds a demo of other settings, or cannot be made.
    """
    path = folder / "demo.json"
    if path.is_file():
        found = json.loads(path.read_text(encoding="utf-8"))
        if found != settings:
            raise UserError(
                f"{folder} holds a demo with {_said(found)}, not {_said(settings)}: "
                "give another folder (make demo RUN=runs/other), or remove it"
            )
        return
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _write(path, settings)
    except OSError as error:
        raise UserError(
            f"run_dir={folder} cannot be a folder ({error.strerror}): "
            "give another (make demo RUN=…)"
        ) from error


class StageRecord:
    """Seconds per stage, over all starts until the stage was first done.

    A later start that finds the stage done adds nothing, so a resumed demo reports what the work
    took, not how fast it was skipped. Another command under the same name starts anew.

    Args:
        path: of the JSON file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stages: list[dict[str, Any]] = []
        if path.is_file():
            self.stages = json.loads(path.read_text(encoding="utf-8"))

    def add(self, name: str, title: str, command: str, seconds: float, *, done: bool) -> None:
        """Count one start of a stage."""
        entry = {"name": name, "title": title, "command": command, "seconds": 0.0}
        entry["done"] = False
        known = next((i for i, stage in enumerate(self.stages) if stage["name"] == name), None)
        if known is not None and self.stages[known]["command"] == entry["command"]:
            entry = self.stages[known]
        if not entry["done"]:
            entry["seconds"] += seconds
            entry["done"] = done
        if known is None:
            self.stages.append(entry)
        else:
            self.stages[known] = entry
        _write(self.path, self.stages)


def _said(settings: dict[str, Any]) -> str:
    return ", ".join(f"{key}={value}" for key, value in settings.items())


def _write(path: Path, content: Any) -> None:
    write_text(path, json.dumps(content, indent=1) + "\n")
