"""Train one stage: python train.py experiment=tiny/autoencoder shards=data/shards.

The same command goes on after an interruption. Keys: python train.py --help, and docs/training.md.
"""

import sys
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from data_pipeline.command_line import CONFIG_DIR, USAGE_ERROR, build, run
from data_pipeline.contract import UserError


def main(config: DictConfig) -> int | None:
    """Compose, instantiate, run."""
    if "system" not in config:
        files = sorted((CONFIG_DIR / "experiment").glob("*/*.yaml"))
        names = " | ".join(f"{file.parent.name}/{file.stem}" for file in files)
        print(f"error: choose an experiment: experiment={names}", file=sys.stderr)
        return USAGE_ERROR
    if config.trainer.max_steps < 1:
        raise UserError(f"trainer.max_steps={config.trainer.max_steps} must be at least 1")
    if config.plan:
        from modules.reporting.plan import plan_from_config

        return plan_from_config(config)
    refuse_mixed_deepspeed(config)
    # torch and lightning take seconds to import; a mistyped key is told before that.
    import lightning

    from modules.callbacks.checkpoint import find_checkpoint, finished_step, where_it_goes_on
    from modules.callbacks.progress import StepProgressBar, quieten
    from modules.callbacks.run_record import record_run

    quieten()
    lightning.seed_everything(config.seed, workers=True, verbose=False)
    run_dir = Path(config.paths.run_dir)
    data, system = build(config.data), build(config.system)
    data.setup("fit")  # an unreadable data set ends the command before anything is written
    checkpoint = find_checkpoint(config.ckpt, run_dir, system.stage)
    finished = finished_step(run_dir)
    if checkpoint is not None and finished >= config.trainer.max_steps:
        print(f"{run_dir}: step {finished} is reached already; raise trainer.max_steps to go on")
        return None
    loggers = [build(node) for node in config.logger.values()]
    callbacks = [build(node) for node in config.callbacks.values()]
    if config.trainer.get("enable_progress_bar", True):
        callbacks.append(StepProgressBar())
    # Before anything is written: a device that is not there is refused here.
    trainer = instantiate(config.trainer, callbacks=callbacks, logger=loggers)
    record_run(run_dir, OmegaConf.to_yaml(config, resolve=True))
    settings = {"shards_manifest_sha256": data.manifest_sha256}
    settings["config"] = OmegaConf.to_container(config, resolve=True)
    for logger in loggers:
        logger.log_hyperparams(settings)
    try:
        trainer.fit(system, data, ckpt_path=checkpoint, weights_only=True)
    except SystemExit:  # what Lightning makes of Ctrl-C
        if trainer.interrupted:
            raise KeyboardInterrupt(where_it_goes_on(run_dir)) from None
        raise
    return None


def refuse_mixed_deepspeed(config: DictConfig) -> None:
    """Refuse DeepSpeed where trained weights are float32 beside frozen ones in bfloat16.

    DeepSpeed's engine holds all weights in one dtype.

    Raises:
        UserError: the configuration asks for both.
    """
    deepspeed = str(config.trainer.get("strategy", "")).startswith("deepspeed")
    dtype = OmegaConf.select(config, "denoiser.backbone.dtype")
    if deepspeed and dtype == "bfloat16" and str(config.trainer.precision).startswith("32"):
        raise UserError(
            "trainer=deepspeed cannot train float32 adapters on a bfloat16 backbone "
            f"(trainer.precision={config.trainer.precision}): use trainer=ddp, or trainer=gpu for "
            "one GPU"
        )


if __name__ == "__main__":
    run("train", main)
