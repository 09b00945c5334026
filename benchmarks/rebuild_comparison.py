"""Compare methods of rebuild.py asset by asset: a table and a plot of its rows.

    python benchmarks/rebuild_comparison.py mild=mild.jsonl TAEF2=decoded.jsonl --plot residual.png
    python benchmarks/rebuild_comparison.py mild=mild.jsonl TAEF2=decoded.jsonl \
        --methods classical-96 poisson-7 tsdf-128 --plot noise.png

Every LABEL=FILE holds lines that `benchmarks/rebuild.py` wrote of one kind of images. The first of
the methods is compared with every other, over the assets that both were scored on: medians of the
first and of the other, the mean of the assets' differences, and the number of assets that the other
serves better and worse. Without --methods that is what a refiner adds to the classical estimate;
each model of a method is one of its own. The plot is over the assets that all methods were scored
on. A method that failed on an asset has the worst figures.
"""

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray
from rebuild import COLUMNS, LESS_IS_BETTER, WORST

mpl.use("Agg")
from matplotlib import pyplot as plt

METHODS = ("classical-96", "refined-96")
SHOWN = (
    "f_score_0.005", "f_score_0.01", "f_score_0.02", "chamfer_l1", "normal_consistency",
    "outer_recall_0.01", "unseen_recall_0.01", "cpu_s",
)  # fmt: skip
PLOTTED = ("f_score_0.005", "f_score_0.01", "normal_consistency", "unseen_recall_0.01")
EQUAL = 5e-4  # smaller differences are none
TITLES = {
    "classical": "classical estimate", "refined": "with what was learned", "fitted": "with the fit",
    "poisson": "screened Poisson", "tsdf": "TSDF fusion",
}  # fmt: skip

Rows = Mapping[str, Mapping[tuple[str, str], Mapping[str, float]]]
"""Figures by method (and its model), then by set and uid."""


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="LABEL=FILE")
    parser.add_argument("--methods", nargs="+", default=METHODS, help="the first with every other")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = {}
    for each in arguments.files:
        label, _, file = each.rpartition("=")
        found[label] = read_rows(Path(file), arguments.methods)
    print(table(found))
    if arguments.plot:
        draw(found, arguments.plot)


def read_rows(file: Path, methods: Sequence[str]) -> Rows:
    """Return the rows of the methods, in their order; of one with several models, each one's."""
    rows: dict[str, dict[tuple[str, str], Mapping[str, float]]] = {}
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        figures = WORST if "failed" in row["figures"] else row["figures"]
        rows.setdefault(row["method"], {})[row["set"], row["uid"]] = figures
    names = [name for method in methods for name in sorted(rows) if name.split(" ")[0] == method]
    if len(names) < 2:
        raise SystemExit(f"{file} holds rows of {', '.join(rows)}: two of {methods} are needed")
    return {name: rows[name] for name in names}


def columns(rows: Rows, key: str) -> list[NDArray[np.float64]]:
    """Return a figure's values for every method, over the assets that all of them have it of."""
    shared = set.intersection(*[{a for a, f in own.items() if key in f} for own in rows.values()])
    return [np.array([own[a][key] for a in sorted(shared)]) for own in rows.values()]


def table(found: Mapping[str, Rows]) -> str:
    """Return a Markdown table: a row for each kind of images and each method after the first."""
    names = [COLUMNS[key] for key in SHOWN]
    lines = [f"| images | assets | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for label, rows in found.items():
        first, *others = rows
        for other in others:
            pair = {name: rows[name] for name in (first, other)}
            cells = [_cell(key, *columns(pair, key)) for key in SHOWN]
            title = label if len(others) == 1 else f"{label}, `{other}`"
            assets = len(columns(pair, "f_score_0.01")[0])
            lines.append(f"| {title} | {assets} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(key: str, first: NDArray[np.float64], other: NDArray[np.float64]) -> str:
    """Return the medians, and in parentheses what the other changes."""
    if not len(first):
        return ""
    digits = 4 if key == "chamfer_l1" else 1 if key == "cpu_s" else 3
    medians = f"{np.median(first):.{digits}f}, {np.median(other):.{digits}f}"
    if key == "cpu_s":
        return medians
    change = other - first
    gain = -change if key in LESS_IS_BETTER else change
    margin = EQUAL / 10.0 if key == "chamfer_l1" else EQUAL
    better, worse = (gain > margin).sum(), (gain < -margin).sum()
    return f"{medians} ({change.mean():+.{digits}f}; {better}:{worse})"


def draw(found: Mapping[str, Rows], file: Path) -> None:
    """Write a plot of every method's medians; dashes are worse deciles."""
    methods = list(dict.fromkeys(name for rows in found.values() for name in rows))
    figure, axes = plt.subplots(1, len(PLOTTED), figsize=(13, 3.2))
    width = 0.8 / len(methods)
    for axis, key in zip(axes, PLOTTED, strict=True):
        values = [dict(zip(rows, columns(rows, key), strict=True)) for rows in found.values()]
        for k, method in enumerate(methods):
            place = np.arange(len(values)) + width * (k - (len(methods) - 1) / 2.0)
            own = [each.get(method, np.full(1, np.nan)) for each in values]  # no bar
            kind, _, size = method.partition("-")
            title = f"{TITLES[kind]} ({size})"
            axis.bar(place, [np.median(each) for each in own], 0.9 * width, label=title)
            worse = [np.percentile(each, 10) for each in own]
            axis.scatter(place, worse, marker="_", color="black", s=160.0 * width, zorder=3)
        axis.set_xticks(range(len(found)), list(found), rotation=45, ha="right", fontsize=8)
        axis.set_title(COLUMNS[key], fontsize=9)
        axis.set_ylim(0.0, 1.0)
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="lower center", ncol=len(methods), frameon=False)
    figure.tight_layout(rect=(0.0, 0.07, 1.0, 1.0))
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
