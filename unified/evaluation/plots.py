"""Where to look: scores per sequence, their histogram, and the worst cases as overlay sheets."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified.evaluation.report import Card, Picture, Report, Row, Scores, plural
from unified.files import atomic_path
from unified.inference.image_io import IMAGE_SUFFIXES, read_image
from unified.metrics.davis import region_similarity

NUM_WORST = 12
MAX_BARS = 60
MAX_NAME, LINE = 40, 120  # letters
SHEET_COLUMNS = 4
WIDTH = 8.0  # inches; a sheet is twice as wide
COLOURS = ((0, 158, 115), (86, 180, 233), (213, 94, 0))  # told apart by the colour-blind too


def write_plots(report: Report, folder: Path, images: Path | None = None) -> list[Path]:
    """Writes bars.png, histogram.png and worst.png; returns those that could be made.

    Args:
        report: what was scored.
        folder: where the files go.
        images: folder with ``<sequence>/<frame>.jpg`` or ``<sample>.jpg``; without it masks are
            shown on grey.
    """
    rows = _finite(report.scores.rows)
    if not rows:
        return []
    written = [_bars(report, _finite(report.scores.per_group()), folder / "bars.png")]
    written.append(_histogram(report, rows, folder / "histogram.png"))
    worst = worst_pictures(report.scores, rows)
    if worst:
        written.append(_sheet(report, worst, folder / "worst.png", images))
    return written


def _score(row: Row) -> float:
    return next(iter(row.values.values()))


def worst_pictures(scores: Scores, rows: Sequence[Row]) -> list[tuple[Row, Picture]]:
    """The worst rows that have one; what several sentences refer to is shown once."""
    shown: dict[Hashable, tuple[Row, Picture]] = {}
    for row in sorted(rows, key=_score):
        if len(shown) == NUM_WORST:
            break
        if row.picture is None:
            continue
        picture = row.picture()
        target: Hashable = (row.sequence, row.item)
        if scores.sample == "expression" and picture.truth.any():
            target = (picture.truth.shape, picture.truth.tobytes())
        shown.setdefault(target, (row, picture))
    return list(shown.values())


def _finite(rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if math.isfinite(_score(row))]


def _bars(report: Report, groups: Sequence[Row], path: Path) -> Path:
    shown = sorted(groups, key=_score)[:MAX_BARS]
    dropped = len(groups) - len(shown)
    figure, axes = _figure(height=0.2 * len(shown) + 1.0)
    bars = axes.barh([row.sequence for row in shown], [_score(row) for row in shown])
    axes.bar_label(bars, fmt="%.1f", padding=2, fontsize=7)
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.set_xlim(0, 106)  # room for the numbers
    axes.set_xticks(range(0, 101, 20))
    axes.set_title(bars_title(report.scores, dropped), fontsize=9)
    return _save(figure, report, path)


def bars_title(scores: Scores, dropped: int) -> str:
    """What is drawn per what, with the number of bars that are not shown."""
    kind = scores.group or scores.row or scores.sample
    rest = f", {dropped} better ones not shown" if dropped else ""
    return f"{_name(scores.per_group())} per {kind}, worst first{rest}"


def _histogram(report: Report, rows: Sequence[Row], path: Path) -> Path:
    from matplotlib.ticker import MaxNLocator

    figure, axes = _figure(height=3.0)
    key = "J" if "J" in rows[0].values else _name(rows)
    values = [row.values[key] for row in rows]
    axes.hist(values, bins=np.linspace(0, 100, 21), edgecolor="white")
    axes.set_xlim(0, 100)
    axes.yaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel(f"{key} in percent", fontsize=8)
    kind = report.scores.row or report.scores.sample
    axes.set_ylabel(f"number of {plural(kind)}", fontsize=8)
    return _save(figure, report, path)


def _figure(height: float) -> tuple[Any, Any]:
    figure = _empty_figure(WIDTH, height)
    axes = figure.add_subplot()
    axes.tick_params(labelsize=7)
    return figure, axes


def _empty_figure(width: float, height: float) -> Any:
    from matplotlib.figure import Figure  # no pyplot: nothing global, no display

    return Figure(figsize=(width, height), layout="constrained")


def _save(figure: Any, report: Report, path: Path, note: str = "") -> Path:
    figure.supxlabel("\n".join(filter(None, (note, footer(report.card)))), size=7)
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120)
    return path


def footer(card: Card) -> str:
    """What was scored, in lines that fit under a figure."""
    parts = (card.protocol, card.benchmark, f"split {card.split}", card.date)
    return textwrap.fill(", ".join(parts), LINE)


def _name(rows: Sequence[Row]) -> str:
    return next(iter(rows[0].values))


def _sheet(
    report: Report, worst: Sequence[tuple[Row, Picture]], path: Path, images: Path | None
) -> Path:
    """One panel per row: what both masks have, what was missed and what is false, on the frame."""
    columns = min(SHEET_COLUMNS, len(worst))
    num_rows = math.ceil(len(worst) / columns)
    panel_width = 2 * WIDTH / SHEET_COLUMNS
    tallest = max(p.truth.shape[0] / p.truth.shape[1] for _, p in worst)
    text = 0.8 if any(row.sentence for row, _ in worst) else 0.5
    size = panel_width * columns, (panel_width * min(tallest, 1.5) + text) * num_rows + 0.6
    figure = _empty_figure(max(size[0], WIDTH), size[1])
    grid = figure.subplots(num_rows, columns, squeeze=False).flat
    for axes in grid:
        axes.set_axis_off()
    backgrounds = [background(picture, images) for _, picture in worst]
    for axes, (row, picture), image in zip(figure.axes, worst, backgrounds, strict=False):
        axes.imshow(_panel(picture, image))
        axes.set_title(caption(report, row, picture), fontsize=8)
    labels = zip(COLOURS, ("hit", "missed", "false"), strict=True)
    for (red, green, blue), label in labels:
        figure.axes[0].plot([], [], "s", color=(red / 255, green / 255, blue / 255), label=label)
    figure.legend(loc="outside upper center", ncols=3, fontsize=9, frameon=False)
    return _save(figure, report, path, not_found(backgrounds, images))


def not_found(backgrounds: Sequence[NDArray | None], images: Path | None) -> str:
    """Says for how many cases the image folder, if there is one, has no picture of their size."""
    absent = sum(image is None for image in backgrounds)
    if images is None or not absent:
        return ""
    return f"{images} has no picture of their size for {absent} of {len(backgrounds)}"


def _panel(picture: Picture, image: NDArray[np.uint8] | None) -> NDArray[np.uint8]:
    """The frame without its colours, so that none is taken for one of ours, and the masks."""
    grey = np.full((*picture.truth.shape, 1), 90.0)
    if image is not None:
        grey = image.mean(axis=2, keepdims=True)
    panel = np.repeat(40 + 0.6 * grey, 3, axis=2)
    truth, prediction = picture.truth > 0, picture.prediction > 0
    regions = (truth & prediction, truth & ~prediction, prediction & ~truth)
    for region, colour in zip(regions, COLOURS, strict=True):
        panel[region] = 0.3 * panel[region] + 0.7 * np.array(colour)
    return panel.astype(np.uint8)


def caption(report: Report, row: Row, picture: Picture) -> str:
    """Sentence, frame and object, its score, and J of the frame where the score is of a clip."""
    named = not row.item or picture.name.endswith(f"/{row.item}")
    item = "" if named else f", {report.scores.sample} {row.item}"
    key = next(iter(row.values))
    score = f"{key} {_score(row):.1f}"
    if key == "J&F":
        here = region_similarity(picture.truth > 0, picture.prediction > 0)
        score += f", in this frame J {100 * here:.1f}"
    sentence = textwrap.shorten(row.sentence, 2 * MAX_NAME, placeholder=" ...")
    lines = [*textwrap.wrap(sentence, MAX_NAME), f"{_shorten(picture.name)}{item}", score]
    return "\n".join(lines)


def _shorten(name: str) -> str:
    return name if len(name) <= MAX_NAME else f"...{name[3 - MAX_NAME :]}"


def background(picture: Picture, images: Path | None) -> NDArray[np.uint8] | None:
    """The image of a picture, if it is there and of its size."""
    for suffix in sorted(IMAGE_SUFFIXES) if images is not None else ():
        assert images is not None
        path = images / f"{picture.name}{suffix}"
        if path.is_file():
            image = read_image(path)
            return image if image.shape[:2] == picture.truth.shape else None
    return None
