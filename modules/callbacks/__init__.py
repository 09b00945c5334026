"""What surrounds a training run: checkpoints, EMA, export, the record of the run."""
