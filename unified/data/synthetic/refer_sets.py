"""Writers of the RefCOCO family in REFER layout and UniRef JSON, and of gRefCOCO."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from unified.data.formats.files import write_json
from unified.data.synthetic.coco_sets import CATEGORIES, CATEGORY_IDS, add_scene
from unified.data.synthetic.sentences import (
    ATTRIBUTES,
    Sentence,
    absent_sentences,
    group_sentences,
    sentences,
)
from unified.data.synthetic.world import KINDS, make_scene
from unified.data.synthetic.writing import (
    CocoFile,
    random_streams,
    save_pickle,
    split_size,
)

STILL = tuple(name for name in ATTRIBUTES if name != "motion")
WITHOUT_PLACE = tuple(name for name in STILL if name != "place")
REFER_SPLITS: dict[str, dict[str, tuple[str, ...]]] = {
    "refcoco": {"unc": ("train", "val", "testA", "testB"), "google": ("train", "val", "test")},
    "refcoco+": {"unc": ("train", "val", "testA", "testB")},
    "refcocog": {"umd": ("train", "val", "test"), "google": ("train", "val")},
    "refclef": {"unc": ("train", "val", "testA", "testB"), "berkeley": ("train", "val", "test")},
}
REFER_IMAGE_IDS = {"refcoco": 100_000, "refcoco+": 200_000, "refcocog": 300_000, "refclef": 400_000}
GREFCOCO_IMAGE_ID = 500_000
JSON_FOLDERS = {
    ("refcoco", "unc"): "refcoco-unc",
    ("refcoco+", "unc"): "refcocoplus-unc",
    ("refcocog", "umd"): "refcocog-umd",
}


def write_refer(root: Path, size: int, seed: int, dataset: str) -> None:
    """One of RefCOCO, RefCOCO+, RefCOCOg and RefCLEF as REFER folder, all but the last as JSON."""
    _write_refer_set(root, dataset, size, seed)


def write_mixed(root: Path, size: int, seed: int) -> None:
    """RefCOCO, RefCOCO+ and RefCOCOg, and the JSON of their training sets together."""
    mixed = CocoFile({1: "object"})
    for dataset, split_by in JSON_FOLDERS:
        coco, refs = _write_refer_set(root, dataset, size, seed)
        _add_entries(mixed, coco, list(_resplit(refs, REFER_SPLITS[dataset][split_by])), "train")
    write_json(root / "coco2014/annotations/refcoco-mixed/instances_train.json", mixed.content())


def _write_refer_set(
    root: Path, dataset: str, size: int, seed: int
) -> tuple[CocoFile, list[dict[str, Any]]]:
    """Writes one dataset; returns its instances and references."""
    coco = CocoFile(CATEGORIES, first_image_id=REFER_IMAGE_IDS[dataset])
    folder = root / "coco2014/train2014"
    if dataset == "refclef":
        folder = root / "refer/images/saiapr_tc-12"
    attributes = WITHOUT_PLACE if dataset == "refcoco+" else STILL
    refs: list[dict[str, Any]] = []
    for split in next(iter(REFER_SPLITS[dataset].values())):
        for rng in random_streams(seed, f"{dataset}/{split}", split_size(split, size)):
            name = _refer_file_name(dataset, coco.next_image_id())
            scene = make_scene(rng)
            ann_ids = add_scene(coco, scene, folder, name)
            for label, phrases in sentences(scene, rng, attributes=attributes).items():
                kind = scene.things[label - 1].kind
                refs.append(_ref_entry(coco, refs, [ann_ids[label]], [kind], phrases, split))
    write_json(root / "refer" / dataset / "instances.json", coco.content())
    for split_by, splits in REFER_SPLITS[dataset].items():
        chosen = list(_resplit(refs, splits))
        save_pickle(root / "refer" / dataset / f"refs({split_by}).p", chosen)
        for split in splits if (dataset, split_by) in JSON_FOLDERS else ():
            single = CocoFile({1: "object"})
            _add_entries(single, coco, chosen, split)
            target = root / "coco2014/annotations" / JSON_FOLDERS[dataset, split_by]
            write_json(target / f"instances_{split}.json", single.content())
    return coco, refs


def _refer_file_name(dataset: str, image_id: int) -> str:
    if dataset == "refclef":
        return f"{image_id % 100:02d}/images/{image_id}.jpg"
    return f"COCO_train2014_{image_id:012d}.jpg"


def _ref_entry(
    coco: CocoFile,
    refs: Sequence[Any],
    ann_ids: list[int],
    kinds: list[str],
    phrases: Sequence[Sentence],
    split: str,
) -> dict[str, Any]:
    """One entry of refs(...).p for the picture added last."""
    first = 10 * len(refs) + coco.first_image_id
    image = coco.images[-1]
    file_name = Path(image["file_name"])
    return {
        "sent_ids": [first + i for i in range(len(phrases))],
        "file_name": f"{file_name.with_suffix('')}_{ann_ids[0]}{file_name.suffix}",
        "ann_id": ann_ids[0],
        "ref_id": coco.first_image_id + len(refs),
        "image_id": image["id"],
        "split": split,
        "category_id": CATEGORY_IDS[kinds[0]],
        "sentences": [
            _sentence_entry(first + i, sentence.text) for i, sentence in enumerate(phrases)
        ],
    }


def _sentence_entry(sent_id: int, text: str) -> dict[str, Any]:
    raw = text[:1].upper() + text[1:] + "."
    return {"tokens": text.split(), "raw": raw, "sent_id": sent_id, "sent": text}


def _resplit(refs: Sequence[dict[str, Any]], splits: Sequence[str]) -> Iterator[dict[str, Any]]:
    """The references under the split names of another splitBy; those without one are left out."""
    for ref in refs:
        split = ref["split"]
        if split not in splits and split.startswith("test"):
            split = "test"
        if split in splits:
            yield {**ref, "split": split}


def _add_entries(
    result: CocoFile, coco: CocoFile, refs: Sequence[dict[str, Any]], split: str
) -> None:
    """Adds a split in UniRef's way: an image entry, with its sentences, per referred object."""
    images = {image["id"]: image for image in coco.images}
    objects = {annotation["id"]: annotation for annotation in coco.annotations}
    for ref in refs:
        if ref["split"] != split:
            continue
        image = images[ref["image_id"]]
        image_id = result.add_image(
            image["file_name"],
            (image["height"], image["width"]),
            original_id=image["id"],
            expressions=[sentence["sent"] for sentence in ref["sentences"]],
        )
        entry = {**objects[ref["ann_id"]], "id": image_id, "image_id": image_id, "category_id": 1}
        result.annotations.append(entry)


def write_grefcoco(root: Path, size: int, seed: int) -> None:
    """gRefCOCO: sentences for one, several and no objects, in JSON beside ``instances.json``."""
    coco = CocoFile(CATEGORIES, first_image_id=GREFCOCO_IMAGE_ID)
    refs: list[dict[str, Any]] = []
    for split in ("train", "val", "testA", "testB"):
        for rng in random_streams(seed, f"grefcoco/{split}", split_size(split, size)):
            name = _refer_file_name("grefcoco", coco.next_image_id())
            scene = make_scene(rng)
            ann_ids = add_scene(coco, scene, root / "coco2014/train2014", name)
            single = [phrases[0] for phrases in sentences(scene, rng, attributes=STILL).values()]
            groups = group_sentences(scene, rng, attributes=STILL, count=2)
            absent = absent_sentences(scene, rng, attributes=STILL, count=1)
            for sentence in (*single, *groups, *absent):
                kinds = [scene.things[label - 1].kind for label in sentence.labels]
                targets = [ann_ids[label] for label in sentence.labels]
                refs.append(_gref_entry(coco, refs, targets, kinds, sentence, split))
    write_json(root / "refer/grefcoco/instances.json", coco.content())
    write_json(root / "refer/grefcoco/grefs(unc).json", refs)


def _gref_entry(
    coco: CocoFile,
    refs: Sequence[Any],
    ann_ids: list[int],
    kinds: list[str],
    sentence: Sentence,
    split: str,
) -> dict[str, Any]:
    entry = _ref_entry(coco, refs, ann_ids or [-1], kinds or list(KINDS)[:1], [sentence], split)
    entry["sentences"][0]["exist"] = bool(ann_ids)
    return {
        **entry,
        "file_name": coco.images[-1]["file_name"],
        "ann_id": ann_ids or [-1],
        "category_id": [CATEGORY_IDS[kind] for kind in kinds] or [-1],
        "no_target": not ann_ids,
    }
