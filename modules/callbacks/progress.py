"""Progress of training in steps: the data stream has no epochs to count."""

from lightning.pytorch.callbacks import RichProgressBar


class StepProgressBar(RichProgressBar):
    """Lightning's bar, without its count of epochs."""

    def _get_train_description(self, current_epoch: int) -> str:
        return "train".ljust(len(self.validation_description))
