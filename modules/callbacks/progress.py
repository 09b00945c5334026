"""What the terminal shows of training: steps, as the data stream has no epochs, and no noise."""

import logging
import warnings

from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's bar, without its count of epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "train".ljust(len(self.validation_description))


def quieten() -> None:
    """Leave out Lightning's advertisements and what it warns of that is meant."""
    for noise in (".*does not have many workers.*", ".*LeafSpec.*"):
        warnings.filterwarnings("ignore", message=noise)
    logging.getLogger("lightning.pytorch.utilities.rank_zero").addFilter(
        lambda record: "Tip:" not in record.getMessage()
    )
