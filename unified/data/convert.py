"""Large released files rewritten into an equal layout that loads faster and takes less memory."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from unified.data.catalog import data_root
from unified.data.formats.files import read_json, write_json
from unified.data.table import REFER_ROWS, read_mixed_folders, read_refer_folder
from unified.errors import ConfigError

MEVIS_SPLITS = {"mevis-train": "train", "mevis-val_u": "valid_u"}


def convert_dataset(name: str) -> Path:
    """Converts one dataset and returns what was written; its reader uses it from then on.

    The REFER pickles become UniRef's JSON, one file per split; the one file of all masks of MeViS
    becomes a file per annotation, so that training holds only those in use.

    Raises:
        ConfigError: the files of this dataset are read as fast as they are.
        InputError: a file to convert is missing or wrong.
    """
    root = data_root()
    if name in MEVIS_SPLITS:
        return _split_masks(root / "mevis" / MEVIS_SPLITS[name])
    annotations = root / "coco2014/annotations"
    if name == "refcoco-mixed":
        path = annotations / name / "instances_train.json"
        write_json(path, _referring_json(read_mixed_folders(root)))
        return path
    for row, (_, _, splits) in REFER_ROWS.items():
        for split in splits:
            if name == f"{row}-{split}" and not row.startswith("refclef"):
                path = annotations / row / f"instances_{split}.json"
                write_json(path, _referring_json(read_refer_folder(root, row, split)))
                return path
    raise ConfigError(
        f"{name} needs no conversion: only RefCOCO, RefCOCO+, RefCOCOg, gRefCOCO and MeViS do"
    )


def _split_masks(folder: Path) -> Path:
    masks = read_json(folder / "mask_dict.json", "run-length codes of every annotation")
    for anno_id, track in masks.items():
        write_json(folder / "mask_dict" / f"{anno_id}.json", track)
    return folder / "mask_dict"


def _referring_json(records: Any) -> dict[str, Any]:
    """UniRef's JSON: an image entry per reference, with its sentences and its objects."""
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for image_id, record in enumerate(records, start=1):
        images.append(
            {
                "id": image_id,
                "original_id": record["image_id"],
                "file_name": Path(record["file_name"]).name,
                "height": record["height"],
                "width": record["width"],
                "expressions": record["expressions"],
            }
        )
        for entry in record["annotations"]:
            fields = {key: entry[key] for key in ("bbox", "iscrowd", "segmentation")}
            annotations.append(
                {"id": len(annotations) + 1, "image_id": image_id, "category_id": 1, **fields}
            )
    categories = [{"id": 1, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}
