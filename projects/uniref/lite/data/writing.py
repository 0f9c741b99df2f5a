"""Writing the made sets as own data: a yaml per set, over files that sets share."""

from __future__ import annotations

import logging
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from projects.uniref.lite.data.referring import ReferringSet
from unified.data.formats.files import write_json
from unified.data.synthetic.writing import CocoFile, random_streams
from unified.errors import InputError
from unified.files import atomic_path
from unified.label_maps import write_mask

logger = logging.getLogger(__name__)

SET_SPLITS = {  # every set that may be written -> its split
    "lite_det": "train",
    "lite_det_composites": "train",
    "lite_det_val": "test",
    "lite_ris": "train",
    "lite_ris_real": "train",
    "lite_ris_val": "test",
    "lite_ris_class_val": "test",
    "lite_ris_absent_val": "test",
    "lite_fss": "train",
    "lite_fss_val": "test",
    "lite_vos": "train",
    "lite_vos_real": "train",
    "lite_vos_val": "test",
    "lite_rvos": "train",
    "lite_rvos_real": "train",
    "lite_rvos_val": "test",
}


class OwnWriter:
    """Writes sets below ``root/own``.

    Attributes:
        data: the folder of all files but the yaml ones.
        images: the folder of stored pictures and composites.
        summary: set -> what is in it.
    """

    def __init__(self, root: Path, seed: int) -> None:
        self.own = root / "own"
        self.data = self.own / "lite"
        self.images = self.data / "images"
        self.seed = seed
        self.summary: dict[str, Any] = {}

    def save_classes(
        self, name: str, classes: Mapping[str, Sequence[tuple[Path, np.ndarray]]], *, least: int
    ) -> None:
        """Writes the classes that have so many images; the summary counts the others.

        Raises:
            InputError: two classes would be one folder.
        """
        folder = self.data / name.removeprefix("lite_")
        usable = {key: members for key, members in classes.items() if len(members) >= least}
        count = sum(len(members) for members in usable.values())
        self.summary[name] = {
            "classes": len(usable),
            "images": count,
            f"left out, as they have fewer than {least} images": len(classes) - len(usable),
        }
        if not usable:
            logger.warning("%s is not written: no class has %d images", name, least)
            return
        for key, rng in zip(
            sorted(usable), random_streams(self.seed, f"composing/{name}", len(usable)), strict=True
        ):
            order = rng.permutation(len(usable[key]))
            for number, index in enumerate(order, start=1):
                path, mask = usable[key][index]
                target = folder / key.replace(" ", "_") / f"{number}.jpg"
                if target.exists():
                    raise InputError(f"two classes of {name} would be named {target.parent.name!r}")
                target.parent.mkdir(parents=True, exist_ok=True)
                _link(path, target)
                write_mask(target.with_suffix(".png"), mask)
        self._save_yaml(name, task="fss", images=folder)

    def save_clips(self, vos: str, rvos: str, folder: Path, videos: Mapping[str, Any]) -> None:
        files = {"images": folder / "frames", "masks": folder / "masks"}
        self._save_yaml(vos, task="vos", **files)
        if videos:
            path = folder / "meta_expressions.json"
            write_json(path, {"videos": dict(videos)})
            self._save_yaml(rvos, task="rvos", **files, expressions=path)

    def save_referring(self, name: str, referring: ReferringSet) -> None:
        self.save_coco(name, referring.coco, "ris")
        self.summary[name] = {
            "records": dict(sorted(referring.records.items())),
            "kinds": dict(sorted(referring.kinds.items())),
        }

    def save_coco(self, name: str, coco: CocoFile, task: str) -> None:
        path = self.data / f"{name}.json"
        write_json(path, {**coco.content(), "info": {"description": name}})
        self._save_yaml(name, task=task, images=self.images, annotations=path)

    def _save_yaml(self, name: str, *, task: str, **files: Path) -> None:
        lines = [f"task: {task}", f"split: {SET_SPLITS[name]}"]
        lines += [f"{key}: {path.relative_to(self.own).as_posix()}" for key, path in files.items()]
        with atomic_path(self.own / f"{name}.yaml") as temporary:
            temporary.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")


def _link(source: Path, target: Path) -> None:
    """A hard link to the file, or a copy where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
