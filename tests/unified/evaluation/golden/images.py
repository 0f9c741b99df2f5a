"""Recordings of image evaluators and readers: RIS, gRefCOCO, few-shot, semantic, REFER."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.unified.evaluation.golden.compare import Recording, Triple, rounded, same_keys
from unified.data.formats.refer import NO_TARGET, Ref, ReferData, read_refer
from unified.metrics import few_shot, generalized, iou, semantic


def check_ris(recording: Recording) -> Iterator[Triple]:
    """LAVT, CRIS, CMSA and UniRef on the same masks, and UniRef on boxes."""
    recorded, masks = recording.content, recording.masks("ris")
    overlaps = np.array(
        [iou.mask_overlap(*p) for p in zip(masks["gt"], masks["pred"], strict=True)]
    )
    inter, union = overlaps.T
    if "cmsa_compute_mask_IU" in recorded:
        yield "CMSA I and U", overlaps, recorded["cmsa_compute_mask_IU"]
    if "lavt_train_IoU_per_sample" in recorded:
        ratios = iou.overlap_ratio(inter, union)
        yield "LAVT IoU", ratios, recorded["lavt_train_IoU_per_sample"]
    if "lavt_test" in recorded:
        yield from _lavt(inter, union, recorded["lavt_test"])
    if "cris" in recorded:
        cris = iou.referring_summary(inter, union, iou.CRIS)
        yield "CRIS IoU", cris["mIoU"] / 100, recorded["cris"]["IoU"]
        for t in iou.THRESHOLDS:
            yield f"CRIS Pr {t}", cris[f"P@{t}"] / 100, recorded["cris"][f"Pr@{round(100 * t)}"]
    if "uniref_refcocoeval_segm" in recorded:
        yield from _uniref_masks(inter, union, recorded["uniref_refcocoeval_segm"])
    if "uniref_refcocoeval_bbox" in recorded:
        yield from _uniref_boxes(recorded["uniref_refcocoeval_bbox"])


def _lavt(inter: NDArray, union: NDArray, recorded: Mapping[str, Any]) -> Iterator[Triple]:
    """Areas per sample, and the lines that the program prints with two digits."""
    yield "LAVT I", inter, recorded["I"]
    yield "LAVT U", union, recorded["U"]
    ours = iou.referring_summary(inter, union, iou.LAVT)
    printed = dict(
        line.replace("Mean IoU is", "mIoU =").split(" = ")
        for line in map(str.strip, recorded["printed"].splitlines())
        if "=" in line or "Mean IoU" in line
    )
    names = {"mIoU": "mIoU", "overall IoU": "oIoU"}
    names.update({f"precision@{t}": f"P@{t}" for t in iou.THRESHOLDS})
    for theirs, name in names.items():
        value = printed[theirs].strip()
        yield f"LAVT printed {name}", rounded(ours[name], value), float(value)


def _uniref_masks(inter: NDArray, union: NDArray, recorded: Mapping[str, Any]) -> Iterator[Triple]:
    chosen = recorded["sample_index"]
    inter, union = inter[chosen], union[chosen]
    ours = iou.referring_summary(inter, union, iou.UNIREF)
    yield from same_keys("UniRef masks", ours, {k: recorded[k] for k in ours})
    yield "UniRef IoU", iou.overlap_ratio(inter, union), recorded["per_sample_iou_maskutils"]
    smoothed = ((inter + 1e-6) / (union + 1e-6)).astype(np.float32)
    yield "UniRef IoU with epsilon", smoothed, recorded["per_sample_iou_eps"]


def _uniref_boxes(recorded: Mapping[str, Any]) -> Iterator[Triple]:
    corners = [iou.xywh_to_xyxy(recorded[key]) for key in ("pred_bbox_xywh", "gt_bbox_xywh")]
    box_inter, box_union = iou.box_overlap(*corners)
    ours = iou.referring_summary(np.diag(box_inter), np.diag(box_union), iou.UNIREF)
    yield from same_keys("UniRef boxes", ours, {k: recorded[k] for k in ours})


def check_grefcoco(recording: Recording) -> Iterator[Triple]:
    """ReLA: one source, no refusals expected, mixed sources."""
    recorded, masks = recording.content, recording.masks("grefcoco")
    inter, union = np.array(
        [iou.mask_overlap(*p) for p in zip(masks["gt"], masks["pred"], strict=True)]
    ).T
    no_target, refused = np.array(recorded["gt_nt"]), np.array(recorded["pred_nt"])
    labels = np.array(recorded.get("mixed_source_labels", ["grefcoco"] * len(no_target)))
    everything = np.ones_like(no_target)
    blocks = {"all_grefcoco": everything, "no_no_target": ~no_target, "mixed_sources": everything}
    for block, among in blocks.items():
        for source, values in recorded.get(block, {}).items():
            one_source = block == "mixed_sources" and source != "full"
            kept = among & (labels == source) if one_source else among
            samples = generalized.GeneralizedSamples(
                inter[kept], union[kept], no_target[kept], refused[kept]
            )
            ours = generalized.generalized_summary(samples)
            yield from same_keys(f"{block} {source}", ours, values)


def check_grec(recording: Recording) -> Iterator[Triple]:
    """gRefCOCO boxes."""
    recorded = recording.content
    f1, kept, no_target = [], [], []
    for image in recorded["ground_truth"]["images"]:
        found = [a for a in recorded["ground_truth"]["annotations"] if a["image_id"] == image["id"]]
        boxes = [a["bbox"] for a in found if a["category_id"] != -1]
        predicted = recorded["predictions"][str(image["id"])]
        arguments = predicted["boxes_xyxy"], predicted["scores"]
        no_target.append(not boxes)
        f1.append(generalized.box_f1(iou.xywh_to_xyxy(boxes), *arguments))
        kept.append(len(generalized.kept_boxes(*arguments)))
    ours = generalized.box_summary(np.array(f1), np.array(kept), np.array(no_target))
    yield from same_keys("boxes", ours, {key: recorded[key] for key in ours})


def check_few_shot(recording: Recording) -> Iterator[Triple]:
    """hsnet: areas, class mIoU, FB-IoU and k-shot votes."""
    masks = recording.masks("fss")
    for name, block in recording.blocks():
        triples = zip(*(masks[f"{name}_{key}"] for key in ("gt", "pred", "ignore")), strict=True)
        pairs = [few_shot.areas(*triple) for triple in triples]
        inter, union = (np.array(side) for side in zip(*pairs, strict=True))
        yield f"{name} I", inter, block["area_inter_bg_fg"]
        yield f"{name} U", union, block["area_union_bg_fg"]
        classes = block["class_id"], block["class_ids_of_interest"]
        ours = few_shot.few_shot_summary(inter, union, *classes)
        yield from same_keys(name, ours, {key: block[key] for key in ours})
    for key in (key for key in masks if key.startswith("vote_out_")):
        shots = int(key.removeprefix("vote_out_").removesuffix("shot"))
        for query, expected in enumerate(masks[key]):
            yield f"{key} {query}", few_shot.vote(masks["vote_in"][:shots, query]), expected


def check_semantic(recording: Recording) -> Iterator[Triple]:
    """mmsegmentation: plain, reduce_zero_label, Dice, NaN replaced."""
    masks = recording.masks("semseg")
    for key, values in recording.blocks():
        reduce_zero = key == "reduce_zero_label"
        pairs = zip(masks["gt"], masks["pred"], strict=True)
        each = [
            semantic.class_areas(*p, len(values["IoU"]), reduce_zero_label=reduce_zero)
            for p in pairs
        ]
        ours = semantic.semantic_summary(sum(each[1:], start=each[0]))
        for name, expected in values.items():
            found = np.asarray(ours["mIoU" if name == "mIoU_nanmean" else name])
            if key.startswith("nan_to_num"):
                found = np.nan_to_num(found, nan=float(key.rsplit("_", 1)[1]))
            yield f"{key} {name}", found, expected


def check_refer(recording: Recording) -> Iterator[Triple]:
    """The REFER and gRefCOCO readers: splits, sentences, boxes, masks."""
    masks = recording.masks("refer_mini")
    for key, block in recording.blocks():
        name, split_by = key.removesuffix(")").split("(")
        data = read_refer(recording.beside("refer_mini") / name, split_by)
        counts = {
            "n_refs": len(data.refs),
            "n_sents": sum(len(ref.sentences) for ref in data.refs.values()),
            "n_imgs": len({ref.image_id for ref in data.refs.values()}),
        }
        yield from same_keys(key, counts, {k: block[k] for k in counts if k in block})
        for split, ids in block["splits"].items():
            yield f"{key} {split}", sorted(ref.ref_id for ref in data.select(split)), sorted(ids)
        for split, number in block.get("n_expressions_per_split", {}).items():
            found = sum(len(ref.sentences) for ref in data.select(split))
            yield f"{key} expressions of {split}", found, number
        for ref_id, values in block["refs"].items():
            stored = masks.get(f"{name}_{ref_id}", masks.get(f"{name}_{split_by}_{ref_id}"))
            yield from _reference(f"{key} {ref_id}", data, data.refs[int(ref_id)], values, stored)


def _reference(
    what: str, data: ReferData, ref: Ref, recorded: Mapping[str, Any], stored: NDArray | None
) -> Iterator[Triple]:
    several = isinstance(recorded["ann_id"], list)  # gRefCOCO merges objects, REFER sums polygons
    mask = data.mask(ref, parts="union" if several else "sum")
    ids = [i for i in np.atleast_1d(recorded["ann_id"]) if i != NO_TARGET]
    ours = {
        "image_id": ref.image_id,
        "no_target": not ref.ann_ids,
        "empty": not mask.any(),
        "box_xywh": data.box(ref),
        "area_sum_of_parts": mask.sum(),
        "mask_pixels_eq1": np.count_nonzero(mask == 1),
        "mask_pixels_gt0": np.count_nonzero(mask),
        "merged_pixels_gt0": np.count_nonzero(mask),
        "mask_max": mask.max(),
    }
    yield from same_keys(what, ours, {k: recorded[k] for k in ours if k in recorded})
    yield f"{what} annotations", ref.ann_ids, ids
    if "sents" in recorded:
        yield f"{what} sentences", list(ref.sentences) == recorded["sents"], True
    if stored is not None:
        yield f"{what} mask", mask, stored
