"""Scoring folders of video masks: clips to tracks to the numbers of each benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError
from unified.evaluation.clips import EXPRESSION_SETS, Clip, MakeClips
from unified.evaluation.reading import check_size, mask_names, read_binary, some_of
from unified.evaluation.report import (
    EXTRA_MASK,
    MISSING_MASK,
    STRAY_ID,
    UNUSABLE_MASK,
    Picture,
    Problems,
    Request,
    Row,
    Scores,
    percent,
)
from unified.mask_files import read_ids
from unified.metrics import davis, video
from unified.metrics.davis import VOID, Track
from unified.metrics.video import FramePair, LvosTask


@dataclass(frozen=True)
class ScoredClip:
    """A clip and its tracks by object id."""

    clip: Clip
    tracks: Mapping[int, Track]


MakeTracks = Callable[[Clip, Iterable[FramePair]], Mapping[int, Track]]
MakeNumbers = Callable[[Sequence[ScoredClip]], Mapping[str, float]]
MakeNotes = Callable[[Sequence[ScoredClip]], tuple[str, ...]]


@dataclass(frozen=True)
class VideoScoring:
    """A protocol over videos: files to clips, clips to tracks, tracks to numbers (fractions).

    ``notes`` says on the card what is missing in what the numbers are a mean of.
    """

    clips: MakeClips
    tracks: MakeTracks
    numbers: MakeNumbers
    notes: MakeNotes = lambda scored: ()
    sample: str = "object"

    def __call__(self, request: Request) -> Scores:
        """Scores folders."""
        problems = Problems(request.allow_missing)
        clips = self.clips(request, problems)
        extra = sum(_extra_frames(clip, problems) for clip in clips)
        scores = self.score(clips, request, problems)
        if not extra:
            return scores
        return replace(scores, notes=(*scores.notes, f"predicted frames without truth: {extra}"))

    def score(self, clips: Sequence[Clip], request: Request, problems: Problems) -> Scores:
        """Scores clips, several at a time, each read frame by frame."""
        cv2.setNumThreads(1)  # there is one thread per clip already
        results = request.run(self._score_clip, [(clip, request) for clip in clips], "clip")
        for _, found in results:
            problems.merge(found)
        scored = [result for result, _ in results]
        rows = [row for result in scored for row in _rows(result)]
        if not rows:
            raise InputError(
                "no object of the ground truth is in a frame that counts: public validation sets "
                "hold only the masks that are given, their predictions go to a server (submit.py)"
            )
        empty = sum(not result.tracks for result in scored)
        notes = self.notes(scored)
        if empty:
            notes = (f"sequences without an object that counts: {empty}", *notes)
        numbers = percent(self.numbers(scored))
        return Scores(numbers, rows, problems, self.sample, notes, group="sequence")

    def _score_clip(self, item: tuple[Clip, Request]) -> tuple[ScoredClip, Problems]:
        clip, request = item
        found = Problems(request.allow_missing)
        try:
            return ScoredClip(clip, self.tracks(clip, read_pairs(clip, found))), found
        except InputError as error:
            if str(clip.prediction) in str(error):
                raise
            raise InputError(f"{clip.prediction}: {error}") from error


def read_pairs(clip: Clip, problems: Problems) -> Iterator[FramePair]:
    """Ground truth and prediction of one frame after the other.

    Where problems are allowed, a prediction that is missing or unusable is an empty mask.

    Raises:
        InputError: a prediction is missing, unusable or has a stray id, and that is not allowed.
    """
    first_seen: dict[int, str] = {}
    known: set[int] = set()
    check_ids = clip.check_ids and not clip.binary
    for frame in clip.frames:
        truth = clip.truth(frame)
        prediction = np.zeros(truth.shape, np.uint8)
        if frame not in clip.unscored:
            prediction = _read_prediction(clip, frame, prediction, problems)
        if check_ids:
            known.update(davis.present_ids(truth))
            for i in davis.present_ids(prediction):
                first_seen.setdefault(i, frame)
        yield truth, prediction
    ids = sorted(known - {0, VOID})
    stray = sorted(set(first_seen) - set(ids) - {0})
    if stray:
        hint = "was a mask smoothed or saved as JPEG?" if len(stray) > 3 else "use its ids"
        problems.found(
            STRAY_ID,
            f"{clip.prediction / first_seen[stray[0]]}.png holds id {stray[0]} (stray in this "
            f"sequence: {some_of(stray)}), the ground truth has {some_of(ids) or 'none'}: {hint}",
            len(stray),
        )


def _extra_frames(clip: Clip, problems: Problems) -> int:
    """How many predicted frames have no ground truth.

    Raises:
        InputError: there are some though the ground truth has all frames, or the names look as if
            all predictions were shifted, and that is not allowed.
    """
    predicted = mask_names(clip.prediction)
    extra = [name for name in predicted if name not in clip.frames]
    last = clip.frames[-1]
    if last in clip.unscored and set(predicted) == set(clip.frames[:-1]) != set():
        problems.found(
            MISSING_MASK,
            f"{clip.prediction / last}.png is missing, and no other: the last frame does not "
            "count, but are all predictions one frame early, as if numbered from one less? Give "
            "every mask the name of its frame",
        )
    numbers = [int(frame) for frame in clip.frames if frame.isdigit()]
    has_all = 1 < len(clip.frames) == len(numbers) == numbers[-1] - numbers[0] + 1
    if not (extra and has_all):
        return len(extra)
    shift = _shift(predicted, numbers)
    remedy = "remove them"
    if shift:
        remedy = (
            f"the predictions start with {predicted[0]}, so all are probably shifted by {shift}. "
            "Give every mask the name of its frame; removing the extra ones would compare each "
            "with another frame"
        )
    problems.found(
        EXTRA_MASK,
        f"{clip.prediction / extra[0]}.png is no frame of the ground truth, which has "
        f"{clip.frames[0]} to {last} (such files: {len(extra)}): {remedy}",
        len(extra),
    )
    return 0


def _shift(predicted: Sequence[str], numbers: Sequence[int]) -> int:
    """By how much the numbers of predictions differ from those of all frames; 0 if not alike."""
    if not all(name.isdigit() for name in predicted) or len(predicted) > len(numbers):
        return 0
    shift = int(predicted[0]) - numbers[0]
    return shift if {int(name) - shift for name in predicted} <= set(numbers) else 0


def _read_prediction(
    clip: Clip, frame: str, empty: NDArray[np.uint8], problems: Problems
) -> NDArray[np.uint8]:
    path = clip.prediction / f"{frame}.png"
    if not path.is_file():
        # In another format, or one folder lower, as the tools write several clips.
        others = [*clip.prediction.glob(f"{frame}.*"), *clip.prediction.glob(f"*/{frame}.png")]
        hint = f", there is only {min(others).relative_to(clip.prediction)}" if others else ""
        problems.found(
            MISSING_MASK, f"{path} is missing{hint}: write one PNG per frame into this folder"
        )
        return empty
    try:
        mask = read_binary(path) if clip.binary else read_ids(path)
        check_size(path, mask, empty.shape)
        if (largest := int(mask.max())) > clip.max_proposals:
            raise InputError(
                f"{path} holds id {largest}, expected at most {clip.max_proposals} proposals: keep "
                "the best and number them from 1, or was the mask smoothed or saved as JPEG?"
            )
    except InputError as error:
        problems.found(UNUSABLE_MASK, str(error))
        return empty
    return mask


def _rows(scored: ScoredClip) -> list[Row]:
    clip = scored.clip
    rows = []
    for i, track in scored.tracks.items():
        parts = [clip.item] if clip.binary else [clip.item, str(i)]
        picture = partial(worst_frame, clip, track.matched or (i, i))
        item = "/".join(part for part in parts if part)
        columns = _columns(track)
        if clip.spans is not None:  # LVOS
            columns["V"] = video.variation(track)
        rows.append(Row(clip.sequence, item, percent(columns), picture, clip.sentence))
    return rows


def _columns(track: Track) -> dict[str, float]:
    region, boundary = davis.statistics(track.region), davis.statistics(track.boundary)
    return {
        "J&F": track.mean,
        "J": region.mean,
        "F": boundary.mean,
        "J-Recall": region.recall,
        "J-Decay": region.decay,
        "F-Recall": boundary.recall,
        "F-Decay": boundary.decay,
    }


def worst_frame(clip: Clip, ids: tuple[int, int]) -> Picture:
    """The scored frame with the lowest J of an object, for looking at it.

    ``ids`` are those of the object and of its prediction, 0 for all foreground. Void pixels are
    left out where the protocol ignores them, which is where proposals are assigned.
    """
    truth_id, predicted_id = ids
    worst, found = np.inf, None
    pairs = zip(clip.frames, read_pairs(clip, Problems(allowed=True)), strict=True)
    for frame, (truth, prediction) in pairs:
        if frame in clip.unscored:
            continue
        mask = prediction == predicted_id if predicted_id else prediction > 0
        if not clip.check_ids:
            mask &= truth != VOID
        score = davis.region_similarity(truth == truth_id, mask)
        if score < worst:
            mine = (truth == truth_id).astype(np.uint8), mask.astype(np.uint8)
            worst, found = score, Picture(f"{clip.sequence}/{frame}", *mine)
    assert found is not None, "a track has at least one frame"
    return found


# Clips to tracks: the rules are in unified.metrics.video.


def semi_supervised(clip: Clip, pairs: Iterable[FramePair]) -> Mapping[int, Track]:
    """DAVIS: objects of the first frame, first and last frame left out."""
    return video.davis_semi_supervised(pairs)


def unsupervised(clip: Clip, pairs: Iterable[FramePair]) -> Mapping[int, Track]:
    """DAVIS: proposals assigned to objects, all frames."""
    return video.davis_unsupervised(pairs)


def visible(
    clip: Clip, pairs: Iterable[FramePair], *, skip_ends: bool, skip_prompt: bool = False
) -> Mapping[int, Track]:
    """Objects from their first frame on."""
    return video.visible_objects(pairs, skip_first_last=skip_ends, skip_prompt=skip_prompt)


def spanned(
    clip: Clip, pairs: Iterable[FramePair], *, task: LvosTask, skip_ends: bool
) -> Mapping[int, Track]:
    """LVOS: objects inside their spans."""
    assert clip.spans is not None, "clips of LVOS carry spans"
    return video.lvos_objects(pairs, clip.spans, task, skip_first_last=skip_ends)


def expression(clip: Clip, pairs: Iterable[FramePair]) -> Mapping[int, Track]:
    """Referring video: one object per expression, all frames."""
    return {1: video.expression_track(pairs)}


def mevis_expression(clip: Clip, pairs: Iterable[FramePair]) -> Mapping[int, Track]:
    """As ``expression``, but an expression without predictions is 0 in every frame."""
    if clip.prediction.is_dir():
        return expression(clip, pairs)
    list(pairs)  # reports what is missing
    nothing = np.zeros(len(clip.frames))
    return {1: Track(nothing, nothing)}


# Tracks to numbers, as fractions.


def davis_numbers(scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """The seven DAVIS numbers; with several annotators, their mean."""
    sets: dict[str, list[Track]] = {}
    for one in scored:
        sets.setdefault(one.clip.item, []).extend(one.tracks.values())
    each = [davis.summarise(tracks) for tracks in sets.values()]
    return {key: float(np.mean([numbers[key] for numbers in each])) for key in each[0]}


def mean_numbers(scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """J&F, J and F, every object or expression once."""
    tracks = [track for one in scored for track in one.tracks.values()]
    region = float(np.mean([track.region.mean() for track in tracks]))
    boundary = float(np.mean([track.boundary.mean() for track in tracks]))
    return {"J&F": (region + boundary) / 2, "J": region, "F": boundary}


def youtube_vos_numbers(scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """G and its four parts: J and F over objects of seen and of unseen classes.

    G is not a number where a half has no object.
    """
    means = _halves(scored)
    parts = {
        key.replace("-Mean", ""): value for key, value in means.items() if not key.startswith("V")
    }
    overall = (parts.pop("J") + parts.pop("F")) / 2
    return {"G": float("nan") if absent_half(scored) else overall, **parts}


def lvos_numbers(scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """J&F, J, F and V, each the mean of seen and unseen videos."""
    means = _halves(scored)
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def _halves(scored: Sequence[ScoredClip]) -> dict[str, float]:
    """Means of J, F and V over seen objects, over unseen objects, and of the two."""
    tracks = [track for one in scored for track in one.tracks.values()]
    values = {
        "J": [float(track.region.mean()) for track in tracks],
        "F": [float(track.boundary.mean()) for track in tracks],
        "V": [video.variation(track) for track in tracks],
    }
    return video.seen_unseen(values, _are_unseen(scored))


def _are_unseen(scored: Sequence[ScoredClip]) -> list[bool]:
    """Whether each object counts as unseen."""
    return [i in (one.clip.unseen_ids or ()) for one in scored for i in one.tracks]


def expression_sets(scored: Sequence[ScoredClip]) -> tuple[str, ...]:
    """A note of how many expression sets of Ref-DAVIS there are, if not all."""
    number, every = len({one.clip.item for one in scored}), len(EXPRESSION_SETS)
    return () if number == every else (f"{number} of {every} expression sets",)


def absent_half(scored: Sequence[ScoredClip]) -> tuple[str, ...]:
    """A note that one of the two halves of a benchmark has no object, if it is so."""
    flags = set(_are_unseen(scored))
    if len(flags) > 1 or all(one.clip.unseen_ids is None for one in scored):
        return ()
    there, absent = ("unseen", "seen") if flags == {True} else ("seen", "unseen")
    return (f"no {absent} object: numbers are those of the {there} half alone",)
