"""The made releases by name; the catalog says which release a dataset belongs to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path

from unified.data.synthetic import (
    clip_sets,
    coco_sets,
    few_shot_sets,
    refer_sets,
    referring_clip_sets,
)

Writer = Callable[[Path, int, int], None]  # root, pictures or clips in the training split, seed

RELEASES: dict[str, Writer] = {
    "coco": coco_sets.write_coco,
    "coco_captions": coco_sets.write_captions,
    "objects365": coco_sets.write_objects365,
    "refcoco": partial(refer_sets.write_refer, dataset="refcoco"),
    "refcocoplus": partial(refer_sets.write_refer, dataset="refcoco+"),
    "refcocog": partial(refer_sets.write_refer, dataset="refcocog"),
    "refclef": partial(refer_sets.write_refer, dataset="refclef"),
    "refcoco_mixed": refer_sets.write_mixed,
    "grefcoco": refer_sets.write_grefcoco,
    "fss1000": few_shot_sets.write_fss1000,
    "pascal5i": few_shot_sets.write_pascal5i,
    "coco20i": few_shot_sets.write_coco20i,
    "ytbvos18": partial(clip_sets.write_ytbvos, year=18),
    "ytbvos19": partial(clip_sets.write_ytbvos, year=19),
    "davis16": clip_sets.write_davis16,
    "davis17": clip_sets.write_davis17,
    "lvos": partial(clip_sets.write_lvos, version=1),
    "lvos_v2": partial(clip_sets.write_lvos, version=2),
    "mose": partial(clip_sets.write_mose, version=1),
    "mose_v2": partial(clip_sets.write_mose, version=2),
    "ovis": clip_sets.write_ovis,
    "refytvos": referring_clip_sets.write_refytvos,
    "refdavis": referring_clip_sets.write_refdavis,
    "mevis": referring_clip_sets.write_mevis,
}

# release -> releases that it writes as well
CONTAINS = {
    "refcoco_mixed": ("refcoco", "refcocoplus", "refcocog"),
    "refdavis": ("davis17",),
}


def write_releases(names: Iterable[str], root: Path, size: int, seed: int) -> Iterator[str]:
    """Writes each release once and yields its name."""
    wanted = dict.fromkeys(names)
    contained = {part for name in wanted for part in CONTAINS.get(name, ())}
    for name in wanted:
        if name not in contained:
            RELEASES[name](root, size, seed)
            yield name
