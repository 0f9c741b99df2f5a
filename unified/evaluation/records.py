"""Ground truth of the catalog's records, as the scoring wants it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from unified.data.formats.records import (
    Record,
    annotation_mask,
    frame_labels,
    frame_masks,
    target_mask,
)
from unified.label_maps import encode_mask


@dataclass(frozen=True)
class RecordTruth:
    """Ground truth of a clip record by frame name: a label map, or the target of its sentence."""

    record: Record
    sentence: bool

    def __call__(self, frame: str) -> NDArray[np.uint8]:
        record: Any = self.record
        index = record["frame_names"].index(frame)
        if self.sentence:
            return target_mask(record, index).astype(np.uint8)
        if "tracks" not in record:
            labels = frame_labels(record, index)
            assert labels is not None, "only annotated frames are asked for"
            return labels
        label_map = np.zeros((record["height"], record["width"]), np.uint8)
        for number, mask in frame_masks(record, index).items():
            label_map[mask] = number
        return label_map


def annotated_frames(record: Record) -> list[int]:
    """Indices of the frames that have ground truth."""
    if "tracks" in record:
        return list(range(len(record["frame_names"])))
    files = record.get("mask_files", ())
    return [index for index, path in enumerate(files) if path is not None]


def coco_truth(records: Sequence[Record], classes: Sequence[str] | None) -> dict[str, Any]:
    """COCO instances of records; areas are those of the masks, or of boxes without masks."""
    annotations: list[dict[str, Any]] = []
    for record in records:
        size = record["height"], record["width"]
        for entry in record["annotations"]:
            mask = annotation_mask(entry, *size)
            code = {} if mask is None else {"segmentation": encode_mask(mask)}
            area = entry["bbox"][2] * entry["bbox"][3] if mask is None else int(mask.sum())
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": record["image_id"],
                    "category_id": entry["category_id"],
                    "bbox": list(entry["bbox"]),
                    "area": area,
                    "iscrowd": entry.get("iscrowd", 0),
                    **code,
                }
            )
    ids = sorted({entry["category_id"] for entry in annotations})
    names = dict(enumerate(classes or ()))
    return {
        "images": [
            {"id": r["image_id"], "height": r["height"], "width": r["width"]} for r in records
        ],
        "categories": [{"id": i, "name": names.get(i, str(i))} for i in ids],
        "annotations": annotations,
    }
