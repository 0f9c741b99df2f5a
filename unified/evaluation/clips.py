"""Which files of a video benchmark belong together: one ``Clip`` per thing to score."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.files import read_json, segmentation_mask
from unified.errors import InputError
from unified.evaluation.reading import (
    annotation_root,
    check_sequences,
    frame_names,
    read_binary,
    read_names,
)
from unified.evaluation.report import MISSING_SET, Problems, Request
from unified.files import subfolders
from unified.mask_files import check_edges, is_black_and_white, read_ids
from unified.metrics.davis import MAX_PROPOSALS, VOID
from unified.metrics.video import Span

LVOS_STEP = 5  # every fifth frame is annotated, file names count from 1
EXPRESSION_SETS = tuple(f"anno_{k}" for k in range(4))  # of Ref-DAVIS, a folder each


class LoadTruth(Protocol):
    """Gives the (H, W) uint8 ground truth of a frame by its name."""

    def __call__(self, frame: str) -> NDArray[np.uint8]: ...


@dataclass(frozen=True)
class LabelMaps:
    """Ground truth in ``folder/<frame>.png``: all objects, or one mask of the objects ``ids``."""

    folder: Path
    ids: tuple[int, ...] | None = None

    def __call__(self, frame: str) -> NDArray[np.uint8]:
        path = self.folder / f"{frame}.png"
        label_map = read_ids(path)
        check_edges(path, label_map)
        return label_map if self.ids is None else np.isin(label_map, self.ids).astype(np.uint8)


@dataclass(frozen=True)
class BinaryMasks:
    """Ground truth in ``folder/<frame>.png`` of a single object."""

    folder: Path

    def __call__(self, frame: str) -> NDArray[np.uint8]:
        return read_binary(self.folder / f"{frame}.png")


@dataclass(frozen=True)
class MaskCodes:
    """Ground truth as run-length codes: the union of objects, each with one code per frame."""

    objects: Sequence[Sequence[Mapping[str, Any] | None]]
    index: Mapping[str, int]
    shape: tuple[int, int]

    def __call__(self, frame: str) -> NDArray[np.uint8]:
        codes = [codes[self.index[frame]] for codes in self.objects]
        masks = [segmentation_mask(code, *self.shape) for code in codes if code is not None]
        return np.any([np.zeros(self.shape, bool), *masks], axis=0).astype(np.uint8)


@dataclass(frozen=True)
class Clip:
    """One thing to score: a sequence, one object of it, or one expression about it.

    Attributes:
        sequence: name of the video.
        item: object folder, expression or annotator; "" for the sequence itself.
        frames: names of the annotated frames in order.
        truth: loads the ground truth of a frame.
        prediction: folder with ``<frame>.png``.
        binary: the prediction is the mask of one object, not a label map.
        check_ids: predicted ids must be those of the ground truth.
        max_proposals: largest id of a prediction, where proposals are assigned to objects.
        unscored: frames whose prediction does not matter and is not read.
        spans: LVOS, object id -> its frames.
        unseen_ids: objects that count as unseen, where a benchmark tells them apart.
        sentence: that was asked for, where it is known.
    """

    sequence: str
    item: str
    frames: tuple[str, ...]
    truth: LoadTruth
    prediction: Path
    binary: bool = False
    check_ids: bool = True
    max_proposals: int = VOID
    unscored: frozenset[str] = frozenset()
    spans: Mapping[int, Span] | None = None
    unseen_ids: frozenset[int] | None = None
    sentence: str = ""


MakeClips = Callable[[Request, Problems], list[Clip]]


def sequences(
    request: Request,
    problems: Problems,
    *,
    skip_ends: bool = False,
    check_ids: bool = True,
    max_proposals: int = VOID,
) -> list[Clip]:
    """``<sequence>/<frame>.png`` on both sides: label maps, or masks of 0 and 255."""
    truth, prediction = annotation_root(request.truth), annotation_root(request.prediction)
    clips = []
    for name in _wanted(request, subfolders(truth), prediction, problems):
        frames = tuple(frame_names(truth / name))
        unscored = frozenset((frames[0], frames[-1])) if skip_ends else frozenset()
        binary = is_black_and_white(tuple(str(truth / name / f"{f}.png") for f in frames))
        load: LoadTruth = BinaryMasks(truth / name) if binary else LabelMaps(truth / name)
        clip = Clip(name, "", frames, load, prediction / name, binary, check_ids, max_proposals)
        clips.append(replace(clip, unscored=unscored))
    return clips


def object_folders(request: Request, problems: Problems) -> list[Clip]:
    """SA-V: ``<sequence>/<object>/<frame>.png``, one binary mask per object, both ends skipped."""
    truth, prediction = annotation_root(request.truth), annotation_root(request.prediction)
    clips = []
    for name in _wanted(request, subfolders(truth), prediction, problems):
        objects = subfolders(truth / name)
        if not objects:
            raise InputError(f"{truth / name} has no object folder such as 000: is this SA-V?")
        _check_items(prediction / name, objects, "object", problems)
        for item in objects:
            folder = truth / name / item
            frames = tuple(frame_names(folder))
            clip = Clip(name, item, frames, BinaryMasks(folder), prediction / name / item)
            ends = frozenset((frames[0], frames[-1]))
            clips.append(replace(clip, binary=True, unscored=ends))
    return clips


def annotator_sets(request: Request, problems: Problems) -> list[Clip]:
    """Ref-DAVIS: ``anno_<k>/<sequence>/<frame>.png``, or one set without the outer folder."""
    folder = request.prediction
    found = _folders(folder)
    if not any(name.startswith("anno_") for name in found):
        return proposals(request, problems)
    for name in (name for name in EXPRESSION_SETS if name not in found):
        problems.found(
            MISSING_SET,
            f"{folder / name} is missing: predict all of {', '.join(EXPRESSION_SETS)}, or give the "
            "folder of one of them as --pred",
        )
    _check_items(folder, EXPRESSION_SETS, "expression set", problems)
    clips = []
    for item in (name for name in EXPRESSION_SETS if name in found):
        inner = replace(request, prediction=folder / item)
        clips += [replace(clip, item=item) for clip in proposals(inner, problems)]
    return clips


def proposals(request: Request, problems: Problems) -> list[Clip]:
    """As ``sequences``, for up to 20 proposals whose ids are their own."""
    return sequences(request, problems, check_ids=False, max_proposals=MAX_PROPOSALS)


def classed_sequences(request: Request, problems: Problems) -> list[Clip]:
    """YouTube-VOS: label maps, and ``meta.json`` with the class of every object."""
    videos = _meta(request, "meta.json of YouTube-VOS")
    is_unseen = _seen_or_unseen(
        request, "the unseen classes, or train/meta.json with the seen ones"
    )
    clips = []
    for clip in sequences(request, problems):
        classes = _of_objects(videos, clip.sequence, "category", request.meta)
        _check_annotated(clip, videos[clip.sequence]["objects"].values(), request)
        unseen = frozenset(i for i, name in classes.items() if is_unseen(name))
        clips.append(replace(clip, unseen_ids=unseen))
    return clips


def _check_annotated(clip: Clip, entries: Iterable[Mapping[str, Any]], request: Request) -> None:
    """Every frame that the meta file lists for an object has ground truth."""
    listed = {frame for entry in entries for frame in entry.get("frames", ())}
    if lacking := sorted(listed - set(clip.frames)):
        raise InputError(
            f"{request.truth} has no mask of frame {lacking[0]} of video {clip.sequence}, which "
            f"{request.meta} lists (without mask: {len(lacking)} of {len(listed)}): the public "
            "valid annotations hold only the frames in which objects first appear, scores of that "
            "set come from the server, for which tools/submit.py writes a zip"
        )


def spanned_sequences(
    request: Request, problems: Problems, *, skip_ends: bool, make: MakeClips
) -> list[Clip]:
    """LVOS: label maps, and the meta file with the frames in which every object counts."""
    videos = _meta(request, "valid_meta.json of LVOS")
    is_unseen = _seen_or_unseen(request, "unseen_videos.txt of LVOS")
    clips = []
    for clip in make(request, problems):
        ranges = _of_objects(videos, clip.sequence, "frame_range", request.meta)
        unseen = frozenset(ranges) if is_unseen(clip.sequence) else frozenset()
        clips.append(replace(with_spans(clip, ranges, skip_ends), unseen_ids=unseen))
    return clips


def with_spans(clip: Clip, ranges: Mapping[int, Mapping[str, Any]], skip_ends: bool) -> Clip:
    """The clip with the frame ranges of the LVOS meta file; frames outside need no prediction."""
    spans = {i: _span(clip, entry) for i, entry in ranges.items()}
    ends = 1 if skip_ends else 0
    scored = {
        frame
        for span in spans.values()
        for frame in clip.frames[span.start + ends : span.end - ends]
    }
    return replace(clip, spans=spans, unscored=frozenset(clip.frames) - scored)


def _seen_or_unseen(request: Request, what: str) -> Callable[[str], bool]:
    """Whether a name is unseen: listed in a text file, or not a class of a training meta file."""
    if request.unseen is None:
        raise InputError(f"the protocol needs {what}: give its path with --unseen")
    if request.unseen.suffix != ".json":
        listed = set(read_names(request.unseen))
        return lambda name: name in listed
    videos = read_json(request.unseen, what, keys=("videos",))["videos"]
    seen = {
        name
        for video in videos
        for name in _of_objects(videos, video, "category", request.unseen).values()
    }
    return lambda name: name not in seen


def expressions(request: Request, problems: Problems) -> list[Clip]:
    """Ref-YouTube-VOS: predictions in ``<video>/<expression>/<frame>.png``.

    The ground truth lies likewise, or as label maps ``<video>/<frame>.png`` with a meta file that
    names the ``obj_id`` of every expression.
    """
    truth, prediction = annotation_root(request.truth), annotation_root(request.prediction)
    videos = None if request.meta is None else _meta(request, "meta_expressions.json")
    known = subfolders(truth)
    clips = []
    for name in _wanted(request, known, prediction, problems):
        folders = subfolders(truth / name)
        entries = {} if videos is None else _entry(videos, name, "expressions", request.meta)
        if not folders and not entries:
            raise InputError(
                f"{truth / name} holds label maps: give --meta with the meta_expressions.json "
                "that names the obj_id of every expression"
            )
        _check_items(prediction / name, [*entries, *folders], "expression", problems)
        for item in entries or folders:
            folder = truth / name / item if folders else truth / name
            load: LoadTruth = BinaryMasks(folder)
            if not folders:
                load = LabelMaps(folder, _object_ids(entries[item], name, item, request))
            frames = tuple(frame_names(folder))
            clip = Clip(name, item, frames, load, prediction / name / item, binary=True)
            clips.append(replace(clip, sentence=entries[item].get("exp", "") if entries else ""))
    return clips


def mevis_expressions(request: Request, problems: Problems) -> list[Clip]:
    """MeViS: ``meta_expressions.json`` and ``mask_dict.json`` against ``<video>/<expression>/``."""
    folder = request.truth
    meta = read_json(folder / "meta_expressions.json", "the expressions of MeViS", ("videos",))
    codes = read_json(folder / "mask_dict.json", "the masks of MeViS by annotation id")
    videos, prediction = meta["videos"], annotation_root(request.prediction)
    clips = []
    for name in _wanted(request, list(videos), prediction, problems):
        frames = tuple(videos[name]["frames"])
        index = {frame: i for i, frame in enumerate(frames)}
        sentences = videos[name]["expressions"]
        shape = _mask_size(sentences, codes, name)
        _check_items(prediction / name, sentences, "expression", problems)
        for item, expression in sentences.items():
            if any(str(i) not in codes for i in expression.get("anno_id", [None])):
                raise InputError(
                    f"{folder / 'mask_dict.json'} lacks an annotation of video {name}, expression "
                    f"{item}: are both files of the same split?"
                )
            objects = [codes[str(i)] for i in expression["anno_id"]]
            load = MaskCodes(objects, index, shape)
            clip = Clip(name, item, frames, load, prediction / name / item, binary=True)
            clips.append(replace(clip, sentence=expression.get("exp", "")))
    return clips


def _mask_size(
    expressions: Mapping[str, Any], codes: Mapping[str, Any], name: str
) -> tuple[int, int]:
    """(h, w) of the masks of a video; a sentence about nothing has no mask of its own."""
    for expression in expressions.values():
        for i in expression.get("anno_id", ()):
            for code in codes.get(str(i), ()):
                if code is not None:
                    return int(code["size"][0]), int(code["size"][1])
    raise InputError(f"no expression of video {name} has a mask: its size is not known")


def _wanted(
    request: Request, known: Sequence[str], prediction: Path, problems: Problems
) -> list[str]:
    """The sequences to score, all of which the ground truth must have."""
    wanted = known if request.split.names is None else request.split.names
    unknown = sorted(set(wanted) - set(known))
    if unknown:
        raise InputError(
            f"the split has {unknown[0]}, which the ground truth {request.truth} does not: "
            "use the list of this data set"
        )
    if not wanted:
        raise InputError(f"{request.truth} holds no sequence: expected a folder for each in it")
    check_sequences(prediction, wanted, known, problems)
    return list(wanted)


def _check_items(folder: Path, known: Iterable[str], what: str, problems: Problems) -> None:
    """Folders inside a predicted sequence that the ground truth does not have."""
    for name in sorted(set(_folders(folder)) - set(known)):
        problems.found(
            f"extra {what}", f"{folder / name} is no {what} of the ground truth: remove the folder"
        )


def _folders(folder: Path) -> list[str]:
    return subfolders(folder) if folder.is_dir() else []


def _meta(request: Request, what: str) -> Mapping[str, Any]:
    if request.meta is None:
        raise InputError(f"the protocol needs {what}: give its path with --meta")
    videos: Mapping[str, Any] = read_json(request.meta, what, keys=("videos",))["videos"]
    return videos


def _entry(videos: Mapping[str, Any], name: str, what: str, path: Path | None) -> Mapping[str, Any]:
    """The ``objects`` or ``expressions`` of one video of the meta file."""
    if name not in videos:
        raise InputError(f"{path} has no video {name}: is it of the same split?")
    entry = videos[name].get(what) if isinstance(videos[name], dict) else None
    if not isinstance(entry, dict):
        raise InputError(f"{path} has no {what} of video {name}: is it the right file?")
    return entry


def _of_objects(
    videos: Mapping[str, Any], name: str, key: str, path: Path | None
) -> dict[int, Any]:
    """Object id -> its ``key`` in the meta file of one video."""
    found = {}
    for i, entry in _entry(videos, name, "objects", path).items():
        if not i.isdigit() or not isinstance(entry, dict) or key not in entry:
            raise InputError(
                f"{path} has no {key} of object {i} of video {name}: is it of this benchmark?"
            )
        found[int(i)] = entry[key]
    return found


def _object_ids(
    entry: Mapping[str, Any], name: str, item: str, request: Request
) -> tuple[int, ...]:
    if "obj_id" not in entry:
        raise InputError(
            f"{request.meta} has no obj_id for video {name}, expression {item}: the public valid "
            "file leaves it out, use the one released with the validation masks"
        )
    ids = entry["obj_id"]
    return tuple(int(i) for i in (ids if isinstance(ids, list) else [ids]))


def _span(clip: Clip, entry: Mapping[str, Any]) -> Span:
    """Meta entries count file numbers with an exclusive end; spans count annotated frames."""
    try:
        start, end, length = (int(entry[key]) for key in ("start", "end", "frame_nums"))
    except (KeyError, TypeError, ValueError):
        raise InputError(
            f"video {clip.sequence}: frame_range is {entry}, expected the numbers start, end and "
            "frame_nums"
        ) from None
    numbers = [int(frame) if frame.isdigit() else -1 for frame in clip.frames]
    inside = [index for index, number in enumerate(numbers) if start <= number < end]
    expected = len(range(start, end, LVOS_STEP))
    if not inside or len(inside) != expected:
        raise InputError(
            f"video {clip.sequence}: the meta file has an object in {expected} annotated frames "
            f"from {start} to {end}, the ground truth has {len(inside)}: are both of the same "
            "version of LVOS?"
        )
    return Span(inside[0], inside[-1] + 1, length)
