"""Export of a trained stage: safetensors and json, in a folder that appears whole or not at all."""

import json
import os
import shutil
from pathlib import Path
from typing import Any, Protocol, cast, runtime_checkable

import lightning

from data_pipeline.contract import CONVENTIONS_VERSION
from modules.callbacks.ema import averaged_weights
from modules.networks.pipeline_folder import STAGES

PIPELINE_RECORD = "relief.json"


@runtime_checkable
class Exportable(Protocol):
    """What a system needs to be exported."""

    stage: str

    def export(self, directory: Path) -> None:
        """Write safetensors and json into an existing, empty folder."""
        ...


class ExportStage(lightning.Callback):
    """Writes `pipeline_dir/<stage>` when training ends as planned; other stages stay as they are.

    Args:
        pipeline_dir: folder that the stages of one model share.
        every_n_steps: optimizer steps after which it is written as well; None: at the end only.
    """

    def __init__(
        self, pipeline_dir: str | os.PathLike[str], every_n_steps: int | None = None
    ) -> None:
        self.pipeline_dir, self.every_n_steps = Path(pipeline_dir), every_n_steps
        self.newest_step = 0

    def setup(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule, stage: str
    ) -> None:
        """Make the folder before training, so that a path that cannot be one costs no training."""
        if trainer.is_global_zero:
            self.pipeline_dir.mkdir(parents=True, exist_ok=True)

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        self.newest_step = trainer.global_step  # what begins or is resumed is not exported anew

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        step = trainer.global_step  # stays the same for several batches that are accumulated
        if self.every_n_steps and step % self.every_n_steps == 0 and step != self.newest_step:
            self.newest_step = step
            self._export(trainer, pl_module)

    def on_fit_end(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if not trainer.interrupted:
            self._export(trainer, pl_module)

    def _export(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:
        if trainer.is_global_zero:
            with averaged_weights(trainer, pl_module):
                export_stage(cast(Exportable, pl_module), self.pipeline_dir)


def export_stage(system: Exportable, pipeline_dir: Path) -> Path:
    """Export one system into a pipeline folder and return the stage's folder."""
    pipeline_dir.mkdir(parents=True, exist_ok=True)
    target = pipeline_dir / system.stage
    building, replaced = (
        pipeline_dir / f".{system.stage}.{word}" for word in ("building", "replaced")
    )
    for leftover in (building, replaced):
        shutil.rmtree(leftover, ignore_errors=True)
    building.mkdir()
    system.export(building)
    if target.exists():
        os.rename(target, replaced)
    os.rename(building, target)
    shutil.rmtree(replaced, ignore_errors=True)
    stages = [stage for stage in STAGES if (pipeline_dir / stage).is_dir()]
    record = json.dumps({"conventions": CONVENTIONS_VERSION, "stages": stages}, indent=1) + "\n"
    temporary = pipeline_dir / f".{PIPELINE_RECORD}.building"
    temporary.write_text(record)
    os.replace(temporary, pipeline_dir / PIPELINE_RECORD)
    return target
