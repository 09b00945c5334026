"""One of two processes that measure uneven shares of the same features."""

import os
from pathlib import Path

import torch
from torch import Tensor, distributed

from modules.metrics.sets import ClipScore, Cmmd, FrechetDistance, KernelDistance, RPrecision

NUM, WIDTH = 24, 4


def features() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    real = torch.randn(NUM, WIDTH, generator=generator)
    return real, torch.randn(NUM, WIDTH, generator=generator) * 1.5 + 0.5


def measure(real: Tensor, generated: Tensor, own: Tensor) -> list[float]:
    """Return every figure; `own` is the rows of the shard, as each row's text is a row of real."""
    texts = features()[0]
    sets = [FrechetDistance(WIDTH), KernelDistance(WIDTH, subset_size=NUM), Cmmd(WIDTH)]
    for metric in sets:
        for part in real.split(5):  # the number of updates differs between the shards, too
            metric.update(part, real=True)
        for part in generated.split(5):
            metric.update(part, real=False)
    score, precision = ClipScore(), RPrecision(texts)
    if len(own):
        score.update(generated, texts[own])
        precision.update(generated, own)
    frechet, kernel, cmmd = (metric.compute() for metric in sets)
    return [float(x) for x in (frechet, kernel[0], cmmd, score.compute(), precision.compute())]


def main(rank: int, splits: list[list[int]], folder: str) -> None:
    """Measure this process's share of every split of the rows."""
    torch.set_num_threads(1)
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=2
    )
    real, generated = features()
    for number, split in enumerate(splits):
        rows = torch.arange(NUM).split(split)[rank]
        figures = measure(real[rows], generated[rows], rows)
        (Path(folder) / f"{number}-{rank}.txt").write_text(" ".join(map(repr, figures)))
    distributed.destroy_process_group()
