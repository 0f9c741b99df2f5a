"""Writers of COCO 2017, with objects or with captions, and of Objects365 v2.

Each function writes one release below ``root``: the training split has ``size`` pictures.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified.data.formats.files import write_json
from unified.data.synthetic.sentences import captions
from unified.data.synthetic.world import KINDS, Scene, make_scene
from unified.data.synthetic.writing import (
    CocoFile,
    random_streams,
    save_jpeg,
    split_size,
)

CATEGORIES = dict(enumerate(KINDS, start=1))
CATEGORY_IDS = {kind: number for number, kind in CATEGORIES.items()}
CAPTIONED_IMAGE_ID = 600_000
CAPTIONS_PER_PICTURE = 5


def write_coco(root: Path, size: int, seed: int) -> None:
    """COCO 2017: ``coco/{train2017,val2017}`` and ``coco/annotations``."""
    for split in ("train", "val"):
        coco = CocoFile(CATEGORIES)
        for rng in random_streams(seed, f"coco/{split}", split_size(split, size)):
            name = f"{coco.next_image_id():012d}.jpg"
            add_scene(coco, make_scene(rng), root / f"coco/{split}2017", name)
        write_json(root / f"coco/annotations/instances_{split}2017.json", coco.content())


def write_captions(root: Path, size: int, seed: int) -> None:
    """Captions of COCO 2017 in its folders, with pictures of their own."""
    for split in ("train", "val"):
        coco = CocoFile({}, first_image_id=CAPTIONED_IMAGE_ID)
        annotations: list[dict[str, Any]] = []
        for rng in random_streams(seed, f"coco_captions/{split}", split_size(split, size)):
            scene = make_scene(rng)
            name = f"{coco.next_image_id():012d}.jpg"
            save_jpeg(root / f"coco/{split}2017" / name, scene.draw()[0])
            image_id = coco.add_image(name, scene.size)
            for text in captions(scene, rng, CAPTIONS_PER_PICTURE):
                sentence = f"{text[:1].upper()}{text[1:]}."
                number = 10 * CAPTIONED_IMAGE_ID + len(annotations)
                annotations.append({"image_id": image_id, "id": number, "caption": sentence})
        content = {**coco.content(), "annotations": annotations}
        del content["categories"]
        write_json(root / f"coco/annotations/captions_{split}2017.json", content)


def write_objects365(root: Path, size: int, seed: int) -> None:
    """Objects365 v2: boxes only, files below ``images/v2/patch<n>``."""
    folder = root / "Objects365V2"
    for split in ("train", "val"):
        coco = CocoFile(CATEGORIES)
        for rng in random_streams(seed, f"objects365/{split}", split_size(split, size)):
            name = (
                f"images/v2/patch{int(split == 'val')}/objects365_v2_{coco.next_image_id():08d}.jpg"
            )
            add_scene(coco, make_scene(rng), folder, name)
        for annotation in coco.annotations:
            del annotation["segmentation"]
        write_json(folder / f"annotations/zhiyuan_objv2_{split}_new.json", coco.content())


def add_scene(coco: CocoFile, scene: Scene, folder: Path, name: str) -> dict[int, int]:
    """Saves the picture and adds it; returns label -> annotation id of its visible things."""
    image, labels = scene.draw()
    save_jpeg(folder / name, image)
    image_id = coco.add_image(name, scene.size)
    return {
        label: coco.add_object(image_id, labels == label, CATEGORY_IDS[thing.kind])
        for label, thing in enumerate(scene.things, start=1)
        if (labels == label).any()
    }
