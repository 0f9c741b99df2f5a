"""What is wrong with a submission, each fault by the name of its file, before anyone uploads it."""

from __future__ import annotations

import io
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from unified.errors import InputError
from unified.evaluation.detections import is_mask
from unified.evaluation.reading import some_of
from unified.evaluation.report import run_parallel
from unified.evaluation.submission import RESULTS, Files, Server, in_litter
from unified.evaluation.submission_videos import Video
from unified.metrics.davis import VOID, present_ids


@dataclass(frozen=True)
class Fault:
    """One thing that the server would reject or score wrongly."""

    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.path}: {self.message}"


@dataclass(frozen=True)
class Mask:
    """What the checks need to know of one mask file."""

    name: str
    video: str
    item: str
    frame: str
    size: tuple[int, int] | None = None
    ids: tuple[int, ...] = ()
    fault: str | None = None


def check_submission(
    server: Server,
    files: Files,
    videos: Mapping[str, Video] | None = None,
    *,
    num_workers: int = 1,
    progress: bool = False,
) -> list[Fault]:
    """Every fault of a submission of masks, in the order of the files.

    Without ``videos`` frames, sizes and ids are compared within the submission only.
    """
    inside = _inside(server, files)
    faults = list(_layout_faults(server, files, inside))
    names = [n for n in inside if n.endswith(".png") and n.count("/") + 1 == server.depth]
    names = [name for name in names if not in_litter(name)]

    def look(name: str) -> Mask:
        return _look(server, name, files.read(inside[name]))

    masks = run_parallel(look, names, num_workers=num_workers, progress=progress, unit="mask")
    faults += [Fault(mask.name, mask.fault) for mask in masks if mask.fault]
    by_video: dict[str, list[Mask]] = {}
    for mask in masks:
        by_video.setdefault(mask.video, []).append(mask)
    if not by_video:
        faults.append(Fault(str(files.root), f"no mask lies at {_pattern(server)}"))
    if videos is not None:
        faults += _set_faults("video", "", by_video, videos)
    for name, group in by_video.items():
        known = None if videos is None else videos.get(name)
        if videos is None or known is not None:
            faults += _video_faults(server, name, group, known)
    return sorted(faults, key=lambda fault: fault.path)


def _pattern(server: Server) -> str:
    item = {"label_maps": "", "expressions": "<expression>/", "objects": "<object>/"}
    return f"<video>/{item[server.content]}<frame>.png"


def _inside(server: Server, files: Files) -> dict[str, str]:
    """Path below the server's top folder -> path in ``files``."""
    if files.archive is None or not server.top:
        return {name: name for name in files.names}
    top = f"{server.top}/"
    return {name.removeprefix(top): name for name in files.names if name.startswith(top)}


def _layout_faults(server: Server, files: Files, inside: Mapping[str, str]) -> Iterator[Fault]:
    read_by_server = set(inside.values())
    for name in files.names:
        if in_litter(name):
            if files.archive is not None:  # a folder is zipped without it
                yield Fault(name, "left by the operating system: zip without it")
        elif name not in read_by_server:
            yield Fault(name, f"outside the folder {server.top}/ that the server reads")
        elif not name.endswith(".png"):
            yield Fault(name, f"is no PNG: the zip holds only {_pattern(server)}")
        elif any("\ud800" <= character <= "\udfff" for character in name):
            yield Fault(name, "its name is not UTF-8, so no zip can hold it: rename it")
    kept = [name for name in inside if not in_litter(name)]
    for depth, number in Counter(name.count("/") + 1 for name in kept).items():
        if depth != server.depth:
            example = next(name for name in kept if name.count("/") + 1 == depth)
            much = "too deep" if depth > server.depth else "too high"
            yield Fault(example, f"lies {much} ({number} such files), expected {_pattern(server)}")
    for folder in files.empty_folders:
        yield Fault(folder, "is an empty folder")


def _look(server: Server, name: str, content: bytes) -> Mask:
    """Decodes one mask; what is wrong with it alone is its ``fault``."""
    parts = name.split("/")
    mask = Mask(name, parts[0], "/".join(parts[1:-1]), parts[-1].removesuffix(".png"))
    try:
        values = _decode(content)
    except InputError as error:
        return Mask(name, mask.video, mask.item, mask.frame, fault=str(error))
    ids = tuple(i for i in present_ids(values) if i)
    fault = None
    if server.content == "label_maps" and VOID in ids:
        fault = "holds 255 (void): predictions use 0 for background and object ids"
    elif server.content != "label_maps" and len(ids) > 1:
        fault = f"holds {len(ids)} values besides 0 ({some_of(ids)}), expected a mask of 0 and 255"
    height, width = values.shape
    return Mask(name, mask.video, mask.item, mask.frame, (height, width), ids, fault)


def _decode(content: bytes) -> NDArray[np.uint8]:
    if not content:
        raise InputError("is an empty file")
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.format != "PNG":
                raise InputError(f"is a {image.format} file named .png: save it lossless")
            if image.mode not in ("P", "L", "1"):
                raise InputError(f"has mode {image.mode}, expected one 8-bit channel of ids")
            return np.array(image, dtype=np.uint8)
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise InputError(f"cannot be read as an image: {error}") from error


def _set_faults(
    what: str, prefix: str, found: Iterable[str], wanted: Iterable[str]
) -> Iterator[Fault]:
    """Names that are missing or extra."""
    found, wanted = set(found), set(wanted)
    for name in sorted(wanted - found):
        yield Fault(f"{prefix}{name}", f"{what} is missing")
    for name in sorted(found - wanted):
        yield Fault(f"{prefix}{name}", f"{what} is not among those to submit: remove it")


def _video_faults(
    server: Server, name: str, masks: Sequence[Mask], known: Video | None
) -> Iterator[Fault]:
    items: dict[str, list[Mask]] = {}
    for mask in masks:
        items.setdefault(mask.item, []).append(mask)
    if known is not None and known.items is not None:
        yield from _set_faults(server.content.removesuffix("s"), f"{name}/", items, known.items)
    frames = _expected_frames(items.values(), known)
    for item, group in items.items():
        if server.content == "objects" and not (len(item) == 3 and item.isdigit()):
            yield Fault(f"{name}/{item}", "object folders have three digits, such as 000")
        prefix = f"{name}/{item}/" if item else f"{name}/"
        present = {f"{mask.frame}.png" for mask in group}
        yield from _set_faults("frame", prefix, present, {f"{frame}.png" for frame in frames})
    sizes = Counter(mask.size for mask in masks if mask.size)
    wanted = known.size if known is not None else next(iter(sizes.most_common(1)), (None,))[0]
    for mask in masks:
        if mask.size and wanted and mask.size != wanted:
            have, want = (f"{w}x{h}" for h, w in (mask.size, wanted))
            yield Fault(mask.name, f"is {have} pixels, the video is {want}")
        if server.content == "label_maps":
            yield from _id_faults(mask, masks, known)


def _expected_frames(groups: Iterable[Sequence[Mask]], known: Video | None) -> set[str]:
    """Frames of the data set, or those of any item and the numbers that their spacing implies."""
    if known is not None:
        return set(known.frames)
    frames = {mask.frame for group in groups for mask in group}
    if len(frames) < 3 or not all(frame.isdigit() for frame in frames):
        return frames
    numbers = sorted(map(int, frames))
    gaps = Counter(np.diff(numbers).tolist())
    step = min(gaps, key=lambda gap: (-gaps[gap], gap))
    width = Counter(map(len, frames)).most_common(1)[0][0]
    for start, end in pairwise(numbers):
        if (end - start) % step == 0:  # other gaps are the data set's own
            frames |= {f"{number:0{width}d}" for number in range(start + step, end, step)}
    return frames


def _id_faults(mask: Mask, masks: Sequence[Mask], known: Video | None) -> Iterator[Fault]:
    """Ids that the data set does not know; without it, ids that look like smoothing."""
    if known is not None and known.ids is not None:
        stray = sorted(set(mask.ids) - known.ids - {VOID})
        if stray:
            expected = some_of(sorted(known.ids))
            yield Fault(mask.name, f"holds id {some_of(stray)}, the video has {expected}")
        return
    often = Counter(i for other in masks for i in other.ids)
    rare = [i for i in mask.ids if often[i] == 1 and i != VOID]
    if len(masks) > 2 and len(rare) > 3:
        yield Fault(mask.name, f"holds {len(rare)} ids no other frame has: was it smoothed?")


def check_results(files: Files, truth: Mapping[str, Any] | None = None) -> list[Fault]:
    """Every fault of a ``results.json`` for YouTube-VIS or OVIS.

    Args:
        files: the file, or the zip around it.
        truth: the data set's JSON with "videos" and "categories", to check ids and lengths.
    """
    names = [name for name in files.names if not in_litter(name)]
    faults = [Fault(n, f"expected only {RESULTS} at the top") for n in names if n != RESULTS]
    if RESULTS not in names:
        return [*faults, Fault(RESULTS, "is missing: the server reads this name only")]
    try:
        entries = json.loads(files.read(RESULTS))
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return [*faults, Fault(RESULTS, f"is not valid JSON: {error}")]
    if not isinstance(entries, list) or not entries:
        return [*faults, Fault(RESULTS, "must be a list with one entry per instance")]
    videos = None if truth is None else {video["id"]: video for video in truth["videos"]}
    classes = None if truth is None else {category["id"] for category in truth["categories"]}
    for index, entry in enumerate(entries):
        for message in _entry_faults(entry, videos, classes):
            faults.append(Fault(f"{RESULTS}[{index}]", message))
    return faults


def _entry_faults(
    entry: Any, videos: Mapping[int, Any] | None, classes: set[int] | None
) -> Iterator[str]:
    keys = ("video_id", "category_id", "score", "segmentations")
    missing = [key for key in keys if not isinstance(entry, dict) or key not in entry]
    if missing:
        yield f"has no {missing[0]}: expected {', '.join(keys)}"
        return
    score, masks = entry["score"], entry["segmentations"]
    if isinstance(score, bool) or not isinstance(score, (int, float)) or not math.isfinite(score):
        yield f"score is {score!r}, expected a number"
    if not isinstance(masks, list):
        yield "segmentations must be a list with one mask or null per frame"
        return
    for key, known in (("category_id", classes), ("video_id", videos)):
        if known is not None and not (isinstance(entry[key], (int, str)) and entry[key] in known):
            yield f"{key} {entry[key]} is not in the data set"
            return
    codes = [mask for mask in masks if mask is not None]
    if not all(isinstance(code, dict) and is_mask(code) for code in codes):
        yield "a mask is neither null nor a run-length code with size and counts"
        return
    sizes = {tuple(code["size"]) for code in codes}
    if videos is not None:
        video = videos[entry["video_id"]]
        if len(masks) != video["length"]:
            yield f"has {len(masks)} masks, the video has {video['length']} frames"
        if sizes - {(video["height"], video["width"])}:
            yield f"masks are not {video['width']}x{video['height']} pixels like the video"
    elif len(sizes) > 1:
        yield "masks of one instance differ in size"
