"""What a scoring run hands back: rows, numbers, what was wrong with the files, and the card."""

from __future__ import annotations

import csv
import datetime
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

import unified
from unified.data.formats.files import read_json
from unified.errors import InputError
from unified.files import atomic_path, file_sha256

Item = TypeVar("Item")
Result = TypeVar("Result")

# kinds of problem that --allow-missing turns from an error into a counted warning
MISSING_SEQUENCE, EXTRA_SEQUENCE = "missing sequence", "extra sequence"
MISSING_MASK, UNUSABLE_MASK, STRAY_ID = "missing mask", "unusable mask", "stray id"
EXTRA_MASK, MISSING_RESULT = "extra mask", "missing result"
MISSING_SET = "missing expression set"
MAX_EXAMPLES = 5


@dataclass(frozen=True)
class Split:
    """Names to score, or None for all of the ground truth, and where the list came from."""

    names: tuple[str, ...] | None = None
    note: str = "all"


@dataclass(frozen=True)
class Request:
    """What to score and how, as the command line gives it.

    Attributes:
        truth: folder of masks, or annotation file.
        prediction: folder of masks, or results file.
        split: which sequences, expressions' videos or classes count.
        meta: annotation file that the protocol needs beside the masks.
        unseen: list of unseen videos or classes, or training meta file with the seen classes.
        num_classes: for semantic segmentation.
        ignore: label of the ground truth that does not count there, if not 255.
        class_agnostic: merge all categories, as for a model without classes.
        allow_missing: count problems instead of stopping at the first.
        num_workers: sequences scored at the same time.
        progress: show a progress bar.
    """

    truth: Path
    prediction: Path
    split: Split = Split()
    meta: Path | None = None
    unseen: Path | None = None
    num_classes: int | None = None
    ignore: int | None = None
    class_agnostic: bool = False
    allow_missing: bool = False
    num_workers: int = 1
    progress: bool = False

    def run(self, work: Callable[[Item], Result], items: Sequence[Item], unit: str) -> list[Result]:
        """Results in order, several at a time."""
        workers, progress = self.num_workers, self.progress
        return run_parallel(work, items, num_workers=workers, progress=progress, unit=unit)


@dataclass
class Problems:
    """Counts of what was wrong, with the first few messages.

    ``found`` raises at once unless problems are allowed.
    """

    allowed: bool
    counts: dict[str, int] = field(default_factory=dict)
    examples: list[str] = field(default_factory=list)

    def found(self, kind: str, message: str, number: int = 1) -> None:
        """Counts problems of a kind.

        Raises:
            InputError: problems are not allowed.
        """
        if not self.allowed:
            raise InputError(message)
        self.counts[kind] = self.counts.get(kind, 0) + number
        if len(self.examples) < MAX_EXAMPLES:
            self.examples.append(message)

    def merge(self, other: Problems) -> None:
        """Adds what another sequence found."""
        for kind, number in other.counts.items():
            self.counts[kind] = self.counts.get(kind, 0) + number
        room = max(MAX_EXAMPLES - len(self.examples), 0)
        self.examples.extend(other.examples[:room])


@dataclass(frozen=True)
class Picture:
    """A frame to look at: its name under the image folder and both (H, W) uint8 masks."""

    name: str
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]


@dataclass(frozen=True)
class Row:
    """Scores in percent of one object, expression, image or category.

    Attributes:
        sequence: video, class or image it belongs to.
        item: object or expression inside it; "" if there is only one.
        values: column -> number, the most telling first.
        picture: makes the frame that shows best what went wrong, where there are masks.
        sentence: that was asked for, where it is known.
    """

    sequence: str
    item: str
    values: Mapping[str, float]
    picture: Callable[[], Picture] | None = None
    sentence: str = ""


@dataclass(frozen=True)
class Scores:
    """What a protocol returns: headline numbers in percent, rows and problems."""

    numbers: Mapping[str, float]
    rows: Sequence[Row]
    problems: Problems
    sample: str  # what is counted on the card: "object", "expression", "image"
    notes: tuple[str, ...] = ()
    row: str = ""  # what a row is, if not a sample: "class", "category"
    num_samples: int | None = None  # if a row is not a sample
    group: str = ""  # what several rows belong to: "sequence", "class"
    groups: Sequence[Row] | None = None  # their scores, where these are no means over rows

    def per_group(self) -> Sequence[Row]:
        """One row per sequence or class, in order of first appearance."""
        return per_sequence(self.rows) if self.groups is None else self.groups


@dataclass(frozen=True)
class Origin:
    """What made the predictions, as far as it is known.

    Attributes:
        sha256: of the weights.
        inference: how the model was asked, see ``unified.inference.settings.asked_as``.
        class_agnostic: whether the model gives everything one class.
    """

    sha256: str | None = None
    inference: Mapping[str, Any] | None = None
    class_agnostic: bool = False


@dataclass(frozen=True)
class Card:
    """The protocol card that goes with every number."""

    benchmark: str
    split: str
    protocol: str
    rule: str
    evaluator_version: str
    num_samples: int
    sample: str
    checkpoint_sha256: str | None
    inference: Mapping[str, Any] | None
    date: str
    notes: tuple[str, ...]
    warnings: Mapping[str, int]

    def line(self) -> str:
        """The card on one line."""
        weights = f"sha256 {self.checkpoint_sha256[:12]}" if self.checkpoint_sha256 else "not given"
        warnings = ", ".join(counted(number, kind) for kind, number in self.warnings.items())
        asked = _describe(self.inference) if self.inference else "not known"
        parts = [
            self.benchmark,
            f"split {self.split}",
            f"{self.protocol} ({self.rule})",
            f"unified {self.evaluator_version}",
            counted(self.num_samples, self.sample),
            f"weights {weights}",
            f"inference {asked}",
            self.date,
            *self.notes,
            f"warnings: {warnings or 'none'}",
        ]
        return "card: " + " | ".join(parts)


def _describe(fields: Mapping[str, Any]) -> str:
    """How a model was asked, on one line."""
    margin, interval = fields["support_margin"], fields.get("memory_interval", 1)
    remembers, chooser = fields.get("use_memory", True), fields.get("chooser")
    parts = [
        f"input {fields['short_side']} to {fields['max_size']}",
        fields["precision"],
        "mirror image" if fields.get("mirror") else "",
        "" if margin is None else f"margin {margin:g}",
        f"threshold {fields['score_threshold']:g}",
        f"memory every {interval} frames" if remembers and interval > 1 else "",
        "" if remembers else "no memory",
        f"chooser {chooser}" if chooser else "",
    ]
    return ", ".join(part for part in parts if part)


@dataclass(frozen=True)
class Report:
    """Numbers with their card."""

    scores: Scores
    card: Card

    def table(self) -> str:
        """The headline numbers as two aligned lines."""
        columns = [
            (name, f"{value:.2f}" if math.isfinite(value) else "-")
            for name, value in self.scores.numbers.items()
        ]
        widths = [max(map(len, column)) for column in columns]
        lines = zip(*columns, strict=True)
        return "\n".join(
            "  ".join(cell.rjust(width) for cell, width in zip(line, widths, strict=True))
            for line in lines
        )

    def write(self, folder: Path) -> None:
        """Writes summary.json, per_sequence.csv and per_item.csv."""
        summary = {
            "card": asdict(self.card),
            "numbers": {k: v if math.isfinite(v) else None for k, v in self.scores.numbers.items()},
            "examples_of_problems": self.scores.problems.examples,
        }
        with atomic_path(folder / "summary.json") as path:
            path.write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
        write_csv(folder / "per_item.csv", self.scores.rows, self.card.protocol)
        write_csv(folder / "per_sequence.csv", self.scores.per_group(), self.card.protocol)


def find_origin(prediction: Path, weights: Path | None) -> Origin:
    """What made predictions, from the weights that are named and the results.json of the tools.

    Raises:
        InputError: the weights do not exist, or are not those of results.json.
    """
    if weights is not None and not weights.is_file():
        raise InputError(f"weights {weights} do not exist: give the file that made the masks")
    sha256 = None if weights is None else file_sha256(weights)
    for folder in (prediction, prediction.parent):
        path = folder / "results.json"
        run = read_json(path, "the results of a run") if path.is_file() else None
        if isinstance(run, dict) and "inference" in run:
            written = run["weights"]["sha256"]
            if sha256 not in (None, written):
                raise InputError(
                    f"{path} says that weights with sha256 {str(written)[:12]} made the masks, "
                    f"those of {weights} are {str(sha256)[:12]}: leave out --weights"
                )
            return Origin(written, run["inference"])
    return Origin(sha256)


def make_card(
    scores: Scores, *, benchmark: str, protocol: str, rule: str, split: Split, origin: Origin
) -> Card:
    """Fills the card of a run that ends now."""
    return Card(
        benchmark=benchmark,
        split=split.note,
        protocol=protocol,
        rule=rule,
        evaluator_version=unified.__version__,
        num_samples=len(scores.rows) if scores.num_samples is None else scores.num_samples,
        sample=scores.sample,
        checkpoint_sha256=origin.sha256,
        inference=origin.inference,
        date=datetime.datetime.now(datetime.timezone.utc).date().isoformat(),
        notes=scores.notes,
        warnings=dict(scores.problems.counts),
    )


def per_sequence(rows: Iterable[Row]) -> list[Row]:
    """Means over the items of each sequence, in order of first appearance."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.sequence, []).append(row)
    return [
        Row(
            name,
            "",
            {key: sum(row.values[key] for row in group) / len(group) for key in group[0].values},
        )
        for name, group in groups.items()
    ]


def write_csv(path: Path, rows: Sequence[Row], protocol: str) -> None:
    """One line per row; numbers with all their digits, and the protocol that they follow."""
    names = list(rows[0].values) if rows else []
    escape = "backslashreplace"  # names on disk may be no text in any encoding
    with (
        atomic_path(path) as temporary,
        temporary.open("w", newline="", encoding="utf-8", errors=escape) as file,
    ):
        writer = csv.writer(file)
        writer.writerow(["sequence", "item", *names, "protocol"])
        for row in rows:
            numbers = (repr(row.values[name]) for name in names)
            writer.writerow([row.sequence, row.item, *numbers, protocol])


def run_parallel(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    num_workers: int = 1,
    progress: bool = False,
    unit: str = "it",
) -> list[Result]:
    """Results in order, computed by threads: decoding and counting release the interpreter."""
    from tqdm import tqdm

    with ThreadPoolExecutor(num_workers) as pool:
        results = pool.map(work, items)
        return list(tqdm(results, total=len(items), unit=unit, disable=not progress))


def plural(word: str) -> str:
    """The word for several: objects, classes, categories."""
    if word.endswith("y"):
        return f"{word[:-1]}ies"
    return f"{word}es" if word.endswith("s") else f"{word}s"


def counted(number: int, word: str) -> str:
    """The number and the word in its form: 1 object, 2 objects."""
    return f"{number} {word if number == 1 else plural(word)}"


def percent(numbers: Mapping[str, Any]) -> dict[str, float]:
    """Fractions as percent."""
    return {key: 100.0 * float(value) for key, value in numbers.items()}
