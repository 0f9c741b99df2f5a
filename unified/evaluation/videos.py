"""Scoring folders of video masks: clips to tracks to the numbers of each benchmark."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
from numpy.typing import NDArray

from unified.errors import InputError
from unified.evaluation.clips import Clip, MakeClips
from unified.evaluation.reading import check_size, read_binary, read_ids, read_names, some_of
from unified.evaluation.report import (
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
from unified.metrics import davis, video
from unified.metrics.davis import VOID, Track
from unified.metrics.video import FramePair, LvosTask


@dataclass(frozen=True)
class ScoredClip:
    """A clip and its tracks by object id."""

    clip: Clip
    tracks: Mapping[int, Track]


MakeTracks = Callable[[Clip, Iterable[FramePair]], Mapping[int, Track]]
MakeNumbers = Callable[[Request, Sequence[ScoredClip]], Mapping[str, float]]


def score_videos(
    request: Request,
    *,
    clips: MakeClips,
    tracks: MakeTracks,
    numbers: MakeNumbers,
    sample: str = "object",
) -> Scores:
    """Scores all clips of a protocol, several at a time, each read frame by frame."""
    cv2.setNumThreads(1)  # there is one thread per clip already
    problems = Problems(request.allow_missing)

    def score(clip: Clip) -> tuple[ScoredClip, Problems]:
        found = Problems(request.allow_missing)
        try:
            return ScoredClip(clip, tracks(clip, read_pairs(clip, found))), found
        except InputError as error:
            if str(clip.prediction) in str(error):
                raise
            raise InputError(f"{clip.prediction}: {error}") from error

    results = request.run(score, clips(request, problems), "clip")
    for _, found in results:
        problems.merge(found)
    scored = [result for result, _ in results]
    rows = [row for result in scored for row in _rows(result)]
    return Scores(percent(numbers(request, scored)), rows, problems, sample)


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


def _read_prediction(
    clip: Clip, frame: str, empty: NDArray[np.uint8], problems: Problems
) -> NDArray[np.uint8]:
    path = clip.prediction / f"{frame}.png"
    if not path.is_file():
        others = sorted(clip.prediction.glob(f"{frame}.*"))
        hint = f", there is only {others[0].name}" if others else ""
        problems.found(MISSING_MASK, f"{path} is missing{hint}: write one PNG per frame")
        return empty
    try:
        mask = read_binary(path) if clip.binary else read_ids(path)
        check_size(path, mask, empty.shape)
    except InputError as error:
        problems.found(UNUSABLE_MASK, str(error))
        return empty
    return mask


def _rows(scored: ScoredClip) -> list[Row]:
    clip = scored.clip
    rows = []
    for i, track in scored.tracks.items():
        parts = [clip.item] if clip.binary else [clip.item, str(i)]
        picture = partial(worst_frame, clip, i)
        item = "/".join(part for part in parts if part)
        rows.append(Row(clip.sequence, item, percent(_columns(track)), picture))
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
        "V": video.variation(track),
    }


def worst_frame(clip: Clip, object_id: int) -> Picture:
    """The scored frame with the lowest J of an object, for looking at it."""
    worst, found = np.inf, None
    pairs = zip(clip.frames, read_pairs(clip, Problems(allowed=True)), strict=True)
    for frame, (truth, prediction) in pairs:
        if frame in clip.unscored:
            continue
        if clip.binary or not clip.check_ids:  # one object, or ids that need not match
            truth = ((truth > 0) & (truth != VOID)).astype(np.uint8)
            prediction = (prediction > 0).astype(np.uint8)
            object_id = 1
        score = davis.region_similarity(truth == object_id, prediction == object_id)
        if score < worst:
            mine = (truth == object_id).astype(np.uint8), (prediction == object_id).astype(np.uint8)
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


def davis_numbers(request: Request, scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """The seven DAVIS numbers; with several annotators, their mean."""
    sets: dict[str, list[Track]] = {}
    for one in scored:
        key = "" if one.clip.binary else one.clip.item
        sets.setdefault(key, []).extend(one.tracks.values())
    each = [davis.summarise(tracks) for tracks in sets.values()]
    return {key: float(np.mean([numbers[key] for numbers in each])) for key in each[0]}


def mean_numbers(request: Request, scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """J&F, J and F, every object or expression once."""
    tracks = [track for one in scored for track in one.tracks.values()]
    if not tracks:
        raise InputError(f"{request.truth} has no object in the frames that count")
    region = float(np.mean([track.region.mean() for track in tracks]))
    boundary = float(np.mean([track.boundary.mean() for track in tracks]))
    return {"J&F": (region + boundary) / 2, "J": region, "F": boundary}


def youtube_vos_numbers(request: Request, scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """G and its four parts: J and F over objects of seen and of unseen classes."""
    names = _seen_or_unseen(request, "the unseen classes, or train/meta.json with the seen ones")
    values: dict[str, list[float]] = {"J": [], "F": []}
    unseen = []
    for one in scored:
        classes = one.clip.classes or {}
        for i, track in one.tracks.items():
            if i not in classes:
                raise InputError(f"{request.meta} has no object {i} in video {one.clip.sequence}")
            values["J"].append(float(track.region.mean()))
            values["F"].append(float(track.boundary.mean()))
            unseen.append(names(classes[i]))
    means = video.seen_unseen(values, unseen)
    parts = {key.replace("-Mean", ""): value for key, value in means.items()}
    return {"G": (parts.pop("J") + parts.pop("F")) / 2, **parts}


def lvos_numbers(request: Request, scored: Sequence[ScoredClip]) -> Mapping[str, float]:
    """J&F, J, F and V, each the mean of seen and unseen videos."""
    names = _seen_or_unseen(request, "unseen_videos.txt of LVOS")
    values: dict[str, list[float]] = {"J": [], "F": [], "V": []}
    unseen = []
    for one in scored:
        for track in one.tracks.values():
            values["J"].append(float(track.region.mean()))
            values["F"].append(float(track.boundary.mean()))
            values["V"].append(video.variation(track))
            unseen.append(names(one.clip.sequence))
    means = video.seen_unseen(values, unseen)
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def _seen_or_unseen(request: Request, what: str) -> Callable[[str], bool]:
    """Whether a name is unseen: listed in a text file, or not a class of a training meta file."""
    if request.unseen is None:
        raise InputError(f"the protocol needs {what}: give its path with --unseen")
    if request.unseen.suffix != ".json":
        listed = set(read_names(request.unseen))
        return lambda name: name in listed
    from unified.data.formats.files import read_json

    videos = read_json(request.unseen, what, keys=("videos",))["videos"]
    seen = {o["category"] for entry in videos.values() for o in entry["objects"].values()}
    return lambda name: name not in seen
