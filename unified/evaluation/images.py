"""Scoring folders of image masks: referring, generalised referring, few-shot, semantic."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.files import read_json
from unified.errors import InputError
from unified.evaluation.reading import check_size, read_binary
from unified.evaluation.report import (
    EXTRA_MASK,
    MISSING_MASK,
    UNUSABLE_MASK,
    Picture,
    Problems,
    Request,
    Row,
    Scores,
    counted,
    percent,
)
from unified.files import entries, files_below
from unified.mask_files import read_ids
from unified.metrics import few_shot, generalized, iou, semantic
from unified.metrics.davis import VOID, present_ids
from unified.metrics.iou import ReferringRule

REFUSALS = "no_target.json"
SENTENCES = "expressions.json"
SHOTS = "shot_"
MAX_CLASSES = 256  # that label maps of 8 bits hold


@dataclass(frozen=True)
class MaskPair:
    """One sample: its name without suffix, such as ``class/image``, and both files."""

    name: str
    truth: Path
    prediction: Path


ReadMask = Callable[[Path], NDArray[np.uint8]]


def find_pairs(
    request: Request, problems: Problems, *, empty_classes: bool = False
) -> list[MaskPair]:
    """Masks of the same name on both sides, in sub-folders too.

    With a split, only samples in it count, or those whose first folder (the class) is.

    Args:
        request: which folders.
        problems: takes masks that are extra.
        empty_classes: the split may name classes that have no sample.

    Raises:
        InputError: a folder holds no mask, the split is of another data set, or a mask is extra
            and that is not allowed.
    """
    truths, predictions = (_masks_in(folder) for folder in (request.truth, request.prediction))
    names = list(truths)
    if request.split.names is not None:
        kept = set(request.split.names)
        unknown = sorted(kept - {name.split("/")[0] for name in names} - set(names))
        names = [name for name in names if name.split("/")[0] in kept or name in kept]
        if not names or (unknown and not empty_classes):
            raise InputError(
                f"the split has {unknown[0]}, which is no class or mask of {request.truth}: use "
                "the list of this data set"
            )
    if not set(names) & set(predictions):
        raise InputError(
            f"{request.prediction} has none of the {len(names)} masks of the ground truth, such as "
            f"{names[0]}.png: is it of another benchmark, or a folder too high or too low?"
        )
    for name in sorted(set(predictions) - set(truths)):
        problems.found(
            EXTRA_MASK, f"{predictions[name]} is no sample of the ground truth: remove the file"
        )
    return [MaskPair(name, truths[name], request.prediction / f"{name}.png") for name in names]


def _masks_in(folder: Path) -> dict[str, Path]:
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder: expected masks as PNG files in it")
    files = {
        p.relative_to(folder).with_suffix("").as_posix(): p for p in files_below(folder, ".png")
    }
    if not files:
        raise InputError(f"{folder} holds no PNG: expected one mask per sample")
    return dict(sorted(files.items()))


def read_prediction(
    pair: MaskPair, shape: tuple[int, ...], problems: Problems, read: ReadMask = read_binary
) -> NDArray[np.uint8]:
    """The predicted mask; empty where it is missing or unusable and that is allowed."""
    empty = np.zeros(shape, np.uint8)
    if not pair.prediction.is_file():
        others = sorted(pair.prediction.parent.glob(f"{pair.prediction.stem}.*"))
        hint = f", there is only {others[0].name}" if others else ""
        problems.found(MISSING_MASK, f"{pair.prediction} is missing{hint}: write it as PNG")
        return empty
    try:
        mask = read(pair.prediction)
        check_size(pair.prediction, mask, shape)
    except InputError as error:
        problems.found(UNUSABLE_MASK, str(error))
        return empty
    return mask


def _picture(pair: MaskPair) -> Picture:
    truth = read_binary(pair.truth)
    allowed = Problems(allowed=True)
    return Picture(pair.name, truth, read_prediction(pair, truth.shape, allowed))


@dataclass(frozen=True)
class Overlap:
    """One binary sample: pixel counts, and how to show it."""

    name: str
    intersection: float
    union: float
    true: float
    predicted: float
    picture: Callable[[], Picture] | None = None
    sentence: str = ""


def measure(name: str, truth: NDArray, prediction: NDArray) -> Overlap:
    """Counts the pixels of two (H, W) masks."""
    intersection, union = iou.mask_overlap(truth, prediction)
    true, predicted = (int(np.count_nonzero(mask)) for mask in (truth, prediction))
    return Overlap(name, intersection, union, true, predicted)


def _overlaps(request: Request, problems: Problems) -> list[Overlap]:
    sentences = read_sentences(request.truth / SENTENCES)

    def work(pair: MaskPair) -> tuple[Overlap, Problems]:
        found = Problems(request.allow_missing)
        truth = read_binary(pair.truth)
        overlap = measure(pair.name, truth, read_prediction(pair, truth.shape, found))
        sentence = sentences.get(pair.name, "")
        return replace(overlap, picture=partial(_picture, pair), sentence=sentence), found

    results = request.run(work, find_pairs(request, problems), "image")
    for _, found in results:
        problems.merge(found)
    return [overlap for overlap, _ in results]


def read_sentences(path: Path) -> dict[str, str]:
    """Sample name -> its sentence, for looking at it; empty if there is no such file."""
    what = "an object of sample names and sentences"
    sentences = read_json(path, what) if path.is_file() else {}
    if not isinstance(sentences, dict) or not all(isinstance(s, str) for s in sentences.values()):
        raise InputError(f"{path} must be {what}")
    return sentences


def score_referring(request: Request, *, rule: ReferringRule, sample: str = "expression") -> Scores:
    """oIoU, mIoU and P@X of one binary mask per expression or image, from folders."""
    problems = Problems(request.allow_missing)
    return referring_scores(_overlaps(request, problems), rule, problems, sample)


def referring_scores(
    samples: Sequence[Overlap], rule: ReferringRule, problems: Problems, sample: str = "expression"
) -> Scores:
    """oIoU, mIoU and P@X of measured samples."""
    kept = [s for s in samples if s.true > 0] if rule.needs_truth else list(samples)
    notes: tuple[str, ...] = ()
    if len(kept) < len(samples):
        left_out = counted(len(samples) - len(kept), "sample")
        notes = (f"{left_out} without ground truth left out",)
    inter, union = (
        np.array([getattr(s, side) for s in kept]) for side in ("intersection", "union")
    )
    numbers = iou.referring_summary(inter, union, rule)
    return Scores(numbers, [_iou_row(s) for s in kept], problems, sample, notes)


def _iou_row(sample: Overlap) -> Row:
    values = _iou_values(sample.intersection, sample.union)
    return Row(sample.name, "", values, sample.picture, sample.sentence)


def _iou_values(intersection: float, union: float) -> dict[str, float]:
    ratio = iou.overlap_ratio(np.array(intersection), np.array(union))
    return {"IoU": 100 * float(ratio), "I": intersection, "U": union}


def score_generalized(request: Request) -> Scores:
    """gIoU, cIoU, N-acc, T-acc and Pr@X; refusals from ``no_target.json`` or empty masks."""
    problems = Problems(request.allow_missing)
    path = request.prediction / REFUSALS
    flags = read_refusals(path) if path.is_file() else None
    samples = _overlaps(request, problems)
    if flags is None:
        return generalized_scores(samples, None, problems)
    if missing := [s.name for s in samples if s.name not in flags]:
        raise InputError(f"{path} lacks sample {missing[0]}: give true or false for every sample")
    return generalized_scores(samples, [flags[s.name] for s in samples], problems)


def generalized_scores(
    samples: Sequence[Overlap], refused: Sequence[bool] | None, problems: Problems
) -> Scores:
    """gIoU, cIoU, N-acc, T-acc and Pr@X; without ``refused`` an empty mask is a refusal."""
    refusals = [s.predicted == 0 for s in samples] if refused is None else refused
    no_target = [s.true == 0 for s in samples]
    counted = generalized.GeneralizedSamples(
        np.array([s.intersection for s in samples]),
        np.array([s.union for s in samples]),
        np.array(no_target),
        np.array(refusals),
    )
    numbers = generalized.generalized_summary(counted)
    for key in ("T_acc", "N_acc"):
        numbers[key] *= 100
    rows = []
    ious = generalized.sample_ious(counted)
    areas = zip(*generalized.counted_areas(counted), strict=True)
    for sample, says, none, ratio, (inter, union) in zip(
        samples, refusals, no_target, ious, areas, strict=True
    ):
        values = {"IoU": 100 * float(ratio), "I": float(inter), "U": float(union)}
        values |= {"refused": float(says), "no_target": float(none)}
        rows.append(Row(sample.name, "", values, sample.picture, sample.sentence))
    note = "a refusal is an empty mask" if refused is None else f"refusals from {REFUSALS}"
    return Scores(numbers, rows, problems, "expression", (note,))


def read_refusals(path: Path) -> dict[str, bool]:
    """Sample name -> whether the model says that it has no target."""
    flags = read_json(path, "an object of sample names and booleans")
    if not isinstance(flags, dict) or any(not isinstance(v, bool) for v in flags.values()):
        raise InputError(f"{path} must be an object of sample names and booleans")
    return flags


def score_few_shot(request: Request) -> Scores:
    """Class mIoU and FB-IoU of ``<class>/<episode>.png``; classes without episode count 0.

    Predictions in ``shot_<k>/<class>/<episode>.png`` vote, the k-shot protocol of hsnet.
    """
    problems = Problems(request.allow_missing)
    folder = request.prediction
    shots = [path for path in entries(folder) if re.match(rf"{SHOTS}\d", path.name)] or [folder]
    pairs = find_pairs(replace(request, prediction=shots[0]), problems, empty_classes=True)
    outside = [pair.truth for pair in pairs if "/" not in pair.name]
    if outside:
        raise InputError(f"{outside[0]} lies in no class folder: expected <class>/<episode>.png")

    def work(pair: MaskPair) -> tuple[Episode, Problems]:
        found = Problems(request.allow_missing)
        truth, ignore = split_ignored(read_ids(pair.truth))
        masks = [
            read_prediction(replace(pair, prediction=shot / f"{pair.name}.png"), truth.shape, found)
            for shot in shots
        ]
        areas = few_shot.areas(truth, few_shot.vote(np.stack(masks)), ignore)
        class_name, name = pair.name.split("/", 1)
        return Episode(class_name, name, *areas, partial(_picture, pair)), found

    results = request.run(work, pairs, "episode")
    for _, found in results:
        problems.merge(found)
    episodes = [episode for episode, _ in results]
    classes = request.split.names or tuple(dict.fromkeys(e.class_name for e in episodes))
    scores = few_shot_scores(episodes, classes, problems)
    if len(shots) == 1:
        return scores
    return replace(scores, notes=(*scores.notes, f"{len(shots)} shots vote"))


@dataclass(frozen=True)
class Episode:
    """One few-shot sample: (2,) background and foreground pixels, and how to show it."""

    class_name: str
    name: str
    intersection: NDArray
    union: NDArray
    picture: Callable[[], Picture] | None = None


def few_shot_scores(
    episodes: Sequence[Episode], classes: Sequence[str], problems: Problems
) -> Scores:
    """Class mIoU and FB-IoU; classes without episode count 0."""
    inter = np.array([e.intersection for e in episodes]).reshape(-1, 2)
    union = np.array([e.union for e in episodes]).reshape(-1, 2)
    ids = [classes.index(e.class_name) for e in episodes]
    numbers = few_shot.few_shot_summary(inter, union, ids, range(len(classes)))
    rows = [
        Row(e.class_name, e.name, _iou_values(int(i), int(u)), e.picture)
        for e, i, u in zip(episodes, inter[:, 1], union[:, 1], strict=True)
    ]
    groups = []
    for number, name in enumerate(classes):
        mine = np.array(ids) == number
        areas = (int(each[mine, 1].sum()) for each in (inter, union))
        groups.append(Row(name, "", _iou_values(*areas)))
    unsampled = len(classes) - len({e.class_name for e in episodes})
    notes = (f"{counted(len(classes), 'class')}, {unsampled} without episode",)
    return Scores(numbers, rows, problems, "episode", notes, group="class", groups=groups)


def split_ignored(values: NDArray[np.uint8]) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Object and ignored pixels of a few-shot mask: 255 is "ignore" only beside an object of 1."""
    ignore = (values == VOID) & bool((values == 1).any())
    return (values > 0) & ~ignore, ignore


def score_semantic(request: Request, *, reduce_zero_label: bool) -> Scores:
    """mIoU, aAcc and mDice over all images; per-class rows."""
    num_classes = request.num_classes
    if num_classes is None:
        raise InputError("semantic segmentation needs the number of classes: give --classes")
    if not 0 < num_classes <= MAX_CLASSES:
        raise InputError(f"--classes is {num_classes}, expected 1 to {MAX_CLASSES}")
    problems = Problems(request.allow_missing)
    ignore = semantic.IGNORE if request.ignore is None else request.ignore

    def measure(pair: MaskPair) -> tuple[semantic.ClassAreas, Problems]:
        found = Problems(request.allow_missing)
        truth = read_ids(pair.truth, classes=True)
        prediction = read_prediction(pair, truth.shape, found, partial(_read_labels, num_classes))
        try:
            areas = semantic.class_areas(
                truth, prediction, num_classes, reduce_zero_label=reduce_zero_label, ignore=ignore
            )
        except InputError as error:
            raise InputError(f"{pair.truth}: {error}") from error
        return areas, found

    results = request.run(measure, find_pairs(request, problems), "image")
    for _, found in results:
        problems.merge(found)
    names = [str(number) for number in range(num_classes)]
    return semantic_scores([areas for areas, _ in results], problems, names, ignore)


def semantic_scores(
    each: Sequence[semantic.ClassAreas],
    problems: Problems,
    classes: Sequence[str],
    ignore: int = semantic.IGNORE,
) -> Scores:
    """mIoU, aAcc and mDice of counted images; per-class rows, and a note of the ignored label."""
    if not each:
        raise InputError("there is no image to score: expected at least one")
    total = sum(each[1:], start=each[0])
    if not total.true.any():
        raise InputError("every pixel of the ground truth is ignored: there is nothing to score")
    summary: Mapping[str, float | NDArray] = semantic.semantic_summary(total)
    numbers = {"mIoU": summary["mIoU"], "aAcc": summary["aAcc"]}
    numbers["mDice"] = float(np.nanmean(summary["Dice"]))
    columns = ("IoU", "Acc", "Dice")
    rows = [
        Row(name, "", percent({key: np.asarray(summary[key])[c] for key in columns}))
        for c, name in enumerate(classes)
    ]
    notes = () if ignore == semantic.IGNORE else (f"label {ignore} ignored, not {semantic.IGNORE}",)
    number = len(each)
    return Scores(percent(numbers), rows, problems, "image", notes, "class", num_samples=number)


def _read_labels(num_classes: int, path: Path) -> NDArray[np.uint8]:
    labels = read_ids(path, classes=True)
    stray = [value for value in present_ids(labels) if value >= num_classes]
    if stray:
        raise InputError(
            f"{path} holds label {stray[0]}, expected labels below {num_classes}: is --classes "
            "right, or was the mask smoothed or saved as JPEG?"
        )
    return labels
