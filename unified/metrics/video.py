"""Which frames and objects of a video count: one function per benchmark, over J and F.

Frames come as pairs (ground truth, prediction) of (H, W) uint8 label maps with the same ids, read
one at a time, so that memory does not grow with the length of the video.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError
from unified.metrics.davis import (
    VOID,
    Track,
    align_proposals,
    frame_scores,
    match_proposals,
    num_objects,
    present_ids,
    proposal_scores,
)

FramePair = tuple[NDArray[np.uint8], NDArray[np.uint8]]
LvosTask = Literal["semi-supervised", "unsupervised_multiple", "unsupervised_single"]


@dataclass(frozen=True)
class Span:
    """The annotated frames [start, end) of an LVOS object, and how many its score is spread over.

    ``num_frames`` comes from the meta file; where it is larger than the range, the missing frames
    count 0.
    """

    start: int
    end: int
    num_frames: int


def davis_semi_supervised(frames: Iterable[FramePair]) -> dict[int, Track]:
    """Scores objects 1..n, n the largest id of frame 0, without the first and the last frame.

    An id below n that never exists scores 1; void pixels of the ground truth are background.
    Predicted ids above n are ignored here; whoever reads the files refuses them.

    Raises:
        InputError: fewer than 3 frames.
    """
    scores: list[NDArray[np.float64]] = []
    objects = 0
    for truth, prediction in frames:
        objects = objects if scores else num_objects(truth)
        truth = np.where(truth == VOID, np.uint8(0), truth)
        scores.append(frame_scores(truth, prediction, range(1, objects + 1)))
    if len(scores) < 3:
        raise InputError(f"expected at least 3 frames in a sequence, got {len(scores)}")
    return {o + 1: _track([score[o] for score in scores[1:-1]]) for o in range(objects)}


def davis_unsupervised(frames: Iterable[FramePair]) -> dict[int, Track]:
    """Scores all frames without void pixels, each object by the proposal assigned to it.

    Raises:
        InputError: more than 20 proposals, or no frame.
    """
    scores: list[NDArray[np.float64]] = []
    objects = 0
    for truth, prediction in frames:
        objects = objects if scores else num_objects(truth)
        scores.append(proposal_scores(truth, prediction, range(1, objects + 1), truth == VOID))
    if not scores:
        raise InputError("there is no frame to score: expected at least one")
    aligned = align_proposals(scores)
    pairs = match_proposals(aligned)
    return {i: _track(aligned[:, p, o], (o + 1, p + 1)) for i, (p, o) in enumerate(pairs, start=1)}


def visible_objects(
    frames: Iterable[FramePair], *, skip_first_last: bool = True, skip_prompt: bool = False
) -> dict[int, Track]:
    """Scores every id of the ground truth from the frame it first appears in.

    Args:
        frames: label maps of one video; predicted ids that the ground truth lacks are free.
        skip_first_last: leave out the first and the last frame of the video.
        skip_prompt: leave out the frame in which an object first appears, where it is given.

    Source: vos-benchmark acb4733; SA-V scores likewise.
    """
    scores: dict[int, list[NDArray[np.float64]]] = {}
    for truth, prediction in _without_ends(frames) if skip_first_last else frames:
        fresh = [i for i in present_ids(truth) if i not in (0, VOID) and i not in scores]
        scores.update({i: [] for i in fresh})
        ids = [i for i in scores if not (skip_prompt and i in fresh)]
        for i, score in zip(ids, frame_scores(truth, prediction, ids), strict=True):
            scores[i].append(score)
    return {i: _track(scores[i]) for i in sorted(scores) if scores[i]}


def lvos_objects(
    frames: Iterable[FramePair],
    spans: Mapping[int, Span],
    task: LvosTask = "semi-supervised",
    *,
    skip_first_last: bool = True,
) -> dict[int, Track]:
    """Scores each object inside its own span of annotated frames; one without frames is left out.

    Args:
        frames: all annotated frames of the video in order.
        spans: object id -> its span.
        task: "semi-supervised" matches ids, "unsupervised_multiple" assigns proposals,
            "unsupervised_single" compares every object with all foreground of the prediction.
        skip_first_last: leave out the first and last frame of each span. The current evaluator
            does for the semi-supervised task only, the one bundled with UniRef never.

    Raises:
        InputError: the meta file and the frames disagree.

    Source: lvos-evaluation 25cb02d, all three tasks.
    """
    table = _lvos_table(frames, list(spans), task)
    spread = [_within(table[:, :, o], span) for o, span in enumerate(spans.values())]
    pairs = [(0, o) for o in range(len(spans))]
    if task == "unsupervised_multiple":
        affinity = np.stack([scores.mean(axis=(0, 2)) for scores in spread], axis=-1)  # (P, O)
        pairs = match_proposals(affinity[None, ..., None])
    kept = slice(1, -1) if skip_first_last else slice(None)
    ids = list(spans)
    matched: list[tuple[int, int] | None] = [None] * len(ids)
    if task != "semi-supervised":
        single = task == "unsupervised_single"
        matched = [(ids[o], 0 if single else p + 1) for p, o in pairs]
    tracks = {
        i: _track(spread[o][kept, p], match)
        for i, (p, o), match in zip(ids, pairs, matched, strict=True)
    }
    return {i: track for i, track in tracks.items() if len(track.region)}


def variation(track: Track) -> float:
    """Returns V of LVOS: spread of J&F over time, its variance rounded to 4 digits first."""
    variance = np.var((track.region + track.boundary) / 2)
    return float(np.sqrt(np.round(variance, 4)))


def expression_track(frames: Iterable[FramePair]) -> Track:
    """Scores one expression over all its frames; any non-zero pixel is foreground.

    Source: MeViS 7c0620b tools/eval_mevis.py.
    """
    scores = [
        frame_scores((truth > 0).view(np.uint8), (prediction > 0).view(np.uint8), [1])[0]
        for truth, prediction in frames
    ]
    if not scores:
        raise InputError("there is no frame to score: expected at least one")
    return _track(scores)


def seen_unseen(values: Mapping[str, Sequence[float]], unseen: Sequence[bool]) -> dict[str, float]:
    """Returns the mean of each value over seen and over unseen objects, and of the two.

    Args:
        values: name -> (N,) one number per object.
        unseen: (N,) whether the object (its class or its video) was absent from training.

    A group without objects is left out of the means.
    """
    flags = np.asarray(unseen, dtype=bool)
    summary: dict[str, float] = {}
    for name, numbers in values.items():
        groups = {"seen": np.asarray(numbers)[~flags], "unseen": np.asarray(numbers)[flags]}
        means = {group: float(x.mean()) for group, x in groups.items() if len(x)}
        summary[f"{name}-Mean"] = float(np.mean(list(means.values())))
        summary.update({f"{name}-{group}-Mean": mean for group, mean in means.items()})
    return summary


def _track(
    scores: Sequence[NDArray[np.float64]] | NDArray[np.float64],
    matched: tuple[int, int] | None = None,
) -> Track:
    table = np.asarray(scores, dtype=np.float64).reshape(-1, 2)
    return Track(table[:, 0], table[:, 1], matched)


def _without_ends(frames: Iterable[FramePair]) -> Iterator[FramePair]:
    held: FramePair | None = None
    for index, pair in enumerate(frames):
        if held is not None:
            yield held
        held = pair if index else None


def _lvos_table(
    frames: Iterable[FramePair], ids: Sequence[int], task: LvosTask
) -> NDArray[np.float64]:
    """(T, P, O, 2) scores of every proposal; P is 1 where nothing is assigned."""
    if task == "unsupervised_multiple":
        return align_proposals([proposal_scores(t, p, ids) for t, p in frames])
    if task == "unsupervised_single":
        foregrounds = ((truth, (p > 0).view(np.uint8)) for truth, p in frames)
        return np.stack([proposal_scores(t, p, ids)[-1:] for t, p in foregrounds])
    return np.stack([frame_scores(t, p, ids)[None] for t, p in frames])


def _within(scores: NDArray[np.float64], span: Span) -> NDArray[np.float64]:
    """(num_frames, P, 2) scores of one object: those of its span, then zeros."""
    inside = scores[span.start : span.end]
    if span.end > len(scores) or len(inside) > span.num_frames:
        raise InputError(
            f"the meta file gives an object frames {span.start} to {span.end} and a length of "
            f"{span.num_frames}, the video has {len(scores)} annotated frames: use the meta file "
            "of the same version of the data"
        )
    spread = np.zeros((span.num_frames, *scores.shape[1:]))
    spread[: len(inside)] = inside
    return spread
