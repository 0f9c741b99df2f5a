"""Writers of clip sets with masks: YouTube-VOS, DAVIS, LVOS, MOSE and OVIS.

Each function writes one release below ``root``: the training split has ``size`` clips.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.formats.files import write_json
from unified.data.synthetic.coco_sets import CATEGORIES, CATEGORY_IDS
from unified.data.synthetic.world import COLOURS, Scene, make_scene
from unified.data.synthetic.writing import (
    CocoFile,
    box_xywh,
    random_streams,
    save_jpeg,
    save_lines,
    split_size,
)
from unified.label_maps import encode_mask, write_label_map, write_mask

NUM_FRAMES = 8
LVOS_NUM_FRAMES, LVOS_STEP = 16, 5
UNSEEN_KINDS = ("moon", "bar")  # in no training clip of YouTube-VOS


@dataclass(frozen=True)
class Clip:
    """A drawn scene.

    Attributes:
        name: of its folder.
        frame_names: T file names without suffix.
        images: T x (H, W, 3) uint8.
        label_maps: T x (H, W) uint8; pixel = label in the scene.
        rng: what is left of the clip's own stream.
    """

    name: str
    scene: Scene
    frame_names: tuple[str, ...]
    images: tuple[np.ndarray, ...]
    label_maps: tuple[np.ndarray, ...]
    rng: np.random.Generator

    def frames_of(self) -> dict[int, list[str]]:
        """label -> names of the frames in which the thing is visible; never seen ones left out."""
        result: dict[int, list[str]] = {}
        for name, labels in zip(self.frame_names, self.label_maps, strict=True):
            for label in np.unique(labels[labels > 0]).tolist():
                result.setdefault(label, []).append(name)
        return dict(sorted(result.items()))

    def kind(self, label: int) -> str:
        """The kind of the thing with this label."""
        return self.scene.things[label - 1].kind

    def save_images(self, folder: Path) -> None:
        """Writes ``folder/<clip>/<frame>.jpg``."""
        for name, image in zip(self.frame_names, self.images, strict=True):
            save_jpeg(folder / self.name / f"{name}.jpg", image)

    def save_label_maps(self, folder: Path, ids: Mapping[int, int] | None = None) -> None:
        """Writes ``folder/<clip>/<frame>.png``, with other ids for the labels if given."""
        for name, labels in zip(self.frame_names, self.label_maps, strict=True):
            write_label_map(folder / self.name / f"{name}.png", relabel(labels, ids))


def relabel(labels: np.ndarray, ids: Mapping[int, int] | None) -> np.ndarray:
    """The label map (H, W) with label -> id, and 0 for labels that ``ids`` lacks."""
    if ids is None:
        return labels
    table = np.zeros(256, dtype=np.uint8)
    for label, number in ids.items():
        table[label] = number
    return table[labels]


def make_clips(
    seed: int,
    stream: str,
    count: int,
    *,
    num_frames: int = NUM_FRAMES,
    frame_name: str = "{:05d}",
    step: int = 1,
    start: int = 0,
    without_kinds: tuple[str, ...] = (),
) -> Iterator[Clip]:
    """``count`` clips of one random stream, named by words that differ between streams."""
    avoid = list(product(without_kinds, COLOURS))
    for number, rng in enumerate(random_streams(seed, stream, count)):
        scene = make_scene(rng, num_frames=num_frames, avoid=avoid)
        drawn = [scene.draw(frame) for frame in range(num_frames)]
        yield Clip(
            name=f"{stream.split('/')[-1]}{number:04d}",
            scene=scene,
            frame_names=tuple(frame_name.format(start + step * t) for t in range(num_frames)),
            images=tuple(image for image, _ in drawn),
            label_maps=tuple(labels for _, labels in drawn),
            rng=rng,
        )


def write_ytbvos(root: Path, size: int, seed: int, year: int) -> None:
    """YouTube-VOS: in ``valid`` only frames where objects first appear have an annotation."""
    for split in ("train", "valid"):
        folder = root / f"ytbvos{year}" / split
        videos = {}
        clips = make_clips(
            seed,
            f"ytbvos{year}/{split}",
            split_size(split, size),
            step=5,
            without_kinds=UNSEEN_KINDS if split == "train" else (),
        )
        for clip in clips:
            clip.save_images(folder / "JPEGImages")
            if split == "train":
                clip.save_label_maps(folder / "Annotations")
            else:
                _save_first_appearances(clip, folder / "Annotations")
            videos[clip.name] = {"objects": youtube_objects(clip)}
        write_json(folder / "meta.json", {"videos": videos})


def youtube_objects(clip: Clip) -> dict[str, dict[str, object]]:
    """The ``objects`` of a clip in meta.json."""
    return {
        str(label): {"category": clip.kind(label), "frames": names}
        for label, names in clip.frames_of().items()
    }


def _save_first_appearances(clip: Clip, folder: Path) -> None:
    known: set[int] = set()
    for name, labels in zip(clip.frame_names, clip.label_maps, strict=True):
        fresh = set(np.unique(labels).tolist()) - known - {0}
        if fresh:
            values = relabel(labels, {label: label for label in fresh})
            write_label_map(folder / clip.name / f"{name}.png", values)
        known |= fresh


def write_davis17(root: Path, size: int, seed: int) -> None:
    """DAVIS 2017: semi-supervised and unsupervised annotations, and test-dev's first frames."""
    folder = root / "DAVIS"
    for split in ("train", "val", "test-dev"):
        names = []
        for clip in make_clips(seed, f"davis17/{split}", split_size(split, size)):
            names.append(clip.name)
            clip.save_images(folder / "JPEGImages/480p")
            first = np.unique(clip.label_maps[0][clip.label_maps[0] > 0]).tolist()
            ids = {label: number for number, label in enumerate(first, start=1)}
            if split == "test-dev":
                target = folder / f"Annotations/480p/{clip.name}/{clip.frame_names[0]}.png"
                write_label_map(target, relabel(clip.label_maps[0], ids))
                continue
            clip.save_label_maps(folder / "Annotations/480p", ids)
            clip.save_label_maps(folder / "Annotations_unsupervised/480p", davis_ids(clip))
        save_lines(folder / f"ImageSets/2017/{split}.txt", names)


def davis_ids(clip: Clip) -> dict[int, int]:
    """label -> id 1, 2, ... of all things that are ever visible."""
    return {label: number for number, label in enumerate(clip.frames_of(), start=1)}


def write_davis16(root: Path, size: int, seed: int) -> None:
    """DAVIS 2016: one object per sequence, as a grey image of 0 and 255."""
    folder = root / "DAVIS2016"
    for split in ("train", "val"):
        names = []
        for clip in make_clips(seed, f"davis16/{split}", split_size(split, size)):
            names.append(clip.name)
            clip.save_images(folder / "JPEGImages/480p")
            front = int(clip.label_maps[0].max())
            for name, labels in zip(clip.frame_names, clip.label_maps, strict=True):
                write_mask(folder / f"Annotations/480p/{clip.name}/{name}.png", labels == front)
        save_lines(folder / f"ImageSets/2016/{split}.txt", names)


def write_lvos(root: Path, size: int, seed: int, version: int) -> None:
    """LVOS: frames numbered from 1, every fifth annotated, frame ranges in the meta file."""
    release = root / ("lvos" if version == 1 else "lvos_v2")
    for split in ("train", "valid"):
        folder, videos = release / split, {}
        clips = make_clips(
            seed,
            f"lvos{version}/{split}",
            split_size(split, size),
            num_frames=LVOS_NUM_FRAMES,
            frame_name="{:08d}",
            start=1,
        )
        for clip in clips:
            clip.save_images(folder / "JPEGImages")
            annotated = range(0, LVOS_NUM_FRAMES, LVOS_STEP)
            for t in annotated:
                target = folder / f"Annotations/{clip.name}/{clip.frame_names[t]}.png"
                write_label_map(target, clip.label_maps[t])
            videos[clip.name] = {"objects": _lvos_objects(clip, annotated)}
        write_json(folder / f"{split}_meta.json", {"videos": videos})
        if split == "valid":
            save_lines(release / "unseen_videos.txt", list(videos)[::2])


def _lvos_objects(clip: Clip, annotated: range) -> dict[str, dict[str, dict[str, str]]]:
    """First annotated frame of each object, the end one step after its last, and their number."""
    objects = {}
    for label in sorted({int(v) for t in annotated for v in np.unique(clip.label_maps[t]) if v}):
        present = [t for t in annotated if (clip.label_maps[t] == label).any()]
        start, end = present[0] + 1, present[-1] + 1 + LVOS_STEP
        number = (end - start) // LVOS_STEP
        bounds = {"start": f"{start:08d}", "end": f"{end:08d}", "frame_nums": str(number)}
        objects[str(label)] = {"frame_range": bounds}
    return objects


def write_mose(root: Path, size: int, seed: int, version: int) -> None:
    """MOSE: like YouTube-VOS without meta.json; ``valid`` has the first frame's masks only."""
    release = root / ("mose" if version == 1 else "mose_v2")
    for split in ("train", "valid"):
        folder = release / split
        for clip in make_clips(seed, f"mose{version}/{split}", split_size(split, size)):
            clip.save_images(folder / "JPEGImages")
            if split == "train":
                clip.save_label_maps(folder / "Annotations")
            else:
                target = folder / f"Annotations/{clip.name}/{clip.frame_names[0]}.png"
                write_label_map(target, clip.label_maps[0])


def write_ovis(root: Path, size: int, seed: int) -> None:
    """OVIS: YouTube-VIS style JSON with a run-length code, or null, per frame."""
    videos: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    clips = make_clips(seed, "ovis/train", size, frame_name="img_{:07d}", start=1)
    for video_id, clip in enumerate(clips, start=1):
        clip.save_images(root / "ovis/train")
        height, width = clip.scene.size
        size_entry = {"height": height, "width": width, "length": len(clip.frame_names)}
        names = [f"{clip.name}/{name}.jpg" for name in clip.frame_names]
        videos.append({"id": video_id, "file_names": names, **size_entry})
        for label in clip.frames_of():
            masks = [labels == label for labels in clip.label_maps]
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "video_id": video_id,
                    "category_id": CATEGORY_IDS[clip.kind(label)],
                    "segmentations": [encode_mask(m) if m.any() else None for m in masks],
                    "bboxes": [box_xywh(mask) if mask.any() else None for mask in masks],
                    "areas": [int(mask.sum()) if mask.any() else None for mask in masks],
                    "iscrowd": 0,
                    **size_entry,
                }
            )
    categories = CocoFile(CATEGORIES).categories
    content = {"videos": videos, "annotations": annotations, "categories": categories}
    write_json(root / "ovis/annotations/train.json", content)
