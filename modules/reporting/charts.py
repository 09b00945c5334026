"""Line charts as inline SVG, coloured by the page's style sheet; and the logs that they show."""

import csv
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from markupsafe import Markup, escape

WIDTH, HEIGHT = 340, 190
LEFT, RIGHT, TOP, BOTTOM = 44, 10, 12, 26


@dataclass(frozen=True)
class Curve:
    """Values of one logged figure over steps, steps ascending."""

    step: tuple[float, ...]
    value: tuple[float, ...]


def read_csv_logs(run_dir: Path) -> dict[str, Curve]:
    """Return every figure that Lightning's CSV logger wrote below `run_dir/csv`.

    A run that was resumed has a folder per start (`version_0`, `version_1`, ...): they are joined
    by step, and where two hold the same step the later one counts. Rows torn by a kill are left
    out.
    """
    points: dict[str, dict[float, float]] = {}
    for path in sorted(
        (run_dir / "csv").rglob("metrics.csv"), key=lambda path: path.stat().st_mtime
    ):
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                step = _number(row.get("step"))
                for key, text in row.items():
                    value = _number(text)
                    if key not in ("step", "epoch") and step is not None and value is not None:
                        points.setdefault(key, {})[step] = value
    return {
        key: Curve(tuple(sorted(found)), tuple(found[step] for step in sorted(found)))
        for key, found in points.items()
    }


def smooth(values: Sequence[float], window: int) -> list[float]:
    """Return the running median of `values` over `window` neighbours, shorter at both ends."""
    half = max(window // 2, 0)
    return [float(np.median(values[max(0, i - half) : i + half + 1])) for i in range(len(values))]


def line_chart(curves: Mapping[str, Curve], title: str) -> Markup:
    """Return a chart of positive values over steps on a logarithmic axis, as SVG.

    Each curve shows its measurements faintly and their running median on top, and is labelled with
    its name and its last smoothed value. Colours are the CSS variables `--line-0`, `--line-1`, ...

    Args:
        curves: by label; values that are not positive are left out.
        title: read out by screen readers.
    """
    drawn = {label: _positive(curve) for label, curve in curves.items()}
    drawn = {label: curve for label, curve in drawn.items() if curve.step}
    if not drawn:
        return Markup("")
    last_step = max(curve.step[-1] for curve in drawn.values())
    every = [value for curve in drawn.values() for value in curve.value]
    low, high = math.log10(min(every)), math.log10(max(every))
    margin = 0.05 * max(high - low, 0.2)
    low, high = low - margin, high + margin

    def x(step: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * step / max(last_step, 1.0)

    def y(value: float) -> float:
        return TOP + (HEIGHT - TOP - BOTTOM) * (high - math.log10(value)) / (high - low)

    box = f'viewBox="0 0 {WIDTH} {HEIGHT}"'
    parts = [f'<svg class="chart" {box} role="img" aria-label="{escape(title)}">']
    for tick in _log_ticks(low, high):
        parts.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" '
                     f'y2="{y(tick):.1f}"/>')  # fmt: skip
        parts.append(f'<text class="tick" x="{LEFT - 6}" y="{y(tick) + 3:.1f}" '
                     f'text-anchor="end">{tick:g}</text>')  # fmt: skip
    for tick in _step_ticks(last_step):
        anchor = "start" if tick == 0 else "middle" if tick < 0.97 * last_step else "end"
        parts.append(f'<text class="tick" x="{x(tick):.1f}" y="{HEIGHT - 8}" '
                     f'text-anchor="{anchor}">{_count(tick)}</text>')  # fmt: skip
    for i, curve in enumerate(drawn.values()):
        middle = smooth(curve.value, max(1, len(curve.step) // 12))
        for kind, values in (("raw", curve.value), ("smooth", middle)):
            line = " ".join(
                f"{x(s):.1f},{y(v):.1f}" for s, v in zip(curve.step, values, strict=True)
            )
            parts.append(f'<polyline class="{kind}" points="{line}" stroke="var(--line-{i % 4})"/>')
    return Markup("".join([*parts, "</svg>"]))


def last_value(curve: Curve) -> float:
    """Return the last smoothed value of a curve."""
    return smooth(curve.value, max(1, len(curve.step) // 12))[-1]


def _positive(curve: Curve) -> Curve:
    kept = [(s, v) for s, v in zip(curve.step, curve.value, strict=True) if v > 0]
    return Curve(tuple(s for s, _ in kept), tuple(v for _, v in kept))


def _number(text: object) -> float | None:
    """Return a finite number, or None for what is empty, torn or not a number."""
    try:
        value = float(text)  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
    return value if math.isfinite(value) else None


def _log_ticks(low: float, high: float) -> list[float]:
    """Return 2 to 7 round values between 10^low and 10^high."""
    decades = range(math.floor(low), math.ceil(high) + 1)
    for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8), np.arange(1.0, 10.0, 0.25)):
        ticks = [float(f"{m * 10.0**d:.6g}") for d in decades for m in steps]
        ticks = [tick for tick in ticks if low <= math.log10(tick) <= high]
        if len(ticks) >= 3:
            return ticks[:: math.ceil(len(ticks) / 7)]
    return [float(f"{10.0 ** ((low + high) / 2):.3g}")]


def _step_ticks(last: float) -> list[float]:
    """Return 0 and a few round steps up to the last one."""
    raw = max(last, 1.0) / 4.0
    power = 10.0 ** math.floor(math.log10(raw))
    stride = next(m * power for m in (1, 2, 2.5, 5, 10) if m * power >= raw)
    return [i * stride for i in range(int(last / stride) + 1)]


def _count(step: float) -> str:
    return f"{step / 1000:g}k" if step >= 1000 else f"{step:g}"
