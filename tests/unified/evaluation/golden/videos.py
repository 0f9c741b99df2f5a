"""Recordings of video evaluators: DAVIS, vos-benchmark, SA-V, LVOS, MeViS, YouTube-VIS."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.unified.evaluation.golden.compare import Recording, Triple, same_keys
from unified.data.formats.files import segmentation_mask
from unified.evaluation.detections import youtube_vis_entries
from unified.label_maps import davis_palette
from unified.metrics import davis, detection, video


def check_davis(recording: Recording) -> Iterator[Triple]:
    """DAVIS 2017: both tasks, frames, boundaries, statistics and the palette."""
    recorded, masks = recording.content, recording.masks("davis17")
    names = sorted(key.removeprefix("gt_") for key in masks if key.startswith("gt_"))
    tasks = {
        "semi-supervised": ("pred_semi_", video.davis_semi_supervised),
        "unsupervised": ("pred_unsup_", video.davis_unsupervised),
    }
    for task in (task for task in tasks if task in recorded):
        prefix, score = tasks[task]
        tracks = {
            f"{name}_{i}": track
            for name in names
            for i, track in score(_pairs(masks, name, prefix)).items()
        }
        yield from same_keys(task, davis.summarise(list(tracks.values())), recorded[task]["global"])
        for name, values in recorded[task]["per_object"].items():
            yield from same_keys(f"{task} {name}", _davis_object(tracks[name]), values)
    for name, objects in recorded.get("per_frame_all_frames", {}).items():
        truth = np.where(masks[f"gt_{name}"] == davis.VOID, 0, masks[f"gt_{name}"])
        for i, values in objects.items():
            frames = zip(truth.astype(np.uint8), masks[f"pred_semi_{name}"], strict=True)
            scores = np.array([davis.frame_scores(t, p, [int(i)])[0] for t, p in frames])
            yield f"frames of {name} {i}, J", scores[:, 0], values["J"]
            yield f"frames of {name} {i}, F", scores[:, 1], values["F"]
    if "boundary" in recorded:
        yield from _boundaries(recording, recorded["boundary"])
    for series in recorded.get("db_statistics", ()):
        found = davis.statistics(np.array(series["values"]), wrap_index=True)
        for key in ("mean", "recall", "decay"):
            yield f"statistics of {series['n']} values, {key}", getattr(found, key), series[key]
    if "palette_256x3" in recorded:
        yield "palette", davis_palette(), recorded["palette_256x3"]


def _davis_object(track: davis.Track) -> dict[str, float]:
    region, boundary = davis.statistics(track.region), davis.statistics(track.boundary)
    return {
        "J": region.mean,
        "F": boundary.mean,
        "J_recall": region.recall,
        "J_decay": region.decay,
        "F_recall": boundary.recall,
        "F_decay": boundary.decay,
    }


def _boundaries(recording: Recording, recorded: Mapping[str, Any]) -> Iterator[Triple]:
    packed = recording.masks("davis17_boundary")
    for key, values in recorded.items():
        size, case = key.split("_", 1)
        height, width = map(int, size.split("x"))
        truth, prediction, void = (
            np.unpackbits(packed[f"{name}_{size}"])[: height * width].reshape(height, width)
            for name in ("gt", "pred", "void")
        )
        empty, full = np.zeros_like(truth), np.ones_like(truth)
        arguments = {
            "pair": (truth, prediction),
            "void": (truth, prediction, void),
            "gt_empty": (empty, prediction),
            "pred_empty": (truth, empty),
            "both_empty": (empty, empty),
            "gt_full": (full, prediction),
            "same": (truth, truth),
        }[case]
        (_, boundary), *_ = davis.frame_scores(*arguments[:2], [1], *arguments[2:])
        yield f"{key} J", davis.region_similarity(*arguments), values["J"]
        yield f"{key} F", boundary, values["F"]
        yield f"{key} radius", davis.boundary_radius(truth.shape), values["bound_pix"]


def _pairs(masks: Mapping[str, NDArray], name: str, prefix: str = "pred_") -> Iterator[Any]:
    return zip(masks[f"gt_{name}"], masks[f"{prefix}{name}"], strict=True)


def check_vos_benchmark(recording: Recording) -> Iterator[Triple]:
    """vos-benchmark, first and last frame skipped or not (percent)."""
    masks = recording.masks("vos_benchmark")
    for key, values in recording.blocks():
        name, skip = key.split("|skip_first_last=")
        tracks = video.visible_objects(_pairs(masks, name), skip_first_last=skip == "True")
        yield f"{key} objects", sorted(tracks), sorted(int(i) for i in values["J_percent"])
        for i, track in tracks.items():
            yield f"{key} {i} J", 100 * track.region.mean(), values["J_percent"][str(i)]
            yield f"{key} {i} F", 100 * track.boundary.mean(), values["F_percent"][str(i)]


def check_sav(recording: Recording) -> Iterator[Triple]:
    """SA-V: one binary mask per object, first and last frame skipped (percent)."""
    masks = recording.masks("davis17")
    *overall, (per_object,) = recording.content["returned"]
    scores = []
    for name, (regions, boundaries) in per_object.items():
        truth = np.where(masks[f"gt_{name}"] == davis.VOID, 0, masks[f"gt_{name}"])
        for key in regions:
            i = int(key) + 1
            layers = ((truth == i).astype(np.uint8), masks[f"pred_semi_{name}"] == i)
            frames = zip(layers[0], layers[1].astype(np.uint8), strict=True)
            track = video.visible_objects(frames)[1]
            scores.append(100 * np.array([track.region.mean(), track.boundary.mean()]))
            yield f"{name} {key}", scores[-1], [regions[key], boundaries[key]]
    region, boundary = np.mean(scores, axis=0)
    yield "J&F, J, F", [(region + boundary) / 2, region, boundary], [v for (v,) in overall]


def check_lvos(recording: Recording, *, bundled: bool = False) -> Iterator[Triple]:
    """LVOS, three tasks; ``bundled`` for the older evaluator that skips no frame."""
    recorded, masks = recording.content, recording.masks("lvos")
    variant = recorded.get("variant_frame_nums_plus_one", {})
    for label, block in (("", recorded), ("frame_nums + 1, ", variant)):
        meta = block.get("meta_json", recorded["meta_json"])["videos"]
        for task in ("semi-supervised", "unsupervised_multiple", "unsupervised_single"):
            if task in block:
                tracks = _lvos_tracks(masks, meta, task, recorded, bundled=bundled)
                yield from _lvos_task(f"{label}{task}", tracks, block[task], recorded)


def _lvos_tracks(
    masks: Mapping[str, NDArray],
    meta: Mapping[str, Any],
    task: video.LvosTask,
    recorded: Mapping[str, Any],
    *,
    bundled: bool,
) -> dict[str, davis.Track]:
    single = task == "unsupervised_single"
    tracks = {}
    for name in recorded["unsupervised_videos"] if single else meta:
        ranges = {int(i): o["frame_range"] for i, o in meta[name]["objects"].items()}
        spans = {  # frame t is file number 1 + 5t
            i: video.Span(
                (int(r["start"]) - 1) // 5, (int(r["end"]) - 1) // 5, int(r["frame_nums"])
            )
            for i, r in ranges.items()
        }
        frames = _pairs(masks, name, "pred_salient_" if single else "pred_")
        skip = task == "semi-supervised" and not bundled
        scored = video.lvos_objects(frames, spans, task, skip_first_last=skip)
        tracks.update({f"{name}_{n}": t for n, t in enumerate(scored.values(), start=1)})
    return tracks


def _lvos_task(
    what: str,
    tracks: Mapping[str, davis.Track],
    recorded: Mapping[str, Any],
    whole: Mapping[str, Any],
) -> Iterator[Triple]:
    objects = {
        name: {"J": t.region.mean(), "F": t.boundary.mean(), "V": video.variation(t)}
        for name, t in tracks.items()
    }
    for name, values in recorded["per_object"].items():
        yield from same_keys(f"{what} {name}", objects[name], values)
    unseen = [name.rsplit("_", 1)[0] in whole["unseen_videos"] for name in objects]
    values = {key: [o[key] for o in objects.values()] for key in "JFV"}
    means = video.seen_unseen(values, unseen)
    means["J&F-Mean"] = (means["J-Mean"] + means["F-Mean"]) / 2
    yield from same_keys(what, means, recorded["global"])


def check_lvos_bundled(recording: Recording) -> Iterator[Triple]:
    """The LVOS evaluator that UniRef bundles and documents."""
    return check_lvos(recording, bundled=True)


def check_mevis(recording: Recording) -> Iterator[Triple]:
    """MeViS per expression; a missing video counts 0."""
    recorded, masks = recording.content, recording.masks("mevis")
    scores = []
    for name, entry in recorded["meta_expressions"]["videos"].items():
        for key, expression in entry["expressions"].items():
            predicted = masks.get(f"pred_{name}_{key}")
            score = np.zeros(2)  # a missing video counts 0
            if predicted is not None:
                truth = _union(recorded["mask_dict"], expression["anno_id"], predicted.shape)
                track = video.expression_track(zip(truth, predicted, strict=True))
                score = np.array([track.region.mean(), track.boundary.mean()])
            scores.append(score)
            yield f"{name}_{key}", score, recorded["per_expression"][f"{name}_{key}"]
    region, boundary = np.mean(scores, axis=0)
    means = [region, boundary, (region + boundary) / 2]
    yield "J, F, J&F", means, [recorded[key] for key in ("J", "F", "J&F")]


def _union(codes: Mapping[str, Any], ids: Sequence[int], shape: tuple[int, ...]) -> NDArray:
    union = np.zeros(shape, dtype=np.uint8)
    for i in ids:
        for frame, code in zip(union, codes[str(i)], strict=True):
            if code is not None:
                frame |= segmentation_mask(code, *shape[1:])
    return union


def check_youtube_vis(recording: Recording) -> Iterator[Triple]:
    """The 12 numbers of YouTube-VIS and AP per category."""
    recorded = recording.content
    categories = youtube_vis_entries(recorded["ground_truth"], recorded["results"])
    ours = detection.average_precision(categories, detection.YOUTUBE_VIS_AREAS)
    order = dict(zip(recorded["stats_order"], recorded["stats"], strict=True))
    yield from same_keys("stats", ours.summary, order)
    yield "AP per category", list(ours.per_category), recorded["AP_per_category"]
