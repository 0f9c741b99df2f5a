"""Where to look: scores per sequence, their histogram, and the worst cases as overlay sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.files import IMAGE_SUFFIXES, read_image
from unified.evaluation.report import Picture, Report, Row, per_sequence, plural
from unified.files import atomic_path

NUM_WORST = 12
MAX_BARS = 60
SHEET_COLUMNS = 4
COLOURS = ((0, 158, 115), (86, 180, 233), (213, 94, 0))  # told apart by the colour-blind too


def write_plots(report: Report, folder: Path, images: Path | None = None) -> list[Path]:
    """Writes bars.png, histogram.png and worst.png; returns those that could be made.

    Args:
        report: what was scored.
        folder: where the files go.
        images: folder with ``<sequence>/<frame>.jpg``; without it masks are shown on grey.
    """
    rows = [row for row in report.scores.rows if math.isfinite(_score(row))]
    if not rows:
        return []
    written = [_bars(report, rows, folder / "bars.png")]
    written.append(_histogram(report, rows, folder / "histogram.png"))
    worst = [row for row in sorted(rows, key=_score) if row.picture is not None][:NUM_WORST]
    if worst:
        written.append(_sheet(report, worst, folder / "worst.png", images))
    return written


def _score(row: Row) -> float:
    return next(iter(row.values.values()))


def _bars(report: Report, rows: Sequence[Row], path: Path) -> Path:
    means = sorted(per_sequence(rows), key=_score)
    dropped = len(means) - MAX_BARS
    means = means[:MAX_BARS]
    figure, axes = _figure(height=max(2.0, 0.22 * len(means) + 1.2))
    names = [row.sequence for row in means]
    axes.barh(range(len(names)), [_score(row) for row in means], color="tab:blue")
    axes.set_yticks(range(len(names)), names, fontsize=7)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    rest = f", {dropped} better ones not shown" if dropped > 0 else ""
    axes.set_title(f"{_name(rows)} per sequence, worst first{rest}", fontsize=9)
    return _save(figure, report, path)


def _histogram(report: Report, rows: Sequence[Row], path: Path) -> Path:
    figure, axes = _figure(height=3.0)
    key = "J" if "J" in rows[0].values else _name(rows)
    values = [row.values[key] for row in rows]
    axes.hist(values, bins=np.linspace(0, 100, 21), color="tab:blue", edgecolor="white")
    axes.set_xlabel(f"{key} in percent")
    axes.set_ylabel(plural(report.scores.row or report.scores.sample))
    return _save(figure, report, path)


def _figure(height: float) -> tuple[Any, Any]:
    figure = _empty_figure(height)
    return figure, figure.add_subplot()


def _empty_figure(height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    return Figure(figsize=(7.0, height), layout="constrained")


def _save(figure: Any, report: Report, path: Path) -> Path:
    figure.supxlabel(f"{report.card.protocol}, {report.card.benchmark}, {report.card.date}", size=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def _name(rows: Sequence[Row]) -> str:
    return next(iter(rows[0].values))


def _sheet(report: Report, rows: Sequence[Row], path: Path, images: Path | None) -> Path:
    """One panel per row: what both masks have, what was missed and what is false, on the frame."""
    num_rows = math.ceil(len(rows) / SHEET_COLUMNS)
    figure = _empty_figure(height=1.9 * num_rows + 0.8)
    grid = figure.subplots(num_rows, SHEET_COLUMNS, squeeze=False).flat
    for axes in grid:
        axes.set_axis_off()
    for axes, row in zip(figure.axes, rows, strict=False):
        assert row.picture is not None, "rows of the sheet have pictures"
        picture = row.picture()
        panel = _background(picture, images).astype(np.float32)
        truth, prediction = picture.truth > 0, picture.prediction > 0
        for region, colour in zip(
            (truth & prediction, truth & ~prediction, prediction & ~truth), COLOURS, strict=True
        ):
            panel[region] = 0.4 * panel[region] + 0.6 * np.array(colour)
        axes.imshow(panel.astype(np.uint8))
        axes.set_title(f"{picture.name} {row.item}\n{_name(rows)} {_score(row):.1f}", fontsize=7)
    labels = zip(COLOURS, ("hit", "missed", "false"), strict=True)
    for (red, green, blue), label in labels:
        figure.axes[0].plot([], [], "s", color=(red / 255, green / 255, blue / 255), label=label)
    figure.legend(loc="outside upper center", ncols=3, fontsize=8)
    return _save(figure, report, path)


def _background(picture: Picture, images: Path | None) -> NDArray[np.uint8]:
    """The image of a picture, if it is there and of its size, else grey."""
    grey = np.full((*picture.truth.shape, 3), 90, np.uint8)
    for suffix in IMAGE_SUFFIXES if images is not None else ():
        assert images is not None
        path = images / f"{picture.name}{suffix}"
        if path.is_file():
            image = read_image(path)
            return image if image.shape == grey.shape else grey
    return grey
