"""The made releases by name; the catalog says which release a dataset belongs to."""

from __future__ import annotations

from collections.abc import Callable
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
    "objects365": coco_sets.write_objects365,
    "refer": refer_sets.write_refer,
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
