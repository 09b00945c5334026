"""Seconds and memory of the denoiser: training and sampling, the framework, attention, precision.

    python benchmarks/denoiser.py --out denoiser.json                  # small, on the CPU
    python benchmarks/denoiser.py --device cuda --out denoiser.json    # full size, random weights

Cases run in the order of the table. One that runs out of memory, fails, or no longer fits in
`--minutes` says so, and the next one runs. The file is written anew after every case.
"""

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from denoiser_framework import framework_overhead
from denoiser_models import (
    BACKBONES,
    BATCHES,
    Model,
    Step,
    attention_kernels,
    naive_attention,
    plan_model,
)
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from modules.reporting.cost import measured

DATASHEET_TFLOPS = 989.0
"""Dense bf16 matrix products of an H100 SXM and of an H200, as NVIDIA publishes them."""
Figures = dict[str, Any]


class Bench:
    """Runs cases within a budget of time and keeps what they give.

    Args:
        options: the command line.
    """

    def __init__(self, options: argparse.Namespace) -> None:
        self.device, self.size, self.out = options.device, options.size, options.out
        self.on_gpu = self.device.startswith("cuda")
        self.dtype = torch.bfloat16 if self.on_gpu else torch.float32
        self.steps, self.compile = options.steps, not options.no_compile
        self.sampling = not options.no_sampling
        self.end = time.monotonic() + 60.0 * options.minutes
        self.peak_tflops: float | None = None
        self.rows: list[Figures] = []

    def attempt(self, case: str, needs_s: float, run: Callable[[], Figures]) -> bool:
        """Run a case unless it needs more time than is left; return whether it gave figures."""
        left_s = self.end - time.monotonic()
        row: Figures = {"case": case}
        start = time.monotonic()
        if needs_s > left_s:
            row["failed"] = f"left out: takes about {needs_s:.0f} s, {left_s:.0f} s were left"
        else:
            try:
                row |= run()
            except Exception as error:  # whatever happens in one case, the others are wanted
                row["failed"] = f"{type(error).__name__}: {str(error).strip()[:200]}"
        row["case_s"] = time.monotonic() - start
        self.rows.append(row)
        print(_line(row), flush=True)
        gc.collect()
        if self.on_gpu:
            torch.cuda.empty_cache()
        device = torch.cuda.get_device_name() if self.on_gpu else "CPU"
        content = {"device": device, "size": self.size, "torch": torch.__version__}
        self.out.write_text(json.dumps(content | {"cases": self.rows}, indent=1) + "\n")
        return "failed" not in row

    def time(self, step: Step, warmup: int, steps: int) -> Figures:
        """Return the median seconds of a step, and the peak of memory over all of them."""
        for _ in range(warmup):
            step()
        costs: dict[str, float] = {}
        seconds = []
        with measured(costs, "all"):
            for _ in range(steps):
                start = time.perf_counter()
                step()
                if self.on_gpu:
                    torch.cuda.synchronize()
                seconds.append(time.perf_counter() - start)
        kind = "gpu_memory_mb_all" if self.on_gpu else "memory_mb_all"
        return {
            "seconds": statistics.median(seconds),
            "slowest_s": max(seconds),
            "memory_gib": costs.get(kind, float("nan")) / 1024,
        }

    def utilisation(self, figures: Figures, flops: float) -> Figures:
        """Add TFLOP/s, and shares of the measured and the published peak."""
        rate = flops / 1e12 / figures["seconds"]
        figures |= {"tflop": flops / 1e12, "tflop_per_s": rate}
        if self.peak_tflops is not None:
            figures["mfu_measured_peak"] = rate / self.peak_tflops
        if self.on_gpu:
            figures["mfu_datasheet"] = rate / DATASHEET_TFLOPS
        return figures

    def matmul(self) -> Figures:
        """Measure the peak: a product of square matrices of random numbers."""
        side = 8192 if self.size == "full" else 256
        a, b = (torch.randn(side, side, device=self.device, dtype=self.dtype) for _ in range(2))
        figures = self.time(lambda: a @ b, warmup=5, steps=20)
        self.peak_tflops = 2 * side**3 / 1e12 / figures["seconds"]
        return self.utilisation(figures, 2 * side**3)

    def attention(self) -> Figures:
        """Compare one joint attention with its definition, at the size of the first model."""
        batch = BATCHES[self.size]
        tokens = 18 * batch.grid**2 + batch.text_tokens
        heads, width = (24, 128) if self.size == "full" else (2, 32)
        shape = (1, heads, tokens, width)
        qkv = [torch.randn(shape, device=self.device, dtype=self.dtype) for _ in range(3)]
        figures = self.time(lambda: scaled_dot_product_attention(*qkv), warmup=2, steps=5)
        naive = self.time(lambda: naive_attention(*qkv), warmup=1, steps=3)
        gap = (scaled_dot_product_attention(*qkv) - naive_attention(*qkv)).abs().max().item()
        self.utilisation(figures, 4 * tokens**2 * heads * width)
        return figures | {
            "naive_s": naive["seconds"], "naive_gib": naive["memory_gib"], "largest_gap": gap,
        }  # fmt: skip

    def precision(self) -> Figures:
        """Train a small model with frozen weights in bfloat16, and in float32, on equal draws."""
        curves = []
        for dtype in (torch.float32, torch.bfloat16):
            model = Model("flux2_klein", "small", self.device, dtype)
            for group in model.optimizer.param_groups:
                group["lr"] = 1e-2
            curves.append([model.train_step().item() for _ in range(30)])
        gaps = [abs(a - b) / a for a, b in zip(*curves, strict=True)]
        return {
            "float32_loss": curves[0], "bfloat16_loss": curves[1], "largest_gap": max(gaps),
            "last_losses": [curve[-1] for curve in curves],
        }  # fmt: skip

    def model(self, name: str) -> None:
        """Run all cases of one model."""
        full = self.size == "full"
        plans = {
            checkpointed: plan_model(name, self.size, self.dtype, checkpointed=checkpointed)
            for checkpointed in (True, False)
        }
        kept: list[Model] = []
        num_samplings = 28 if full else 4

        def train(checkpointed: bool = True) -> Figures:
            figures = self.time(kept[0].train_step, warmup=2, steps=self.steps)
            plan = plans[checkpointed]
            if self.on_gpu:  # elsewhere memory is that of the whole process
                planned = plan.memory(0, 1).total / 2**30
                ratio = figures["memory_gib"] / planned
                figures |= {"plan_gib": planned, "memory_over_plan": ratio}
            return self.utilisation(figures, plan.step.total)

        def build_and_train() -> Figures:
            kept.append(Model(name, self.size, self.device, self.dtype))
            return train()

        def compile_and_train() -> Figures:
            kept[0].compile_blocks("inductor" if self.on_gpu else "aot_eager")
            return train()

        def keep_and_train() -> Figures:
            kept[0].denoiser.backbone.transformer.disable_gradient_checkpointing()
            return train(checkpointed=False)

        def flash() -> Figures:
            step = kept[0].train_step
            with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                ran = attention_kernels(step, self.device)
            if not any("flash" in kernel.lower() for kernel in ran):
                raise RuntimeError(f"no kernel of the step is called flash: {ran}")
            return {"kernels": ran, "kernels_by_default": attention_kernels(step, self.device)}

        def sample() -> Figures:
            return self.time(lambda: kept[0].sample(num_samplings, 3.5), warmup=0, steps=1)

        if self.attempt(f"{name}: training step, eager", 60 if full else 1, build_and_train):
            if self.sampling:
                self.attempt(f"{name}: flash attention alone is allowed", 15 if full else 1, flash)
                sampling = f"{name}: {num_samplings} sampling steps with guidance"
                self.attempt(sampling, 45 if full else 1, sample)
            if self.compile:
                compiled = f"{name}: training step, compiled blocks"
                self.attempt(compiled, 70 if full else 1, compile_and_train)
                kept_all = f"{name}: the same, activations kept"
                self.attempt(kept_all, 25 if full else 1, keep_and_train)


def _line(row: Figures) -> str:
    if "failed" in row:
        return f"{row['case']:<48} {row['failed']}"
    words = {
        "seconds": "{:.4g} s", "memory_gib": "{:.2f} GiB", "plan_gib": "plan {:.2f} GiB",
        "tflop_per_s": "{:.0f} TFLOP/s", "mfu_measured_peak": "{:.1%} of measured peak",
        "mfu_datasheet": "{:.1%} of datasheet", "naive_s": "naive {:.4g} s",
        "naive_gib": "naive {:.2f} GiB", "largest_gap": "largest gap {:.2g}",
        "overhead": "overhead {:+.1%}", "bare_s": "bare {:.4g} s", "last_losses": "last losses {}",
        "kernels": "{}", "kernels_by_default": "by default {}",
    }  # fmt: skip
    cells = [text.format(row[key]) for key, text in words.items() if key in row]
    return f"{row['case']:<48} {' · '.join(cells)}"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--size", choices=sorted(BATCHES), help="default: full on CUDA")
    parser.add_argument("--minutes", type=float, default=4.0, help="budget of all cases")
    parser.add_argument("--steps", type=int, default=5, help="timed training steps of each model")
    parser.add_argument("--models", nargs="*", default=list(BACKBONES), choices=list(BACKBONES))
    parser.add_argument("--no-compile", action="store_true", help="leave out compiled blocks")
    parser.add_argument("--no-sampling", action="store_true", help="leave out sampling and kernels")
    parser.add_argument("--out", type=Path, default=Path("denoiser.json"), help="JSON to write")
    options = parser.parse_args(arguments)
    options.size = options.size or ("full" if options.device.startswith("cuda") else "small")
    bench = Bench(options)
    bench.attempt("peak: product of square matrices", 5 if bench.on_gpu else 0, bench.matmul)
    bench.attempt("joint attention", 10 if bench.on_gpu else 0, bench.attention)
    for name in options.models:
        bench.model(name)
    bench.attempt("loss curve, bfloat16 against float32", 10, bench.precision)
    overhead = "training step under Lightning"
    bench.attempt(overhead, 20, lambda: framework_overhead(bench.device, bench.steps))


if __name__ == "__main__":
    main()
