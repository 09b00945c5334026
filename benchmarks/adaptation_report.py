"""Tables and a plot of what benchmarks/adaptation.py measured.

    python benchmarks/adaptation_report.py OUT --plot docs/media/adaptation.png

Prints Markdown. Losses are means over the seeds and, behind ±, half the distance between the best
and the worst of them. Seconds are steps times the seconds of a step that were measured by turns.
"""

import argparse
from collections import defaultdict
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from adaptation import mean_loss, read_rows
from adaptation_arms import ARMS, LEARNING_RATES, MIXES

from data_pipeline.contract import MODALITIES
from modules.networks.denoiser import TEXT_TIMESTEPS

mpl.use("Agg")
from matplotlib import pyplot as plt

Row = dict[str, Any]
Curve = dict[int, list[Row]]
"""Evaluations by step, one of each seed."""
USES = ("joint", "texture", "geometry", "independent")


def curves(rows: Iterable[Row], *keys: str) -> dict[tuple[Any, ...], Curve]:
    """Return the evaluations of rows by their values of some keys, steps ascending."""
    found: dict[tuple[Any, ...], Curve] = defaultdict(lambda: defaultdict(list))
    for row in rows:
        if "loss" in row:
            found[tuple(row[key] for key in keys)][row["step"]].append(row)
    return {key: dict(sorted(curve.items())) for key, curve in found.items()}


def common_steps(found: Iterable[Curve]) -> list[int]:
    """Return the steps that so many seeds of every curve reached as did of the least, ascending."""
    found = list(found)
    seeds = min((max(map(len, curve.values())) for curve in found), default=0)
    full = [{step for step, each in curve.items() if len(each) >= seeds} for curve in found]
    return sorted(set.intersection(*full)) if full else []


def use_loss(row: Row, use: str) -> float:
    """Return the mean over the noisy modalities of one way to use the model."""
    return float(np.mean(list(row["loss"][use].values())))


def spread(values: Sequence[float], digits: int = 4) -> str:
    """Return mean ± half the range."""
    half = (max(values) - min(values)) / 2
    return f"{np.mean(values):.{digits}f} ± {half:.{digits}f}"


def table(head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    """Return a table in Markdown."""
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def at_seconds(curve: Curve, per_step: float, seconds: float) -> float:
    """Return the loss after so many seconds, between the two nearest evaluations."""
    steps = np.array(list(curve))
    means = [float(np.mean([mean_loss(row) for row in each])) for each in curve.values()]
    return float(np.interp(seconds / per_step, steps, means))


def arms_table(rows: list[Row], per_step: dict[str, float]) -> str:
    """Return the comparison of the arms at steps, and at seconds, that all of them reached."""
    found = {key[0]: curve for key, curve in curves(rows, "arm").items()}
    steps = common_steps(found.values())
    last, early = steps[-1], max((step for step in steps if step <= 100), default=steps[0])
    seconds = min(last * per_step[arm] for arm in found)
    lines = []
    for arm in (arm for arm in ARMS if arm in found):
        curve = found[arm]
        lowest = min(steps, key=lambda step: np.mean([mean_loss(row) for row in curve[step]]))
        first = curve[last][0]
        lines.append([
            arm, f"{first['trained']:,}", f"{first['lr']:g}", f"{1000 * per_step[arm]:.1f}",
            *(spread([mean_loss(row) for row in curve[step]]) for step in (early, last)),
            f"{at_seconds(curve, per_step[arm], seconds):.4f}",
            *(f"{np.mean([row['loss']['joint'][name] for row in curve[last]]):.4f}"
              for name in MODALITIES),
            f"{spread([mean_loss(row) for row in curve[lowest]])} at {lowest}",
        ])  # fmt: skip
    head = [
        "arm", "trained", "learning rate", "ms a step", f"loss, step {early}", f"step {last}",
        f"{seconds:.0f} s", *(f"{name}, step {last}" for name in MODALITIES), "lowest",
    ]  # fmt: skip
    return table(head, lines)


def rates_table(rows: list[Row]) -> str:
    """Return the losses of the learning rates at the last step that all of an arm's reached."""
    found, lines = curves(rows, "arm", "lr"), []
    for arm in ARMS:
        of_arm = {lr: found[arm, lr] for lr in LEARNING_RATES[arm] if (arm, lr) in found}
        if of_arm:
            last = common_steps(of_arm.values())[-1]
            losses = [f"{lr:g}: {mean_loss(c[last][0]):.4f}" for lr, c in of_arm.items()]
            lines.append([arm, str(last), ", ".join(losses)])
    return table(["arm", "step", "loss by learning rate"], lines)


def rules_table(rows: list[Row]) -> str:
    """Return the losses by rule of the text's timestep, for every use of the model."""
    found = curves(rows, "mix", "rule")
    last = common_steps(found.values())[-1]
    lines = [
        [mix, rule, *(spread([use_loss(row, use) for row in found[mix, rule][last]])
                      for use in USES)]
        for mix in MIXES for rule in TEXT_TIMESTEPS if (mix, rule) in found
    ]  # fmt: skip
    return table(["trained on", "text's timestep", *(f"{use}, step {last}" for use in USES)], lines)


def plot(rows: list[Row], per_step: dict[str, float], path: Path) -> None:
    """Draw loss against steps and against seconds; bands reach from the best to the worst seed."""
    found = {key[0]: curve for key, curve in curves(rows, "arm").items()}
    figure, axes = plt.subplots(1, 2, figsize=(10, 4), sharey=True)
    for arm in (arm for arm in ARMS if arm in found):
        steps = [step for step in common_steps([found[arm]]) if step > 0]
        seeds = min(len(found[arm][step]) for step in steps)
        losses = np.array([[mean_loss(row) for row in found[arm][step][:seeds]] for step in steps])
        for axis, scale in zip(axes, (1.0, per_step[arm]), strict=True):
            x = scale * np.array(steps)
            [line] = axis.plot(x, losses.mean(axis=1), label=arm, linewidth=1.5)
            axis.fill_between(
                x, losses.min(axis=1), losses.max(axis=1), alpha=0.2, color=line.get_color()
            )
    for axis, label in zip(axes, ("steps", "seconds of training"), strict=True):
        axis.set(xscale="log", xlabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("velocity loss on held-back assets")
    axes[0].legend(frameon=False)
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("out", type=Path, help="folder that adaptation.py wrote")
    parser.add_argument("--plot", type=Path, help="picture to write")
    options = parser.parse_args(arguments)
    by_round: dict[str, list[Row]] = defaultdict(list)
    for row in read_rows(options.out):
        by_round[row["round"]].append(row)
        if "failed" in row:
            print(f"failed: {row}\n")
    for row in by_round["start"] + by_round["pretraining"][-1:]:
        print(", ".join(f"{key} {value}" for key, value in row.items() if key != "round") + "\n")
    per_step = by_round["timing"][0]["seconds_per_step"] if by_round["timing"] else {}
    sections = {
        "rates": rates_table,
        "arms": lambda rows: arms_table(rows, per_step),
        "rules": rules_table,
    }
    for name, make in sections.items():
        if by_round[name]:
            print(make(by_round[name]) + "\n")
    if options.plot and by_round["arms"]:
        plot(by_round["arms"], per_step, options.plot)


if __name__ == "__main__":
    main()
