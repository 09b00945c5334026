"""What the learned part adds to the classical estimate: a table and a plot of rebuild.py's rows.

    python benchmarks/residual.py mild=mild.jsonl TAEF2=decoded.jsonl --plot residual.png

Every LABEL=FILE holds lines that `benchmarks/rebuild.py --methods classical-96 refined-96` wrote of
one kind of images. Assets that both methods were scored on are compared one by one: the table gives
the median without and with what was learned, the mean of the assets' differences and the number of
assets that it serves better and worse. A method that failed on an asset has the worst figures.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path

import matplotlib as mpl
import numpy as np
from rebuild import COLUMNS, LESS_IS_BETTER, WORST

mpl.use("Agg")
from matplotlib import pyplot as plt

WITHOUT, WITH = "classical-96", "refined-96"
SHOWN = (
    "f_score_0.005", "f_score_0.01", "f_score_0.02", "chamfer_l1", "normal_consistency",
    "outer_recall_0.01", "unseen_recall_0.01", "cpu_s",
)  # fmt: skip
PLOTTED = ("f_score_0.005", "f_score_0.01", "normal_consistency", "unseen_recall_0.01")
EQUAL = 5e-4  # smaller differences are none

Pairs = Mapping[str, tuple[np.ndarray, np.ndarray]]


def main() -> None:
    """Read, print, draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", help="LABEL=FILE")
    parser.add_argument("--plot", type=Path)
    arguments = parser.parse_args()
    found = {}
    for each in arguments.files:
        label, _, file = each.partition("=")
        found[label] = read_pairs(Path(file))
    print(table(found))
    if arguments.plot:
        draw(found, arguments.plot)


def read_pairs(file: Path) -> Pairs:
    """Return every figure without and with what was learned, of the assets that have both."""
    rows: dict[tuple[str, str, str], dict[str, float]] = {}
    for line in file.read_text("utf-8").splitlines():
        row = json.loads(line)
        figures = row["figures"]
        rows[row["set"], row["uid"], row["method"]] = WORST if "failed" in figures else figures
    assets = sorted({key[:2] for key in rows})
    both = [(rows.get((*a, WITHOUT)), rows.get((*a, WITH))) for a in assets]
    pairs = {}
    for key in SHOWN:
        values = [(one[key], other[key]) for one, other in both
                  if one and other and key in one and key in other]  # fmt: skip
        pairs[key] = tuple(np.array(values, dtype=float).reshape(-1, 2).T)
    return pairs


def table(found: Mapping[str, Pairs]) -> str:
    """Return a Markdown table: a row for each kind of images."""
    names = [COLUMNS[key] for key in SHOWN]
    lines = [f"| images | assets | {' | '.join(names)} |", "|---|---|" + "---|" * len(names)]
    for label, pairs in found.items():
        cells = []
        for key in SHOWN:
            without, learned = pairs[key]
            digits = 4 if key == "chamfer_l1" else 1 if key == "cpu_s" else 3
            if not len(without):
                cells.append("")
                continue
            medians = f"{np.median(without):.{digits}f}, {np.median(learned):.{digits}f}"
            if key != "cpu_s":
                gain = (learned - without) * (-1.0 if key in LESS_IS_BETTER else 1.0)
                margin = EQUAL / 10.0 if key == "chamfer_l1" else EQUAL
                better, worse = int((gain > margin).sum()), int((gain < -margin).sum())
                change = (learned - without).mean()
                medians += f" ({change:+.{digits}f}; {better}:{worse})"
            cells.append(medians)
        lines.append(f"| {label} | {len(pairs['f_score_0.01'][0])} | {' | '.join(cells)} |")
    return "\n".join(lines)


def draw(found: Mapping[str, Pairs], file: Path) -> None:
    """Write a plot of medians without and with what was learned; dashes are worse deciles."""
    figure, axes = plt.subplots(1, len(PLOTTED), figsize=(13, 3.2))
    for axis, key in zip(axes, PLOTTED, strict=True):
        for k, name in enumerate(("classical estimate", "with what was learned")):
            values = [pairs[key][k] for pairs in found.values()]
            place = np.arange(len(values)) + 0.4 * (k - 0.5)
            axis.bar(place, [np.median(each) for each in values], 0.36, label=name)
            worse = [np.percentile(each, 10) for each in values]
            axis.scatter(place, worse, marker="_", color="black", s=40, zorder=3)
        axis.set_xticks(range(len(found)), list(found), rotation=30, ha="right", fontsize=8)
        axis.set_title(COLUMNS[key], fontsize=9)
        axis.set_ylim(0.0, 1.0)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="lower center", ncol=2, frameon=False)
    figure.tight_layout(rect=(0.0, 0.07, 1.0, 1.0))
    figure.savefig(file, dpi=80)


if __name__ == "__main__":
    main()
