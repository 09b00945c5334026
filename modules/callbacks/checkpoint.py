"""Checkpoints: complete or absent, found again by themselves, refused by other stages."""

import os
from pathlib import Path
from typing import Any

import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from data_pipeline.contract import CONVENTIONS_VERSION, UserError, check_conventions

FINISHED_NAME = "finished"
"""File in a run's folder that holds the step at which the run ended as planned."""


class RunCheckpoint(ModelCheckpoint):
    """Keeps the newest checkpoint of a run in `run_dir/checkpoints/step-{step:08d}.ckpt`.

    Lightning writes a checkpoint beside its final name and renames it, so a kill leaves the old
    one. Each says which stage and conventions it is of.

    Args:
        run_dir: folder of the run.
        every_n_steps: optimizer steps between two checkpoints; one more is written at the end.
    """

    def __init__(self, run_dir: str | os.PathLike[str], every_n_steps: int) -> None:
        super().__init__(
            dirpath=Path(run_dir) / "checkpoints",
            filename="step-{step:08d}",
            auto_insert_metric_name=False,
            every_n_train_steps=every_n_steps,
            monitor="step",
            mode="max",
            save_top_k=1,
            enable_version_counter=False,
        )
        self.run_dir = Path(run_dir)

    def on_save_checkpoint(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        checkpoint: dict[str, Any],
    ) -> None:
        super().on_save_checkpoint(trainer, pl_module, checkpoint)
        checkpoint["relief"] = {"stage": pl_module.stage, "conventions": CONVENTIONS_VERSION}

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.interrupted:
            return
        last = self.run_dir / "checkpoints" / f"step-{trainer.global_step:08d}.ckpt"
        # Every process takes part in saving, and file systems show a new file late to some.
        if not trainer.strategy.broadcast(last.exists()):
            trainer.save_checkpoint(last)
        if trainer.is_global_zero:
            (self.run_dir / FINISHED_NAME).write_text(f"{trainer.global_step}\n")


def find_checkpoint(ckpt: str, run_dir: Path, stage: str) -> Path | None:
    """Return the checkpoint to go on from, or None to start afresh.

    Args:
        ckpt: `auto` for the newest one of the run, or a path.
        run_dir: folder of the run.
        stage: the system's stage; a checkpoint of another one is refused.

    Raises:
        UserError: the path does not exist, is no checkpoint of ours, is of another stage, or is a
            folder, as DeepSpeed writes.
    """
    if ckpt == "auto":
        path = _newest(run_dir)
        if path is None:
            return None
    else:
        path = Path(ckpt)
        if not path.exists():
            raise UserError(f"ckpt={ckpt}: there is no such file; give a .ckpt file, or auto")
    if path.is_dir():
        raise UserError(
            f"{path} is a folder, as DeepSpeed writes checkpoints: going on from those is not "
            "supported yet. Start a new run with another paths.run_dir; trainer=ddp or trainer=gpu "
            "write checkpoints that can be gone on from"
        )
    try:
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        found_stage = content["relief"]["stage"]
    except Exception as error:
        raise UserError(
            f"{path} is no checkpoint of a Relief run ({type(error).__name__}): name another, or "
            "delete it to start afresh"
        ) from error
    if found_stage != stage:
        raise UserError(
            f"{path} is a checkpoint of the stage {found_stage}, this trains {stage}: give "
            "another ckpt, or another paths.run_dir"
        )
    check_conventions(content["relief"]["conventions"], str(path))
    return path


def where_it_goes_on(run_dir: Path) -> str:
    """Return what becomes of an interrupted run when the same command is given again."""
    path = _newest(run_dir)
    if path is None:
        return (
            "there is no checkpoint yet (callbacks.checkpoint.every_n_steps), so the same command "
            "starts anew"
        )
    return f"the same command goes on from step {int(path.stem.partition('-')[2])}"


def _newest(run_dir: Path) -> Path | None:
    return max((run_dir / "checkpoints").glob("step-*.ckpt"), default=None)


def finished_step(run_dir: Path) -> int:
    """Return the step at which the run ended as planned; -1 if it has not."""
    path = run_dir / FINISHED_NAME
    return int(path.read_text()) if path.is_file() else -1
