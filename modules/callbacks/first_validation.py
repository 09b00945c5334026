"""Validation figures of the start, so that those of the end can be compared with them."""

import lightning


class FirstValidation(lightning.Callback):
    """Validates once after the first batch of a new run, and then as the trainer was told to.

    After the first batch and not before it, because a first batch may set the starting weights.
    """

    def __init__(self) -> None:
        self._interval: int | float | None = None

    def on_train_start(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if trainer.global_step == 0:
            self._interval, trainer.val_check_batch = trainer.val_check_batch, 1

    def on_validation_end(
        self, trainer: lightning.Trainer, pl_module: lightning.LightningModule
    ) -> None:
        if self._interval is not None:
            self._interval, trainer.val_check_batch = None, self._interval
