"""Does adapting a pretrained 2D model to 2.5D latents pay, and by which parameters?

    python benchmarks/adaptation.py DATA.npz.xz OUT                       # a GPU, 7 minutes
    python benchmarks/adaptation.py DATA.npz.xz OUT --size small --workers 0 --seconds 3600
    python benchmarks/adaptation_report.py OUT --plot docs/media/adaptation.svg

A model of FLUX.2's class is pretrained on single rgb views with captions: a stand-in for a 2D
foundation model, with velocities as it predicts them. Then, on a few assets, arms are trained from
it: LoRA in three ways of equally many parameters, all weights, all weights from scratch. All see
the same assets, noise and timesteps in the same order, the same batch, warm-up, clipping and
averaging of weights, the stand-in's frozen text encoder, and three learning rates tried for a
while on one seed. Learned embeddings of modality and view are trained in every arm.

Rounds: pretraining; seconds of a step, by turns in one process; learning rates; arms, at the best
rate, two seeds; the rule of the text's timestep, under mixed and under independent timesteps. The
arms of a round run side by side for the same time, so curves are compared at steps that all
reached. Every evaluation is a line of OUT/rows.jsonl as soon as it is made.
"""

import argparse
import gc
import json
import math
import multiprocessing
import tempfile
import time
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch
from adaptation_arms import ARMS, LEARNING_RATES, MIXES, SIZES, Data
from adaptation_training import ArmTraining, adapt, pretrain, time_arms

from modules.networks.denoiser import TEXT_TIMESTEPS

Job = dict[str, Any]
SHARES = {"pretraining": 0.25, "timing": 0.04, "rates": 0.15, "arms": 0.36, "rules": 0.2}
"""Of the budget."""

_worker: dict[str, Any] = {}
"""What every job of a worker process needs: data and settings."""


def report(out: Path, row: dict[str, Any]) -> None:
    """Append a line to the results."""
    with (out / "rows.jsonl").open("a") as file:
        file.write(json.dumps(row) + "\n")


def read_rows(out: Path) -> list[dict[str, Any]]:
    """Return the lines of the results; the last may have been cut off."""
    rows = []
    for line in (out / "rows.jsonl").read_text("utf-8").splitlines():
        try:
            rows.append(json.loads(line))
        except ValueError:
            print(f"left out a damaged line: {line[:60]}")
    return rows


def mean_loss(row: dict[str, Any]) -> float:
    """Return the mean over modalities at equal timesteps; infinite where training diverged."""
    values = list(row["loss"]["joint"].values())
    mean = sum(values) / len(values)
    return mean if math.isfinite(mean) else math.inf


def best_rate(rows: Sequence[dict[str, Any]], arm: str) -> float:
    """Return the learning rate of the lowest loss at the last step that all rates reached."""
    curves: dict[float, dict[int, float]] = {rate: {} for rate in LEARNING_RATES[arm]}
    for row in rows:
        if row["round"] == "rates" and row.get("arm") == arm and row.get("step"):
            curves[row["lr"]][row["step"]] = mean_loss(row)
    tried = {rate: curve for rate, curve in curves.items() if curve}
    if len(tried) < len(curves):  # too little time: the middle one
        return LEARNING_RATES[arm][1]
    last = max(set.intersection(*(set(curve) for curve in tried.values())))
    return min(tried, key=lambda rate: tried[rate][last])


def rate_jobs() -> list[Job]:
    """Return the jobs that choose learning rates."""
    job = {"round": "rates", "seed": 0, "rule": "largest", "mix": "mixed"}
    return [{**job, "arm": arm, "lr": lr} for arm in ARMS for lr in LEARNING_RATES[arm]]


def arm_jobs(rates: dict[str, float], seeds: int) -> list[Job]:
    """Return the jobs that compare the arms, on other draws than the rates were chosen by."""
    job = {"round": "arms", "rule": "largest", "mix": "mixed"}
    seeded = [{**job, "seed": seed} for seed in range(1, seeds + 1)]
    return [{**each, "arm": arm, "lr": rates[arm]} for each in seeded for arm in ARMS]


def rule_jobs(rates: dict[str, float], seeds: int) -> list[Job]:
    """Return the jobs that compare the rules of the text's timestep."""
    arm = next(iter(ARMS))
    job = {"round": "rules", "arm": arm, "lr": rates[arm]}
    return [
        {**job, "seed": seed, "mix": mix, "rule": rule}
        for seed in range(1, seeds + 1)
        for mix in MIXES
        for rule in TEXT_TIMESTEPS
    ]


def set_up(options: argparse.Namespace, folder: Path) -> None:
    """Prepare this process for jobs."""
    torch.set_num_threads(options.threads)
    torch.set_float32_matmul_precision("high")
    _worker.update(
        data=Data.load(options.data, options.device), folder=folder, options=options,
    )  # fmt: skip


def be_ready() -> None:
    """Do nothing: a worker that answers has loaded all."""
    time.sleep(0.5)


def start(job: Job) -> ArmTraining:
    """Return the training of a job."""
    options = _worker["options"]
    return ArmTraining(job, _worker["data"], options.size, _worker["folder"], options.graphs)


def free_memory() -> None:
    """Give back what dead models hold: graphs and their modules refer to each other."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def work(job: Job, until: float) -> None:
    """Run a job in a worker process; a failure is a line of the results too."""
    options = _worker["options"]
    try:
        adapt(start(job), until, options.max_steps, lambda row: report(options.out, row))
    except Exception as error:  # the other jobs go on
        report(options.out, {**job, "failed": f"{type(error).__name__}: {error}"[:500]})
    finally:
        free_memory()


def make_pool(options: argparse.Namespace, folder: Path) -> Executor:
    """Return what runs jobs: processes, or one thread of this process."""
    if not options.workers:
        return ThreadPoolExecutor(1)
    context = multiprocessing.get_context("spawn")
    return ProcessPoolExecutor(options.workers, context, set_up, (options, folder))


def run_round(pool: Executor, jobs: list[Job], workers: int, seconds: float) -> None:
    """Run jobs side by side, so many at a time, each for the same time."""
    groups = [jobs[i : i + workers] for i in range(0, len(jobs), workers)]
    for group in groups:
        until = time.time() + seconds / len(groups)
        for future in [pool.submit(work, job, until) for job in group]:
            future.result()


def run(options: argparse.Namespace) -> None:
    """Run all rounds."""
    options.out.mkdir(parents=True, exist_ok=True)
    began = time.time()
    ends, elapsed = {}, 0.0
    for name, share in SHARES.items():
        elapsed += share * options.seconds
        ends[name] = began + elapsed

    def record(row: dict[str, Any]) -> None:
        report(options.out, row)
        print(f"{time.time() - began:6.0f} s  {json.dumps(row)[:150]}", flush=True)

    def left(name: str) -> float:
        return max(ends[name] - time.time(), 1.0)

    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with make_pool(options, folder) as pool:
            ready = [pool.submit(be_ready) for _ in range(options.workers)]  # while we pretrain
            set_up(options, folder)
            data: Data = _worker["data"]
            on_gpu = options.device.startswith("cuda")
            record({
                "round": "start", "torch": torch.__version__, "size": options.size,
                "device": torch.cuda.get_device_name() if on_gpu else "CPU",
                "workers": options.workers, "seconds": options.seconds,
                "validation": data.num_validation, "adaptation": data.num_adaptation,
            })  # fmt: skip
            pretrain(
                data, options.size, folder, left("pretraining"), options.max_steps * 4,
                options.graphs, record,
            )  # fmt: skip
            for each in ready:
                each.result()
            timed = {job["arm"]: start(job) for job in arm_jobs(dict.fromkeys(ARMS, 0.0), seeds=1)}
            timing = time_arms(timed, left("timing"), min(options.max_steps, 50))
            record({"round": "timing", "seconds_per_step": timing})
            del timed
            free_memory()
            workers = max(options.workers, 1)
            run_round(pool, rate_jobs(), workers, left("rates"))
            rates = {arm: best_rate(read_rows(options.out), arm) for arm in ARMS}
            record({"round": "chosen", "rates": rates})
            run_round(pool, arm_jobs(rates, options.seeds), workers, left("arms"))
            run_round(pool, rule_jobs(rates, options.seeds), workers, left("rules"))
    record({"round": "end"})


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path, help="file that adaptation_data.py wrote")
    parser.add_argument("out", type=Path, help="folder that gets rows.jsonl; begin with none")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--size", choices=sorted(SIZES), default="tiny")
    parser.add_argument("--seconds", type=float, default=420.0, help="budget of all rounds")
    parser.add_argument("--max-steps", type=int, default=10**6, help="bound of every training")
    parser.add_argument("--seeds", type=int, default=2, help="of the arms and rules")
    parser.add_argument("--workers", type=int, default=15, help="processes; 0: this one")
    parser.add_argument("--threads", type=int, default=1, help="of the CPU, for each training")
    parser.add_argument("--no-graphs", dest="graphs", action="store_false", help="no CUDA graphs")
    options = parser.parse_args(arguments)
    if (options.out / "rows.jsonl").exists():
        parser.error(f"{options.out} holds the results of another run: name a new folder")
    run(options)


if __name__ == "__main__":
    main()
