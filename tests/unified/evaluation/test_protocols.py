"""One test per protocol: the number of the official program, from files on disk.

docs/protocols.md names these tests line by line.
"""

from __future__ import annotations

import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from unified.errors import ConfigError, InputError
from unified.evaluation.protocols import PROTOCOLS, default_protocol, evaluate
from unified.evaluation.reading import read_split
from unified.evaluation.report import Report, Request, Split
from unified.metrics.iou import overlap_ratio

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import masks, recorded, write_clip, write_davis, write_json, write_mask

Score = Callable[..., Report]


@pytest.fixture
def score(tmp_path: Path) -> Score:
    def run(protocol: str, **changes: object) -> Report:
        request = Request(tmp_path / "gt", tmp_path / "pred", num_workers=2)
        return evaluate(protocol, replace(request, **changes))

    return run


def percent(numbers: dict[str, float]) -> dict[str, float]:
    return {key: 100 * value for key, value in numbers.items()}


def same(report: Report, expected: dict[str, float], tolerance: float = 1e-9) -> bool:
    found = {key: report.scores.numbers[key] for key in expected}
    return found == pytest.approx(expected, abs=tolerance)


@pytest.mark.parametrize(
    ("protocol", "side", "task"),
    [
        ("davis17-semi", "pred_semi", "semi-supervised"),
        ("davis17-unsup", "pred_unsup", "unsupervised"),
    ],
)
def test_davis17(score: Score, tmp_path: Path, protocol: str, side: str, task: str) -> None:
    write_davis(tmp_path)
    report = score(protocol, prediction=tmp_path / side)
    expected = recorded("davis17")[task]
    assert same(report, percent(expected["global"]))
    items = {f"{row.sequence}_{row.item}": row.values for row in report.scores.rows}
    for name, values in expected["per_object"].items():
        assert items[name]["J"] == pytest.approx(100 * values["J"])
        assert items[name]["F-Decay"] == pytest.approx(100 * values["F_decay"])


def test_davis17_semi_does_not_read_the_ends(score: Score, tmp_path: Path) -> None:
    write_davis(tmp_path)
    before = score("davis17-semi", prediction=tmp_path / "pred_semi")
    for folder in (tmp_path / "pred_semi").iterdir():
        frames = sorted(folder.iterdir())
        frames[0].unlink()
        frames[-1].write_text("not an image")
    after = score("davis17-semi", prediction=tmp_path / "pred_semi")
    assert after.scores.numbers == before.scores.numbers


@pytest.mark.parametrize(("protocol", "skip"), [("vos-benchmark", True), ("vos-all-frames", False)])
def test_vos_benchmark(score: Score, tmp_path: Path, protocol: str, skip: bool) -> None:
    for key, clip in masks("vos_benchmark").items():
        side, name = key.split("_")
        write_clip(tmp_path / side / name, clip)
    with pytest.raises(InputError, match=r"gap/00003.png holds id 13 .* has 7, 200: use"):
        score(protocol)
    report = score(protocol, allow_missing=True)  # the official program lets stray ids pass
    blocks = [recorded("vos_benchmark")[f"{n}|skip_first_last={skip}"] for n in ("gap", "late")]
    for letter in "JF":
        values = [v for block in blocks for v in block[f"{letter}_percent"].values()]
        assert same(report, {letter: float(np.mean(values))})
    assert report.card.warnings == {"stray id": 1}


def test_sav(score: Score, tmp_path: Path) -> None:
    both, clips = recorded("sav")["returned"], masks("davis17")
    for name in both[3][0]:
        for i in (1, 2):
            truth = (clips[f"gt_{name}"] == i) * 255
            write_clip(tmp_path / "gt" / name / f"{i - 1:03d}", truth)
            prediction = (clips[f"pred_semi_{name}"] == i) * 255
            write_clip(tmp_path / "pred" / name / f"{i - 1:03d}", prediction)
    report = score("sav")
    assert same(report, {"J&F": both[0][0], "J": both[1][0], "F": both[2][0]})
    assert [row.item for row in report.scores.rows] == ["000", "001"] * 3


@pytest.mark.parametrize("protocol", ["davis17-semi", "vos-benchmark", "vos-all-frames"])
def test_black_and_white_masks_are_one_object(score: Score, tmp_path: Path, protocol: str) -> None:
    """255 is an object where nothing else is: DAVIS 2016. It is void beside other ids."""
    clip = (masks("davis17")["gt_alpha"] == 1).astype(np.uint8)
    prediction = (masks("davis17")["pred_semi_alpha"] == 1).astype(np.uint8)
    if protocol != "davis17-semi":  # which asks for the objects of frame 0
        clip[0] = 0
    for folder, white in (("ids", 1), ("white", 255)):
        write_clip(tmp_path / folder / "gt" / "a", clip * np.uint8(white))
        write_clip(tmp_path / folder / "pred" / "a", prediction * np.uint8(white))
    reports = [
        score(protocol, truth=tmp_path / folder / "gt", prediction=tmp_path / folder / "pred")
        for folder in ("ids", "white")
    ]
    assert reports[0].scores.numbers == reports[1].scores.numbers
    assert 0 < next(iter(reports[0].scores.numbers.values())) < 100


def test_void_alone_in_the_first_frame_is_no_object(score: Score, tmp_path: Path) -> None:
    truth = squares([[0, 0], [1, 0], [1, 0], [1, 0]])
    truth[0, 0, 0] = 255
    write_clip(tmp_path / "gt" / "a", truth)
    write_clip(tmp_path / "pred" / "a", np.where(truth == 255, 0, truth))
    report = score("vos-all-frames")
    assert same(report, {"J&F": 100})
    assert report.card.num_samples == 1


def squares(ids: list[list[int]]) -> np.ndarray:
    frames = np.zeros((len(ids), 8, 8 * len(ids[0])), np.uint8)
    for frame, row in zip(frames, ids, strict=True):
        for column, i in enumerate(row):
            frame[2:6, 8 * column + 2 : 8 * column + 6] = i
    return frames


@pytest.mark.parametrize("listed", ["unseen.txt", "train_meta.json"])
def test_youtube_vos(score: Score, tmp_path: Path, listed: str) -> None:
    first, second = squares([[1, 0], [1, 2], [1, 2]]), squares([[1], [1]])
    write_clip(tmp_path / "gt" / "first", first)
    write_clip(tmp_path / "gt" / "second", second)
    lost = first.copy()
    lost[2][first[2] == 2] = 0  # object 2, given in frame 1, is lost in frame 2
    lost[0] = 0  # the frame that introduces object 1 does not count for it
    write_clip(tmp_path / "pred" / "Annotations" / "first", lost)
    write_clip(tmp_path / "pred" / "Annotations" / "second", second)
    classes = {"first": {"1": "cat", "2": "newt"}, "second": {"1": "dog"}}
    meta = {
        "videos": {
            name: {"objects": {i: {"category": c} for i, c in objects.items()}}
            for name, objects in classes.items()
        }
    }
    write_json(tmp_path / "meta.json", meta)
    (tmp_path / "unseen.txt").write_text("newt\n")
    seen = {"videos": {"x": {"objects": {"1": {"category": "cat"}, "2": {"category": "dog"}}}}}
    write_json(tmp_path / "train_meta.json", seen)
    report = score("youtube-vos", meta=tmp_path / "meta.json", unseen=tmp_path / listed)
    expected = {"J-seen": 100, "F-seen": 100, "J-unseen": 0, "F-unseen": 0, "G": 50}
    assert same(report, expected)
    with pytest.raises(InputError, match="--unseen"):
        score("youtube-vos", meta=tmp_path / "meta.json")
    with pytest.raises(InputError, match="--meta"):
        score("youtube-vos")


def write_youtube_vos(root: Path, frames: list[str]) -> dict[str, Path]:
    """A video of 3 frames with one cat, which should have masks in ``frames``."""
    for side in ("gt", "pred"):
        write_clip(root / side / "a", squares([[1], [1], [1]]))
    objects = {"1": {"category": "cat", "frames": frames}}
    (root / "unseen.txt").write_text("newt\n")
    meta = write_json(root / "meta.json", {"videos": {"a": {"objects": objects}}})
    return {"meta": meta, "unseen": root / "unseen.txt"}


def test_youtube_vos_needs_every_mask_that_the_meta_file_lists(
    score: Score, tmp_path: Path
) -> None:
    files = write_youtube_vos(tmp_path, ["00000", "00001", "00002"])
    assert same(score("youtube-vos", **files), {"J-seen": 100})
    for frame in ("00001", "00002"):  # as in the public valid annotations
        (tmp_path / "gt" / "a" / f"{frame}.png").unlink()
    with pytest.raises(InputError, match=r"frame 00001 of video a.*2 of 3.*tools/submit\.py"):
        score("youtube-vos", **files)


def test_there_is_no_g_of_one_half(score: Score, tmp_path: Path) -> None:
    report = score("youtube-vos", **write_youtube_vos(tmp_path, []))
    assert np.isnan(report.scores.numbers["G"])
    assert "J-unseen" not in report.scores.numbers
    assert "no unseen object: numbers are those of the seen half alone" in report.card.line()


@pytest.mark.parametrize(
    ("protocol", "kind", "task"),
    [
        ("lvos", "lvos", "semi-supervised"),
        ("lvos-bundled", "lvos_v1_bundled", "semi-supervised"),
        ("lvos-unsup-multiple", "lvos", "unsupervised_multiple"),
        ("lvos-unsup-single", "lvos", "unsupervised_single"),
    ],
)
def test_lvos(score: Score, tmp_path: Path, protocol: str, kind: str, task: str) -> None:
    block = recorded(kind)
    side = "pred_salient" if task.endswith("single") else "pred"
    for key, clip in masks("lvos").items():
        write_clip(tmp_path / key.rsplit("_", 1)[0] / key.rsplit("_", 1)[1], clip, "{:08d}", 5)
    write_json(tmp_path / "meta.json", block["meta_json"])
    (tmp_path / "unseen.txt").write_text("\n".join(block["unseen_videos"]))
    split = Split(tuple(block["unsupervised_videos"])) if task.endswith("single") else Split()
    report = score(
        protocol,
        prediction=tmp_path / side,
        meta=tmp_path / "meta.json",
        unseen=tmp_path / "unseen.txt",
        split=split,
    )
    assert same(report, percent(block[task]["global"]))


def test_lvos_meta_of_another_version(score: Score, tmp_path: Path) -> None:
    write_clip(tmp_path / "gt" / "vidA", masks("lvos")["gt_vidA"][:6], "{:08d}", 5)
    write_clip(tmp_path / "pred" / "vidA", masks("lvos")["pred_vidA"][:6], "{:08d}", 5)
    meta = write_json(tmp_path / "meta.json", recorded("lvos")["meta_json"])
    (tmp_path / "unseen.txt").write_text("vidC\n")
    with pytest.raises(InputError, match="same version of LVOS"):
        score("lvos", meta=meta, unseen=tmp_path / "unseen.txt")


def test_ref_davis17_is_the_mean_over_annotators(score: Score, tmp_path: Path) -> None:
    write_davis(tmp_path)
    sides = ("pred_unsup", "pred_semi")
    each = [score("davis17-unsup", prediction=tmp_path / side).scores.numbers for side in sides]
    for k in range(4):
        for sequence in (tmp_path / "gt").iterdir():
            clip = masks("davis17")[f"{sides[k // 3]}_{sequence.name}"]
            write_clip(tmp_path / "pred" / f"anno_{k}" / sequence.name, clip)
    report = score("ref-davis17")
    expected = {key: (3 * each[0][key] + each[1][key]) / 4 for key in each[0]}
    assert same(report, expected)
    assert report.card.num_samples == 4 * 12
    alone = score("ref-davis17", prediction=tmp_path / "pred" / "anno_3")
    assert same(alone, dict(each[1]))


def test_sets_that_are_missing_are_on_the_card(score: Score, tmp_path: Path) -> None:
    """The number is a mean of four expression sets, and nobody should take three for it."""
    for k in range(4):
        write_davis(tmp_path)
        shutil.move(tmp_path / "pred_semi", tmp_path / "pred" / f"anno_{k}")
    assert score("ref-davis17").card.notes == ()
    one = score("ref-davis17", prediction=tmp_path / "pred" / "anno_3")
    assert one.card.notes == ("1 of 4 expression sets",)
    shutil.move(tmp_path / "pred" / "anno_3", tmp_path / "pred" / "anno_4")
    with pytest.raises(InputError, match=r"pred/anno_3 is missing: predict all of anno_0, "):
        score("ref-davis17")
    three = score("ref-davis17", allow_missing=True).card
    assert three.notes == ("3 of 4 expression sets",)
    assert three.warnings == {"missing expression set": 1, "extra expression set": 1}


@pytest.mark.parametrize("protocol", ["davis17-unsup", "ref-davis17", "lvos-unsup-multiple"])
def test_too_many_proposals_name_the_file(score: Score, tmp_path: Path, protocol: str) -> None:
    write_clip(tmp_path / "gt" / "a", squares([[1], [1]]), "{:08d}", 5)
    write_clip(tmp_path / "pred" / "a", squares([[20], [21]]), "{:08d}", 5)
    files: dict[str, Path] = {}
    if protocol.startswith("lvos"):
        span = {"frame_range": {"start": 1, "end": 11, "frame_nums": 2}}
        meta = {"videos": {"a": {"objects": {"1": span}}}}
        (tmp_path / "unseen.txt").write_text("a\n")
        files = {"meta": write_json(tmp_path / "m.json", meta), "unseen": tmp_path / "unseen.txt"}
    with pytest.raises(InputError, match=r"a/00000006\.png holds id 21, expected at most 20"):
        score(protocol, **files)
    assert score(protocol, allow_missing=True, **files).card.warnings == {"unusable mask": 1}


def test_ref_youtube_vos(score: Score, tmp_path: Path) -> None:
    clips = masks("davis17")
    expressions = {"alpha": {"0": ["1"], "1": ["2"]}, "delta": {"0": ["1", "3"]}}
    videos: dict[str, dict] = {}
    for name, entries in expressions.items():
        truth = np.where(clips[f"gt_{name}"] == 255, 0, clips[f"gt_{name}"])
        write_clip(tmp_path / "gt" / name, truth)
        for item, ids in entries.items():
            mask = np.isin(clips[f"pred_semi_{name}"], [int(i) for i in ids])
            write_clip(tmp_path / "pred" / name / item, mask * 255)
            mask = np.isin(truth, [int(i) for i in ids])
            write_clip(tmp_path / "folders" / name / item, mask * 255)
        entries = {
            k: {"exp": "x", "obj_id": v[0] if len(v) == 1 else v} for k, v in entries.items()
        }
        videos[name] = {"expressions": entries}
    meta = write_json(tmp_path / "meta.json", {"videos": videos})
    report = score("ref-youtube-vos", meta=meta)
    frames = recorded("davis17")["per_frame_all_frames"]["alpha"]
    values = [row.values["J"] for row in report.scores.rows if row.sequence == "alpha"]
    assert values == pytest.approx([100 * np.mean(frames[i]["J"]) for i in "12"])
    assert (report.card.num_samples, report.card.sample) == (3, "expression")
    assert score("ref-youtube-vos", truth=tmp_path / "folders").scores.numbers == (
        pytest.approx(dict(report.scores.numbers))
    )
    del videos["alpha"]["expressions"]["1"]["obj_id"]
    write_json(meta, {"videos": videos})
    with pytest.raises(InputError, match="no obj_id for video alpha, expression 1"):
        score("ref-youtube-vos", meta=meta)
    with pytest.raises(InputError, match="--meta"):
        score("ref-youtube-vos")


def test_the_ref_youtube_vos_list_is_valid_minus_test(score: Score, tmp_path: Path) -> None:
    valid = write_json(tmp_path / "valid" / "meta_expressions.json", {"videos": {"a": 1, "b": 2}})
    test = write_json(tmp_path / "test" / "meta_expressions.json", {"videos": {"b": 2}})
    split = read_split(valid, test)
    assert split.names == ("a",)
    assert split.note == "valid/meta_expressions.json minus test/meta_expressions.json (1)"
    write_clip(tmp_path / "gt" / "a" / "0", squares([[1]]))
    write_clip(tmp_path / "gt" / "b" / "0", squares([[1]]))
    write_clip(tmp_path / "pred" / "a" / "0", squares([[1]]))
    report = score("ref-youtube-vos", split=split)
    assert split.note in report.card.line()
    assert report.card.num_samples == 1


def test_mevis(score: Score, tmp_path: Path) -> None:
    block = recorded("mevis")
    write_json(tmp_path / "gt" / "meta_expressions.json", block["meta_expressions"])
    write_json(tmp_path / "gt" / "mask_dict.json", block["mask_dict"])
    for key, clip in masks("mevis").items():
        side, name, item = key.split("_")
        if side == "pred":
            write_clip(tmp_path / side / name / item, clip * 255)
    with pytest.raises(InputError, match="v2 is missing"):
        score("mevis")
    report = score("mevis", allow_missing=True)  # the official program counts 0
    assert same(report, percent({key: block[key] for key in ("J", "F", "J&F")}))
    assert report.card.warnings["missing sequence"] == 1
    assert "1 missing sequence" in report.card.line()


def test_mevis_sentence_about_nothing(score: Score, tmp_path: Path) -> None:
    """Both masks empty count 1, a mask where there is nothing counts 0."""
    block = recorded("mevis")
    videos = {"v0": block["meta_expressions"]["videos"]["v0"]}
    videos["v0"]["expressions"] = {
        "0": videos["v0"]["expressions"]["0"],
        "1": {"exp": "nothing", "obj_id": [], "anno_id": []},
        "2": {"exp": "nothing", "obj_id": [], "anno_id": []},
    }
    write_json(tmp_path / "gt" / "meta_expressions.json", {"videos": videos})
    write_json(tmp_path / "gt" / "mask_dict.json", block["mask_dict"])
    drawn = masks("mevis")["pred_v0_0"] * 255
    for item, clip in (("0", drawn), ("1", drawn * 0), ("2", np.maximum(drawn, 1))):
        write_clip(tmp_path / "pred" / "v0" / item, (clip > 0) * 255)
    rows = {row.item: row.values["J"] for row in score("mevis").scores.rows}
    assert rows["0"] == pytest.approx(100 * block["per_expression"]["v0_0"][0])
    assert (rows["1"], rows["2"]) == (100, 0)


def write_pairs(folder: Path, kind: str, prefix: str = "") -> None:
    arrays = masks(kind)
    for index, (truth, prediction) in enumerate(
        zip(arrays[f"{prefix}gt"], arrays[f"{prefix}pred"], strict=True)
    ):
        write_mask(folder / "gt" / f"{index:03d}.png", truth * 255)
        write_mask(folder / "pred" / f"{index:03d}.png", prediction * 255)


def test_ris_lavt(score: Score, tmp_path: Path) -> None:
    write_pairs(tmp_path, "ris")
    report = score("lavt")
    printed = recorded("ris")["lavt_test"]["printed"]
    numbers = report.scores.numbers
    assert f"Mean IoU is {numbers['mIoU']:.2f}" in printed
    assert f"overall IoU = {numbers['oIoU']:.2f}" in printed
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        assert f"precision@{threshold} = {numbers[f'P@{threshold}']:.2f}" in printed


def test_ris_cris(score: Score, tmp_path: Path) -> None:
    write_pairs(tmp_path, "ris")
    expected = recorded("ris")["cris"]
    precision = {f"P@0.{k}": 100 * expected[f"Pr@{k}0"] for k in range(5, 10)}
    assert same(score("cris"), {"mIoU": 100 * expected["IoU"], **precision})


@pytest.mark.parametrize("protocol", ["uniref", "fss-per-image"])
def test_ris_uniref(score: Score, tmp_path: Path, protocol: str) -> None:
    write_pairs(tmp_path, "ris")
    expected = recorded("ris")["uniref_refcocoeval_segm"]
    report = score(protocol)
    assert same(report, {key: expected[key] for key in ("oIoU", "mIoU", "P@0.5", "P@0.9")})
    assert report.card.notes == ("2 samples without ground truth left out",)


def test_ris_uniref_box(score: Score, tmp_path: Path) -> None:
    expected = recorded("ris")["uniref_refcocoeval_bbox"]
    boxes = list(enumerate(zip(expected["gt_bbox_xywh"], expected["pred_bbox_xywh"], strict=True)))
    truth = {
        "images": [{"id": i} for i, _ in boxes],
        "categories": [],
        "annotations": [{"image_id": i, "bbox": t, "category_id": 1} for i, (t, _) in boxes],
    }
    results = [{"image_id": i, "bbox": p, "score": 0.9} for i, (_, p) in boxes]
    results += [{"image_id": i, "bbox": [0, 0, 1, 1], "score": 0.1} for i, _ in boxes]
    paths = {
        "truth": write_json(tmp_path / "gt.json", truth),
        "prediction": write_json(tmp_path / "pred" / "results.json", results),
    }
    wanted = {key: expected[key] for key in ("oIoU", "mIoU", "P@0.5", "P@0.7", "P@0.9")}
    assert same(score("uniref-box", **paths), wanted)
    write_json(tmp_path / "pred" / "results.json", results[1:])
    del paths["prediction"]
    write_json(tmp_path / "pred" / "results.json", [r for r in results if r["image_id"]])
    with pytest.raises(InputError, match="no box for image entry 0"):
        score("uniref-box", **paths)
    assert score("uniref-box", **paths, allow_missing=True).card.warnings == {"missing result": 1}


def test_grefcoco(score: Score, tmp_path: Path) -> None:
    write_pairs(tmp_path, "grefcoco")
    block, arrays = recorded("grefcoco"), masks("grefcoco")
    for index, none in enumerate(block["gt_nt"]):
        if none:  # the recording keeps the flag beside the mask, files have only the mask
            assert not arrays["gt"][index].any()
    said = {f"{i:03d}": flag for i, flag in enumerate(block["pred_nt"])}
    write_json(tmp_path / "pred" / "no_target.json", said)
    expected = dict(block["all_grefcoco"]["grefcoco"])
    for key in ("T_acc", "N_acc"):
        expected[key] *= 100
    report = score("grefcoco")
    assert same(report, expected)
    assert report.card.notes == ("refusals from no_target.json",)
    ious = [row.values["IoU"] for row in report.scores.rows]
    assert np.mean(ious) == pytest.approx(expected["gIoU"], abs=1e-9)
    inter, union = (sum(row.values[key] for row in report.scores.rows) for key in "IU")
    assert 100 * inter / union == pytest.approx(expected["cIoU"], abs=1e-9)
    (tmp_path / "pred" / "no_target.json").unlink()
    report = score("grefcoco")
    assert report.card.notes == ("a refusal is an empty mask",)
    refused = [not mask.any() for mask in arrays["pred"]]
    wanted = 100 * np.mean([r for r, none in zip(refused, block["gt_nt"], strict=True) if none])
    assert report.scores.numbers["N_acc"] == pytest.approx(wanted)


def test_grefcoco_box(score: Score, tmp_path: Path) -> None:
    block = recorded("grec_boxes")
    report = score(
        "grefcoco-box",
        truth=write_json(tmp_path / "gt.json", block["ground_truth"]),
        prediction=write_json(tmp_path / "pred.json", block["predictions"]),
    )
    assert same(report, percent({key: block[key] for key in ("F1_score", "T_acc", "N_acc")}))


@pytest.mark.parametrize("data", ["fss", "pascal", "coco"])
def test_hsnet(score: Score, tmp_path: Path, data: str) -> None:
    block, arrays = recorded("fss")[data], masks("fss")
    for index, class_id in enumerate(block["class_id"]):
        truth = arrays[f"{data}_gt"][index]
        ignored = arrays[f"{data}_ignore"][index] > 0
        if ignored.any():
            assert (truth[~ignored] == 1).any()
        name = f"{class_id}/{index:02d}.png"
        write_mask(tmp_path / "gt" / name, np.where(ignored, 255, truth))
        write_mask(tmp_path / "pred" / name, arrays[f"{data}_pred"][index] * 255)
    names = tuple(str(i) for i in block["class_ids_of_interest"])
    report = score("hsnet", split=Split(names, "test"))
    assert same(report, {key: block[key] for key in ("mIoU", "FB-IoU")}, tolerance=1e-4)
    per_class = [row.values["IoU"] for row in report.scores.per_group()]
    assert np.mean(per_class) == pytest.approx(report.scores.numbers["mIoU"])
    assert len(per_class) == len(names)
    sampled = score("hsnet").scores.numbers["mIoU"]
    share = len(set(block["class_id"])) / len(names)
    assert report.scores.numbers["mIoU"] == pytest.approx(sampled * share)


@pytest.mark.parametrize("shots", [1, 2, 5])
def test_hsnet_shots_vote(score: Score, tmp_path: Path, shots: int) -> None:
    arrays = masks("fss")
    for query in range(3):
        name = f"a/{query}.png"
        write_mask(tmp_path / "gt" / name, arrays["fss_gt"][query] * 255)
        write_mask(tmp_path / "voted" / name, arrays[f"vote_out_{shots}shot"][query] * 255)
        for k in range(shots):
            write_mask(tmp_path / "pred" / f"shot_{k}" / name, arrays["vote_in"][k, query] * 255)
    report = score("hsnet")
    voted = score("hsnet", prediction=tmp_path / "voted")
    assert report.scores.numbers == voted.scores.numbers
    assert (f"{shots} shots vote" in report.card.notes) == (shots > 1)


def test_class_and_image_means_differ(score: Score, tmp_path: Path) -> None:
    full, half = np.ones((4, 4)), np.ones((4, 4))
    half[2:] = 0
    for name, mask in (("a/0", full), ("a/1", full), ("b/0", half)):
        write_mask(tmp_path / "gt" / f"{name}.png", full * 255)
        write_mask(tmp_path / "pred" / f"{name}.png", mask * 255)
    assert score("hsnet").scores.numbers["mIoU"] == 75
    assert score("fss-per-image").scores.numbers["mIoU"] == pytest.approx(250 / 3)


def test_youtube_vis(score: Score, tmp_path: Path) -> None:
    block = recorded("youtubevis")
    truth = write_json(tmp_path / "gt.json", block["ground_truth"])
    prediction = write_json(tmp_path / "results.json", block["results"])
    report = score("youtube-vis", truth=truth, prediction=prediction)
    stats = dict(zip(block["stats_order"], block["stats"], strict=True))
    assert same(report, {key: 100 * v for key, v in stats.items() if v >= 0})
    assert np.isnan(report.scores.numbers["APm"])
    aps = [row.values["AP"] for row in report.scores.rows]
    assert aps == pytest.approx([100 * ap for ap in block["AP_per_category"]])


@pytest.mark.parametrize("protocol", ["coco-mask", "coco-box"])
def test_coco(score: Score, tmp_path: Path, protocol: str) -> None:
    """Agreement with pycocotools is in tests/unified/metrics/test_detection.py."""
    polygon = [[2, 2, 12, 2, 12, 12, 2, 12]]
    annotation = {"id": 1, "image_id": 1, "category_id": 1, "area": 100, "iscrowd": 0}
    truth = {
        "images": [{"id": 1, "height": 20, "width": 20}],
        "categories": [{"id": 1, "name": "square"}],
        "annotations": [{**annotation, "bbox": [2, 2, 10, 10], "segmentation": polygon}],
    }
    result = {"image_id": 1, "category_id": 1, "score": 0.5, "bbox": [2, 2, 10, 10]}
    paths = {
        "truth": write_json(tmp_path / "gt.json", truth),
        "prediction": write_json(tmp_path / "r.json", [{**result, "segmentation": polygon}]),
    }
    assert score(protocol, **paths).scores.numbers["AP"] == pytest.approx(100)
    write_json(tmp_path / "r.json", [{**result, "segmentation": polygon, "image_id": 7}])
    with pytest.raises(InputError, match="image_id 7"):
        score(protocol, **paths)
    write_json(tmp_path / "r.json", [{**result, "segmentation": polygon, "category_id": 9}])
    with pytest.raises(InputError, match=r"r\.json, entry 0 has category_id 9"):
        score(protocol, **paths)


@pytest.mark.parametrize("protocol", ["coco-mask", "coco-box"])
def test_coco_of_a_model_without_classes(
    score: Score, tmp_path: Path, protocol: str, caplog: pytest.LogCaptureFixture
) -> None:
    """Perfect masks that are all of one category: judged by categories they have AP 25 and less."""
    things, found = [], []
    for image in (1, 2):
        for category in (3, 5, 8):
            box = [4 * category, 10 * image, 4, 6]
            x, y = box[:2]
            corners = [x, y, x + 4, y, x + 4, y + 6, x, y + 6]
            entry = {"image_id": image, "bbox": box, "segmentation": [corners]}
            things.append({**entry, "id": len(things) + 1, "category_id": category, "area": 24})
            found.append({**entry, "category_id": 3, "score": 0.9})
    truth = {
        "images": [{"id": image, "height": 40, "width": 50} for image in (1, 2)],
        "categories": [{"id": category, "name": f"kind {category}"} for category in (3, 5, 8)],
        "annotations": things,
    }
    paths = {
        "truth": write_json(tmp_path / "gt.json", truth),
        "prediction": write_json(tmp_path / "r.json", found),
    }
    by_category = score(protocol, **paths)
    assert by_category.scores.numbers["AP"] < 40
    assert len(by_category.scores.rows) == 3
    assert "merged" not in by_category.card.line()
    (warning,) = caplog.messages
    assert "all results are of category 3" in warning and "--class-agnostic" in warning
    caplog.clear()
    report = score(protocol, class_agnostic=True, **paths)
    assert report.scores.numbers["AP"] == pytest.approx(100)
    assert "class-agnostic: 3 categories merged" in report.card.line()
    assert [row.sequence for row in report.scores.rows] == ["any category"]
    assert not caplog.messages
    with pytest.raises(ConfigError, match="does not read --class-agnostic"):
        score("youtube-vis", class_agnostic=True, **paths)


@pytest.mark.parametrize(
    ("protocol", "block"), [("mmseg", "mDice"), ("mmseg-reduce-zero", "reduce_zero_label")]
)
def test_semantic(score: Score, tmp_path: Path, protocol: str, block: str) -> None:
    for index, (truth, prediction) in enumerate(zip(*masks("semseg").values(), strict=True)):
        write_mask(tmp_path / "gt" / f"{index}.png", truth)
        write_mask(tmp_path / "pred" / f"{index}.png", prediction)
    expected = recorded("semseg")[block]
    report = score(protocol, num_classes=6)
    wanted = {"mIoU": expected["mIoU_nanmean"], "aAcc": expected["aAcc"]}
    if "Dice" in expected:
        wanted["mDice"] = np.mean(expected["Dice"])
    assert same(report, percent(wanted))
    for row, iou in zip(report.scores.rows, expected["IoU"], strict=True):
        assert row.values["IoU"] == pytest.approx(
            100 * (np.nan if iou is None else iou), nan_ok=True
        )
    with pytest.raises(InputError, match="--classes"):
        score(protocol)


def test_another_label_than_255_can_be_ignored(score: Score, tmp_path: Path) -> None:
    truth = np.array([[0, 0, 1, 1, 2, 2]] * 3)
    write_mask(tmp_path / "gt" / "a.png", truth)
    write_mask(tmp_path / "pred" / "a.png", np.where(truth == 2, 1, truth))
    assert same(score("mmseg", num_classes=3), {"mIoU": 50, "aAcc": 200 / 3})
    report = score("mmseg", num_classes=3, ignore=2)
    assert same(report, {"mIoU": 100, "aAcc": 100})
    assert report.card.notes == ("label 2 ignored, not 255",)


def test_every_task_has_a_default_and_names_are_checked(score: Score) -> None:
    assert default_protocol("ris") == "lavt"
    assert {default_protocol(p.task) for p in PROTOCOLS.values()} <= set(PROTOCOLS)
    with pytest.raises(ConfigError, match="choose from davis17-semi"):
        score("davis")
    with pytest.raises(ConfigError, match="choose from lavt"):
        evaluate("sav", Request(Path("a"), Path("b")), task="ris")


def test_a_stored_iou_can_be_added_up_again(score: Score, tmp_path: Path) -> None:
    write_pairs(tmp_path, "ris")
    rows = score("lavt").scores.rows
    inter, union = (np.array([row.values[key] for row in rows]) for key in "IU")
    assert [row.values["IoU"] for row in rows] == (100 * overlap_ratio(inter, union)).tolist()
