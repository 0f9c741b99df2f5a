"""All sets for training and validation as own data, from labelled pictures and clips."""

from __future__ import annotations

import copy
import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from projects.uniref.lite.data.motion import PseudoClip, make_clip
from projects.uniref.lite.data.pictures import (
    COCO,
    COMPOSITES,
    MIN_CLASS_SHARE,
    PASTED,
    QUALITY,
    ObjectFolder,
    Picture,
    Scene,
    check_origins,
    read_coco,
)
from projects.uniref.lite.data.real_clips import copy_clip, read_davis_tree
from projects.uniref.lite.data.referring import (
    GROUP_CHANCE,
    MAX_OBJECTS,
    Cooccurrence,
    ReferringSet,
    add_thing,
    describe_clip,
)
from projects.uniref.lite.data.scenes import CutPool, compose, cut_out
from projects.uniref.lite.data.vocabulary import UNREFERRED
from projects.uniref.lite.data.writing import OwnWriter
from unified.data.formats.files import (
    image_files,
    read_json,
    write_json,
)
from unified.data.formats.referring_clips import read_meta_expressions
from unified.data.synthetic.writing import CocoFile, random_streams, save_jpeg
from unified.errors import InputError
from unified.label_maps import write_label_map

NUM_FRAMES = 6  # of a pseudo-clip
CLIP_SHARE, REGION_SHARE = 0.4, 0.25  # pseudo-clips and pseudo-classes per composite
REAL_STRIDE = 2  # of the frames of given clips that are trained on
MAX_COMPOSITES = 60  # per few-shot class
MIN_TEST_IMAGES = 6  # of a held-out class: a query and five supports
TEST_IMAGES = MIN_TEST_IMAGES + 1  # held out for each of them, if so many are


@dataclass(frozen=True)
class Options:
    """What to make of what: the options of ``datasets/prepare_lite.py``.

    Attributes:
        size: composites; pseudo-clips and pseudo-classes follow from it.
        longest_side: pixels of stored pictures.
    """

    coco_images: Path
    coco_annotations: Path
    objects: tuple[ObjectFolder, ...]
    clips: Path | None
    hold_out_images: int
    hold_out_classes: tuple[str, ...]
    hold_out_clips: tuple[str, ...]
    size: int
    longest_side: int
    seed: int

    def num_steps(self) -> int:
        """How often ``build_sets`` calls ``advance``."""
        images = read_json(self.coco_annotations, "COCO instances", ("images",))["images"]
        found = [len(image_files(f.path / "images", "pictures")) for f in self.objects]
        return 2 * (len(images) + sum(found)) + self.size + self.num_regions + self.num_clips

    @property
    def num_clips(self) -> int:
        """Pseudo-clips."""
        return round(CLIP_SHARE * self.size)

    @property
    def num_regions(self) -> int:
        """Pseudo-classes."""
        return round(REGION_SHARE * self.size)


def build_sets(options: Options, out: Path, advance: Callable[[], Any]) -> dict[str, Any]:
    """Writes every set below ``out/own`` and returns what is in them.

    Everything is made in a folder beside ``out`` that gets its name when all is written.

    Raises:
        InputError: ``out`` exists, two folders or pictures have one name, or something given is
            missing, damaged or does not fit.
    """
    if out.exists():
        raise InputError(f"{out} exists: give another --out, or delete it first")
    check_origins(options.objects)
    partial = out.with_name(f".{out.name}.{os.getpid()}.partial")
    try:
        writer = OwnWriter(partial, options.seed)
        pictures = []
        for picture in _read_pictures(options, writer.images):
            pictures.append(picture)
            advance()
        summary = Builder(options, writer, pictures, advance).build()
        os.replace(partial, out)
    except BaseException:
        shutil.rmtree(partial, ignore_errors=True)
        raise
    return summary


def _read_pictures(options: Options, images: Path) -> Iterator[Picture]:
    side = options.longest_side
    yield from read_coco(options.coco_images, options.coco_annotations, images, side)
    for folder in options.objects:
        yield from folder.read(images, side)


def _held_out(options: Options, coco: Sequence[Picture]) -> set[str]:
    """File names: some of every held-out class, the others drawn from all pictures."""
    wanted, classes = options.hold_out_images, options.hold_out_classes
    known = {name for picture in coco for name in picture.names}
    stray = sorted(set(classes) - known)
    if stray:
        raise InputError(
            f"--hold-out-classes has {stray[0]!r}, which {options.coco_annotations} does not show"
        )
    if wanted >= len(coco):
        raise InputError(f"--hold-out-images is {wanted}: there are {len(coco)} images")
    (rng,) = random_streams(options.seed, "composing/held out", 1)
    order = [coco[index] for index in rng.permutation(len(coco))]
    quota = min(TEST_IMAGES, int(0.7 * wanted / max(len(classes), 1)))
    held: dict[str, None] = {}
    for name in classes:
        showing = [p.file_name for p in order if p.class_mask(name) is not None]
        missing = quota - sum(file_name in held for file_name in showing)
        fresh = [file_name for file_name in showing if file_name not in held]
        held.update(dict.fromkeys(fresh[: max(missing, 0)]))
    rest = [p.file_name for p in order if p.file_name not in held]
    held.update(dict.fromkeys(rest[: wanted - len(held)]))
    return set(held)


class Builder:
    """Writes the sets one after another; later ones use the pictures of earlier ones."""

    def __init__(
        self,
        options: Options,
        writer: OwnWriter,
        pictures: Sequence[Picture],
        advance: Callable[[], Any],
    ) -> None:
        self.options = options
        self.out = writer
        self.images = writer.images
        self.advance = advance
        self.pictures = pictures
        held = _held_out(options, [p for p in pictures if p.origin == COCO])
        self.held = [p for p in pictures if p.file_name in held]
        self.train = [p for p in pictures if p.file_name not in held]
        names = sorted({name for picture in pictures for name in picture.names if name})
        self.categories = {name: number for number, name in enumerate(names, start=1)}
        self.cooccurrence = Cooccurrence(p.names for p in self.train if p.origin == COCO)
        self.cuts = CutPool(self.train)
        self.few_shot: dict[str, list[tuple[Path, np.ndarray]]] = {}

    def build(self) -> dict[str, Any]:
        """Everything; returns set -> what is in it."""
        self._detection("lite_det", [p for p in self.train if p.origin == COCO])
        self._detection("lite_det_val", self.held)
        self._referring()
        self._referring_val()
        self._few_shot()
        self._clips()
        write_json(self.out.data / "summary.json", self.out.summary)
        return self.out.summary

    def _counted(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            yield item
            self.advance()

    def _streams(self, name: str, count: int) -> Iterator[np.random.Generator]:
        return random_streams(self.options.seed, f"composing/{name}", count)

    def _detection(self, name: str, pictures: Sequence[Picture]) -> None:
        """All instances of COCO pictures."""
        coco = CocoFile({number: name for name, number in self.categories.items()})
        for picture in pictures:
            image_id = coco.add_image(picture.file_name, picture.size)
            for thing in picture.scene().things:
                add_thing(coco, self.categories, image_id, thing)
        self.out.save_coco(name, coco, "detection")
        self.out.summary[name] = {"images": len(coco.images), "objects": len(coco.annotations)}

    def _referring(self) -> None:
        """RIS for training, of all and of given pictures, and composites for detection."""
        every, real = (ReferringSet(self.categories, self.cooccurrence) for _ in range(2))
        composites = CocoFile({number: name for name, number in self.categories.items()})
        held = {picture.file_name for picture in self.held}
        rngs = self._streams("real sentences", len(self.pictures))
        for picture, rng in zip(self._counted(self.pictures), rngs, strict=True):
            if picture.file_name not in held and any(picture.names):
                again, scene = copy.deepcopy(rng), picture.scene()
                whole = picture.origin == COCO
                self._refer(every, picture.file_name, scene, rng, whole=whole)
                self._refer(real, picture.file_name, scene, again, whole=whole)
        backgrounds = [p for p in self.train if p.origin == COCO]
        streams = self._streams("composites", self.options.size)
        for number, rng in enumerate(self._counted(streams)):
            scene = self._composite(backgrounds, rng)
            file_name = f"{COMPOSITES}/{number:06d}.jpg"
            save_jpeg(self.images / file_name, scene.image, quality=QUALITY)
            self._refer(every, file_name, scene, rng)
            self._composite_samples(self.images / file_name, scene)
            image_id = composites.add_image(file_name, scene.size)
            for thing in scene.things:
                if thing.referable or thing.crowd:
                    add_thing(composites, self.categories, image_id, thing)
        self.out.save_referring("lite_ris", every)
        self.out.save_referring("lite_ris_real", real)
        self.out.save_coco("lite_det_composites", composites, "detection")

    def _refer(
        self,
        referring: ReferringSet,
        file_name: str,
        scene: Scene,
        rng: np.random.Generator,
        *,
        whole: bool = True,
    ) -> None:
        """Adds a picture; ``whole``: absent things are named freely, as all that is there is known.

        Where only some classes are annotated, the few that are known to be absent would be named
        too often.
        """
        referring.add_objects(file_name, scene, rng, limit=MAX_OBJECTS if whole else 3)
        if rng.random() < GROUP_CHANCE:
            referring.add_group(file_name, scene, rng)
        most = 3 if whole else int(rng.random() < 0.3)
        referring.add_absent(file_name, scene, rng, count=min(referring.missing_absent(), most))

    def _composite(self, backgrounds: Sequence[Picture], rng: np.random.Generator) -> Scene:
        background = backgrounds[int(rng.integers(len(backgrounds)))].scene()
        present = [thing.name for thing in background.things if thing.referable]
        cutouts = [
            self.cuts.draw(rng, like=present)
            for _ in range(int(rng.choice([1, 2, 3, 4], p=[0.35, 0.35, 0.2, 0.1])))
        ]
        return compose(background, cutouts, rng)

    def _referring_val(self) -> None:
        """Three sets of held-out pictures: any sentence, class names, and absent things."""
        sets = {
            name: ReferringSet(self.categories, self.cooccurrence)
            for name in ("lite_ris_val", "lite_ris_class_val", "lite_ris_absent_val")
        }
        for picture, rng in zip(
            self.held, self._streams("held-out sentences", len(self.held)), strict=True
        ):
            scene = picture.scene()
            sets["lite_ris_val"].add_objects(picture.file_name, scene, rng)
            sets["lite_ris_class_val"].add_class_names(picture.file_name, scene)
            sets["lite_ris_absent_val"].add_absent(picture.file_name, scene, rng, count=2)
        for name, referring in sets.items():
            if sum(referring.records.values()):
                self.out.save_referring(name, referring)

    def _composite_samples(self, path: Path, scene: Scene) -> None:
        """Few-shot samples of the classes seen in a composite."""
        names = {thing.name for thing in scene.things}
        for name in sorted(names - set(self.options.hold_out_classes)):
            things = [thing for thing in scene.things if thing.name == name]
            merged = np.any([thing.mask for thing in things], axis=0)
            if any(thing.crowd for thing in things) or merged.mean() < MIN_CLASS_SHARE:
                continue
            members = self.few_shot.setdefault(f"coco_{name}", [])
            if len(members) < MAX_COMPOSITES:
                members.append((path, merged))

    def _few_shot(self) -> None:
        """Class folders: real pictures, composites and pseudo-classes; held-out classes apart."""
        unwanted = {*UNREFERRED, *self.options.hold_out_classes, ""}
        train = dict(self.few_shot)
        for picture in self.train:
            for name in sorted(set(picture.names) - unwanted):
                mask = picture.class_mask(name)
                if mask is not None:
                    label = picture.breeds[0] if picture.breeds else name
                    key = f"{picture.origin}_{label}"
                    train.setdefault(key, []).append((picture.path, mask))
        train.update(self._pseudo_classes())
        self.out.save_classes("lite_fss", train, least=2)
        val: dict[str, list[tuple[Path, np.ndarray]]] = {}
        for name in self.options.hold_out_classes:
            masks = ((picture.path, picture.class_mask(name)) for picture in self.held)
            val[f"coco_{name}"] = [(path, mask) for path, mask in masks if mask is not None]
        self.out.save_classes("lite_fss_val", val, least=MIN_TEST_IMAGES)

    def _pseudo_classes(self) -> Iterator[tuple[str, list[tuple[Path, np.ndarray]]]]:
        """A region or a single instance in its picture, and pasted, bent, on two others."""
        held = set(self.options.hold_out_classes)
        streams = self._streams("pseudo-classes", self.options.num_regions)
        for number, rng in enumerate(self._counted(streams)):
            picture, index = self.cuts.pick(rng, regions=rng.random() < 0.6, single=True)
            if picture.names[index] in held:
                continue
            cutout = cut_out(picture.scene(), index)
            members = [(picture.path, picture.mask(index))]
            for turn in range(2):
                background = self.train[int(rng.integers(len(self.train)))].scene()
                clip = make_clip(background, (), [cutout], rng, 1)
                mask = clip.label_maps[0] == 1
                if mask.mean() >= MIN_CLASS_SHARE:
                    path = self.images / f"{PASTED}/{number:06d}_{turn}.jpg"
                    save_jpeg(path, clip.images[0], quality=QUALITY)
                    members.append((path, mask))
            yield f"region_{number:06d}", members

    def _clips(self) -> None:
        """Pseudo-clips and given clips for VOS, and those that can be described for RVOS."""
        folder = self.out.data / "clips"
        videos: dict[str, Any] = {}
        kinds: Counter[str] = Counter()
        for number, rng in enumerate(self._counted(self._streams("clips", self.options.num_clips))):
            clip = self._pseudo_clip(rng)
            name = f"pseudo_{number:06d}"
            for frame, (image, labels) in enumerate(zip(clip.images, clip.label_maps, strict=True)):
                save_jpeg(folder / f"frames/{name}/{frame:05d}.jpg", image, quality=QUALITY)
                write_label_map(folder / f"masks/{name}/{frame:05d}.png", labels)
            expressions = describe_clip(clip, rng, kinds)
            if expressions:
                frames = [f"{frame:05d}" for frame in range(len(clip.images))]
                videos[name] = {"frames": frames, "expressions": expressions}
        pseudo = len(videos)
        if self.options.clips is not None:
            self._real_clips(self.options.clips, folder, videos)
        self.out.save_clips("lite_vos", "lite_rvos", folder, videos)
        self.out.summary["lite_vos"] = {"pseudo-clips": self.options.num_clips}
        sentences = sum(len(video["expressions"]) for video in videos.values())
        self.out.summary["lite_rvos"] = {
            "clips": len(videos),
            "pseudo-clips": pseudo,
            "sentences": sentences,
            "kinds": dict(sorted(kinds.items())),
        }

    def _pseudo_clip(self, rng: np.random.Generator) -> PseudoClip:
        origins = sorted({picture.origin for picture in self.train})
        weights = np.array([3.0 if origin == COCO else 1.0 for origin in origins])
        for _ in range(20):
            origin = origins[int(rng.choice(len(origins), p=weights / weights.sum()))]
            choices = [picture for picture in self.train if picture.origin == origin]
            picture = choices[int(rng.integers(len(choices)))]
            background = picture.scene()
            tracked = _trackable(background, rng)
            number = int(rng.choice([0, 1, 2, 3], p=[0.25, 0.35, 0.25, 0.15]))
            number = max(number, 0 if tracked else 1)
            cutouts = [self.cuts.draw(rng, regions=rng.random() < 0.2) for _ in range(number)]
            clip = make_clip(background, tracked, cutouts, rng, NUM_FRAMES)
            if any(labels.any() for labels in clip.label_maps):
                return clip
        raise InputError("20 pseudo-clips in a row show no object: the masks given are too small")

    def _real_clips(self, root: Path, folder: Path, videos: dict[str, Any]) -> None:
        """Given clips: those trained on resized and thinned out, those held out as they are."""
        records = read_davis_tree(root)
        stray = sorted(set(self.options.hold_out_clips) - {r["clip_id"] for r in records})
        if stray:
            raise InputError(f"--hold-out-clips has {stray[0]!r}, which {root} does not have")
        sentences = root / "meta_expressions.json"
        described = read_meta_expressions(sentences) if sentences.exists() else {}
        held: dict[str, Any] = {}
        real: dict[str, Any] = {}
        side = self.options.longest_side
        for record in records:
            name = record["clip_id"]
            if name in self.options.hold_out_clips:
                copy_clip(record, folder.with_name("clips_val"), 1, None)
                held.update({name: described[name]} if name in described else {})
                continue
            for target in (folder, folder.with_name("clips_real")):
                copy_clip(record, target, REAL_STRIDE, side)
            if name in described:
                kept = set(record["frame_names"][::REAL_STRIDE])
                frames = [frame for frame in described[name]["frames"] if frame in kept]
                real[name] = {**described[name], "frames": frames}
        videos.update(real)
        for kind, found in (("real", real), ("val", held)):
            target = folder.with_name(f"clips_{kind}")
            if target.exists():
                self.out.save_clips(f"lite_vos_{kind}", f"lite_rvos_{kind}", target, found)
                count = len(list((target / "masks").iterdir()))
                self.out.summary[f"lite_vos_{kind}"] = {"clips": count}


def _trackable(scene: Scene, rng: np.random.Generator) -> list[int]:
    """Up to three things of a background that are followed, none at times."""
    usable = [
        index
        for index, thing in enumerate(scene.things)
        if not thing.crowd and thing.name not in UNREFERRED and 0.008 < thing.mask.mean() < 0.5
    ]
    if not usable or rng.random() < 0.15:
        return []
    number = min(len(usable), int(rng.integers(1, 4)))
    return sorted(rng.choice(usable, number, replace=False).tolist())
