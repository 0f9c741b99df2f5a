"""Where to look: scores per sequence, their histogram, and the worst cases as overlay sheets."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.files import IMAGE_SUFFIXES, read_image
from unified.evaluation.report import Picture, Report, Row, per_sequence
from unified.files import atomic_path

NUM_WORST = 12
MAX_BARS = 60
SHEET_HEIGHT = 240


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
        written.append(_sheet(worst, folder / "worst.png", images))
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
    axes.set_ylabel(f"{report.scores.sample}s")
    return _save(figure, report, path)


def _figure(height: float) -> tuple[Any, Any]:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    figure = Figure(figsize=(7.0, height), layout="constrained")
    return figure, figure.add_subplot()


def _save(figure: Any, report: Report, path: Path) -> Path:
    figure.supxlabel(f"{report.card.protocol}, {report.card.benchmark}, {report.card.date}", size=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def _name(rows: Sequence[Row]) -> str:
    return next(iter(rows[0].values))


def _sheet(rows: Sequence[Row], path: Path, images: Path | None) -> Path:
    """One line per row: ground truth left, prediction right, score in the legend."""
    from PIL import Image

    from unified.masks import draw_overlay  # brings torch, which scoring does without

    lines = []
    for row in rows:
        assert row.picture is not None, "rows of the sheet have pictures"
        picture = row.picture()
        background = _background(picture, images)
        captions = (
            {1: f"truth {picture.name} {row.item}"},
            {1: f"prediction {_name(rows)} {_score(row):.1f}"},
        )
        masks = (picture.truth, picture.prediction)
        halves = [
            draw_overlay(background, mask, caption)
            for mask, caption in zip(masks, captions, strict=True)
        ]
        lines.append(Image.fromarray(np.concatenate(halves, axis=1)))
    scaled = [
        line.resize((max(1, round(line.width * SHEET_HEIGHT / line.height)), SHEET_HEIGHT))
        for line in lines
    ]
    sheet = Image.new("RGB", (max(line.width for line in scaled), SHEET_HEIGHT * len(scaled)))
    for index, line in enumerate(scaled):
        sheet.paste(line, (0, SHEET_HEIGHT * index))
    with atomic_path(path) as temporary:
        sheet.save(temporary)
    return path


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
