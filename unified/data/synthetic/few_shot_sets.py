"""Writers of few-shot sets: FSS-1000, PASCAL-5i and COCO-20i.

A class is a kind of thing in one colour (FSS-1000: and with one texture).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from unified.data.synthetic.world import COLOURS, KINDS, TEXTURES, Scene, make_scene
from unified.data.synthetic.writing import (
    random_streams,
    save_jpeg,
    save_lines,
    save_pickle,
    split_size,
)
from unified.label_maps import write_label_map, write_mask

COCO_20I_IMAGE_ID = 600_000


def write_fss1000(root: Path, size: int, seed: int) -> None:
    """FSS-1000: ten pictures and masks per class folder, and the class lists of the splits."""
    classes = _shuffled(product(COLOURS, TEXTURES, KINDS))
    shares = {"trn": classes[:166], "val": classes[166:243], "test": classes[243:]}
    for split, names in shares.items():
        count = split_size("train" if split == "trn" else split, max(size // 10, 2))
        names = names[:count]
        save_lines(root / f"fss-1000/splits/{split}.txt", ["_".join(words) for words in names])
        for colour, texture, kind in names:
            name = f"{colour}_{texture}_{kind}"
            for number, rng in enumerate(random_streams(seed, f"fss/{name}", 10), start=1):
                scene = make_scene(rng, first=(kind, colour, texture), avoid=[(kind, colour)])
                image, labels = scene.draw()
                target = root / "fss-1000/images" / name / f"{number}.jpg"
                save_jpeg(target, image)
                write_mask(
                    target.with_suffix(".png"), class_map(scene, labels, [(kind, colour)]) > 0
                )


def write_pascal5i(root: Path, size: int, seed: int) -> None:
    """PASCAL-5i: VOC pictures, ``SegmentationClassAug`` with void edges, and fold lists."""
    classes = _shuffled(product(KINDS, COLOURS))[:20]
    order = [fold * 5 + number for number, fold in product(range(5), range(4))]
    for split, listed in (("train", "trn"), ("val", "val")):
        pictures = list(_write_classes(root, "pascal", split, size, seed, classes, order))
        for fold in range(4):
            used = [i for i in range(20) if (i // 5 == fold) == (split == "val")]
            members = _members(pictures, used)
            pairs = [f"{name}__{i + 1:02d}" for i, names in members.items() for name in names]
            save_lines(root / f"VOC2012/splits/{listed}/fold{fold}.txt", pairs)


def write_coco20i(root: Path, size: int, seed: int) -> None:
    """COCO-20i: COCO 2014 pictures, class maps as PNG, and fold lists as pickles."""
    classes = _shuffled(product(KINDS, COLOURS))
    order = list(range(80))
    for split, listed in (("train", "trn"), ("val", "val")):
        pictures = list(_write_classes(root, "coco", split, size, seed, classes, order))
        for fold in range(4):
            used = [i for i in range(80) if (i % 4 == fold) == (split == "val")]
            members = _members(pictures, used)
            files = {
                i: [f"{split}2014/{name}.jpg" for name in names] for i, names in members.items()
            }
            save_pickle(root / f"coco2014/splits/{listed}/fold{fold}.pkl", files)


def _members(
    pictures: Sequence[tuple[str, list[int]]], used: Sequence[int]
) -> dict[int, list[str]]:
    """class index -> names of the pictures that show it, of the used classes with two or more."""
    members: dict[int, list[str]] = {}
    for name, present in pictures:
        for index in set(used) & set(present):
            members.setdefault(index, []).append(name)
    return {index: names for index, names in sorted(members.items()) if len(names) > 1}


def _write_classes(
    root: Path,
    release: str,
    split: str,
    size: int,
    seed: int,
    classes: Sequence[tuple[str, str]],
    order: Sequence[int],
) -> Iterator[tuple[str, list[int]]]:
    """Writes pictures with class maps; yields their names and the class indices in them.

    Three pictures in a row show the same class, and classes follow ``order``, so that even a small
    set has several pictures of some class in every fold.
    """
    count = split_size(split, size, at_least=12)
    for number, rng in enumerate(random_streams(seed, f"{release}/{split}", count)):
        index = order[number // 3 % len(order)]
        scene = make_scene(rng, first=(*classes[index], None))
        image, labels = scene.draw()
        values = class_map(scene, labels, classes)
        if release == "pascal":
            name = f"2007_{number + (100_000 if split == 'train' else 0):06d}"
            picture = root / f"VOC2012/JPEGImages/{name}.jpg"
            mask = root / f"VOC2012/SegmentationClassAug/{name}.png"
            values[_edges(labels)] = 255
        else:
            name = f"COCO_{split}2014_{COCO_20I_IMAGE_ID + number:012d}"
            picture = root / f"coco2014/{split}2014/{name}.jpg"
            mask = root / f"coco2014/annotations/{split}2014/{name}.png"
        save_jpeg(picture, image)
        write_label_map(mask, values)
        yield name, [value - 1 for value in np.unique(values).tolist() if 0 < value < 255]


def class_map(scene: Scene, labels: np.ndarray, classes: Sequence[tuple[str, str]]) -> np.ndarray:
    """(H, W) uint8: 1 + position in ``classes`` of each pixel's (kind, colour), 0 elsewhere."""
    values = np.zeros(labels.shape, dtype=np.uint8)
    for label, thing in enumerate(scene.things, start=1):
        if (thing.kind, thing.colour) in classes:
            values[labels == label] = 1 + list(classes).index((thing.kind, thing.colour))
    return values


def _edges(labels: np.ndarray) -> np.ndarray:
    """(H, W) bool: pixels above or left of a pixel of another thing."""
    edges = np.zeros(labels.shape, dtype=bool)
    edges[:-1] |= labels[:-1] != labels[1:]
    edges[:, :-1] |= labels[:, :-1] != labels[:, 1:]
    return edges


def _shuffled(values: Iterator[Any]) -> list[Any]:
    """The same mixture at every call and for every seed, so that splits never share a class."""
    items = list(values)
    return [items[i] for i in np.random.default_rng(0).permutation(len(items))]
