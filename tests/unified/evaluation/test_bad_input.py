"""Every fault of prediction files: one error that names the file, or a count on the card."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unified.errors import ConfigError, InputError
from unified.evaluation.protocols import evaluate
from unified.evaluation.reading import read_split
from unified.evaluation.report import Report, Request, Split
from unified.files import file_sha256

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import masks, recorded, write_clip, write_davis, write_json, write_mask

ROOT = Path(__file__).parents[3]


def run(root: Path, protocol: str = "davis17-semi", *, allow: bool = False) -> Report:
    request = Request(root / "gt", root / "pred_semi", allow_missing=allow, num_workers=2)
    return evaluate(protocol, request)


def remove_frame(root: Path) -> None:
    (root / "alpha" / "00002.png").unlink()


def add_frame(root: Path) -> None:
    write_mask(root / "alpha" / "00099.png", np.zeros((60, 80)))


def jpeg_beside(root: Path) -> None:
    path = root / "alpha" / "00002.png"
    Image.open(path).convert("L").save(path.with_suffix(".jpg"))
    path.unlink()


def one_lower(root: Path) -> None:
    """As the tools write several clips."""
    (root / "alpha/masks").mkdir()
    for path in sorted((root / "alpha").glob("*.png")):
        path.rename(root / "alpha/masks" / path.name)


def shrink(root: Path) -> None:
    write_mask(root / "bravo" / "00001.png", np.zeros((30, 40)))


def colour(root: Path) -> None:
    path = root / "bravo" / "00003.png"
    Image.open(path).convert("RGB").save(path)


def sixteen_bits(root: Path) -> None:
    Image.fromarray(np.zeros((60, 80), np.uint16)).save(root / "bravo" / "00003.png")


def jpeg_as_png(root: Path) -> None:
    path = root / "echo" / "00003.png"
    Image.open(path).convert("L").save(path, format="JPEG")


def smear(root: Path) -> None:
    path = root / "echo" / "00003.png"
    noise = np.random.default_rng(0).integers(0, 40, (60, 80))
    write_mask(path, noise)


def stray(root: Path) -> None:
    path = root / "delta" / "00003.png"
    mask = np.array(Image.open(path))
    mask[0, 0] = 77
    write_mask(path, mask)


def truncate(root: Path) -> None:
    path = root / "delta" / "00003.png"
    path.write_bytes(path.read_bytes()[:60])


def extra(root: Path) -> None:
    shutil.copytree(root / "alpha", root / "zulu")


def missing(root: Path) -> None:
    shutil.rmtree(root / "alpha")


@pytest.mark.parametrize(
    ("spoil", "message", "warnings"),
    [
        (remove_frame, r"alpha/00002\.png is missing: write one PNG", {"missing mask": 1}),
        (add_frame, r"alpha/00099\.png is no frame of the ground truth", {"extra mask": 1}),
        (jpeg_beside, r"alpha/00002\.png is missing, .* 00002\.jpg", {"missing mask": 1}),
        (one_lower, r"alpha/00001\.png is missing, .* masks/00001\.png", {"missing mask": 4}),
        (shrink, r"bravo/00001\.png is 40x30 pixels, .* 80x60: resize", {"unusable mask": 1}),
        (colour, r"bravo/00003\.png has mode RGB, .* indexed", {"unusable mask": 1}),
        (sixteen_bits, r"bravo/00003\.png has mode I;16", {"unusable mask": 1}),
        (jpeg_as_png, r"echo/00003\.png is a JPEG file", {"unusable mask": 1}),
        (smear, r"echo/00003\.png holds id 3 .* smoothed or saved as JPEG", {"stray id": 37}),
        (stray, r"delta/00003\.png holds id 77 .* has 1, 3: use its ids", {"stray id": 1}),
        (truncate, r"delta/00003\.png cannot be read", {"unusable mask": 1}),
        (extra, r"pred_semi/zulu is no sequence", {"extra sequence": 1}),
        (missing, r"pred_semi/alpha is missing", {"missing sequence": 1, "missing mask": 4}),
    ],
)
def test_one_error_or_a_counted_warning(
    tmp_path: Path, spoil: Callable[[Path], None], message: str, warnings: dict[str, int]
) -> None:
    write_davis(tmp_path)
    spoil(tmp_path / "pred_semi")
    with pytest.raises(InputError, match=message):
        run(tmp_path)
    report = run(tmp_path, allow=True)
    assert report.card.warnings == warnings
    for kind, number in warnings.items():
        assert f"{number} {kind}" in report.card.line()
    assert report.scores.problems.examples


def test_a_missing_frame_counts_as_an_empty_mask(tmp_path: Path) -> None:
    write_davis(tmp_path)
    write_mask(tmp_path / "pred_semi" / "alpha" / "00002.png", np.zeros((60, 80)))
    empty = run(tmp_path).scores.numbers
    remove_frame(tmp_path / "pred_semi")
    assert run(tmp_path, allow=True).scores.numbers == empty


def test_frames_between_those_with_ground_truth_are_on_the_card(tmp_path: Path) -> None:
    """As in sets where every fifth frame has masks, for predictions of all."""
    for frame in range(0, 15, 5):
        write_mask(tmp_path / "gt" / "a" / f"{frame:05d}.png", np.ones((8, 8)))
    write_clip(tmp_path / "pred" / "a", np.ones((11, 8, 8)))
    report = evaluate("vos-all-frames", Request(tmp_path / "gt", tmp_path / "pred"))
    assert "predicted frames without truth: 8" in report.card.line()


def test_folders_that_hold_nothing_to_score(tmp_path: Path) -> None:
    write_davis(tmp_path)
    shutil.move(tmp_path / "pred_semi", tmp_path / "other")
    with pytest.raises(InputError, match="pred_semi is not a folder"):
        run(tmp_path)
    (tmp_path / "pred_semi").mkdir()
    for allow in (False, True):
        with pytest.raises(InputError, match="pred_semi is empty"):
            run(tmp_path, allow=allow)
    shutil.move(tmp_path / "other", tmp_path / "pred_semi" / "davis")
    with pytest.raises(InputError, match=r"none of the 5 sequences .* alpha"):
        run(tmp_path, allow=True)
    (tmp_path / "gt" / "foxtrot").mkdir()
    with pytest.raises(InputError, match=r"gt/foxtrot holds no PNG"):
        evaluate(
            "davis17-semi",
            Request(tmp_path / "gt", tmp_path / "pred_semi" / "davis", allow_missing=True),
        )


@pytest.mark.parametrize(
    ("protocol", "option", "given"),
    [
        ("coco-mask", "split", {"split": Split(("1",), "val.txt")}),
        ("uniref-box", "split", {"split": Split(("1",), "val.txt")}),
        ("youtube-vis", "split", {"split": Split(("1",), "val.txt")}),
        ("grefcoco-box", "split", {"split": Split(("1",), "val.txt")}),
        ("davis17-semi", "meta", {"meta": Path("meta.json")}),
        ("mevis", "unseen", {"unseen": Path("unseen.txt")}),
        ("hsnet", "classes", {"num_classes": 20}),
        ("lavt", "ignore", {"ignore": 0}),
    ],
)
def test_an_option_that_is_not_read_is_an_error(
    protocol: str, option: str, given: dict[str, Any]
) -> None:
    """The card would name a split that nobody looked at."""
    with pytest.raises(ConfigError, match=f"{protocol} does not read --{option}"):
        evaluate(protocol, Request(Path("gt"), Path("pred"), **given))


def test_wrong_weights_are_found_before_anything_is_scored(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.pth do not exist"):
        evaluate("lavt", Request(tmp_path, tmp_path), weights=tmp_path / "none.pth")


@pytest.mark.parametrize(
    ("protocol", "what"),
    [("sav", "object"), ("mevis", "expression"), ("ref-youtube-vos", "expression")],
)
def test_folders_inside_a_sequence_that_are_extra(tmp_path: Path, protocol: str, what: str) -> None:
    for side in ("gt", "pred"):
        write_clip(tmp_path / side / "a" / "0", np.ones((3, 8, 9)))
    request = Request(tmp_path / "gt", tmp_path / "pred")
    if protocol == "mevis":
        sentences = {"0": {"exp": "it", "anno_id": [1]}}
        video = {"frames": ["00000", "00001", "00002"], "expressions": sentences}
        write_json(tmp_path / "gt" / "meta_expressions.json", {"videos": {"a": video}})
        code = {"size": [8, 9], "counts": [0, 72]}
        write_json(tmp_path / "gt" / "mask_dict.json", {"1": [code] * 3})
    assert evaluate(protocol, request).scores.numbers["J"] == 100
    write_clip(tmp_path / "pred" / "a" / "7", np.ones((3, 8, 9)))
    with pytest.raises(InputError, match=f"pred/a/7 is no {what} of the ground truth: remove"):
        evaluate(protocol, request)
    report = evaluate(protocol, replace(request, allow_missing=True))
    assert report.card.warnings == {f"extra {what}": 1}
    assert report.scores.numbers["J"] == 100


def test_splits(tmp_path: Path) -> None:
    write_davis(tmp_path)
    shutil.rmtree(tmp_path / "pred_semi" / "alpha")
    (tmp_path / "val.txt").write_text("bravo\necho\n")
    request = Request(
        tmp_path / "gt", tmp_path / "pred_semi", read_split(tmp_path / "val.txt", None)
    )
    report = evaluate("davis17-semi", request)  # charlie and delta are no extra sequences
    assert report.card.split == "val.txt (2)"
    assert {row.sequence for row in report.scores.rows} == {"bravo", "echo"}
    request = Request(tmp_path / "gt", tmp_path / "pred_semi", Split(("kilo",), "x"))
    with pytest.raises(InputError, match="the split has kilo, which the ground truth"):
        evaluate("davis17-semi", request)
    (tmp_path / "none.txt").write_text("")
    with pytest.raises(InputError, match="leaves no name"):
        read_split(tmp_path / "none.txt", None)
    with pytest.raises(InputError, match="give --split as well"):
        read_split(None, tmp_path / "val.txt")
    (tmp_path / "val.txt").write_text("bravo\necho\nbravo\n")
    assert read_split(tmp_path / "val.txt", None).names == ("bravo", "echo")
    listed = write_json(tmp_path / "instances.json", {"videos": [{"id": 1}]})
    with pytest.raises(InputError, match=r"instances\.json has videos without names"):
        read_split(listed, None)


@pytest.mark.parametrize("protocol", ["coco-mask", "youtube-vis", "uniref-box", "grefcoco-box"])
def test_no_card_tells_of_a_split_that_was_not_heeded(tmp_path: Path, protocol: str) -> None:
    lists = {key: [] for key in ("images", "videos", "annotations", "categories")}
    truth = write_json(tmp_path / "gt.json", lists)
    request = Request(truth, write_json(tmp_path / "r.json", []), Split(("a",), "val.txt (1)"))
    with pytest.raises(ConfigError, match=f"{protocol} does not read --split"):
        evaluate(protocol, request)


def test_meta_of_another_benchmark(tmp_path: Path) -> None:
    write_clip(tmp_path / "gt" / "a", np.zeros((3, 8, 8)))
    write_clip(tmp_path / "pred" / "a", np.zeros((3, 8, 8)))
    (tmp_path / "unseen.txt").write_text("a\n")
    files = {"meta": tmp_path / "meta.json", "unseen": tmp_path / "unseen.txt"}
    request = Request(tmp_path / "gt", tmp_path / "pred", **files)
    meta = write_json(tmp_path / "meta.json", {"images": []})
    for protocol in ("youtube-vos", "lvos"):
        with pytest.raises(InputError, match=r"meta\.json has no 'videos'"):
            evaluate(protocol, request)
    with pytest.raises(InputError, match=r"meta\.json has no 'videos'"):
        evaluate("ref-youtube-vos", replace(request, unseen=None))
    write_json(meta, {"videos": {"a": {"expressions": {}}}})
    with pytest.raises(InputError, match=r"meta\.json has no objects of video a"):
        evaluate("lvos", request)
    write_json(meta, {"videos": {"b": {}}})
    with pytest.raises(InputError, match=r"meta\.json has no video a"):
        evaluate("lvos", request)


@pytest.mark.parametrize(
    ("entry", "lvos", "youtube"),
    [
        ({}, "has no frame_range of object 1", "has no category of object 1"),
        (
            {"frame_range": {"start": "x"}, "category": "cat"},
            "frame_range is .*, expected the numbers start, end and frame_nums",
            None,
        ),
    ],
)
def test_meta_whose_objects_lack_something(
    tmp_path: Path, entry: dict[str, object], lvos: str, youtube: str | None
) -> None:
    for side in ("gt", "pred"):
        write_clip(tmp_path / side / "a", np.ones((3, 8, 8)))
    (tmp_path / "unseen.txt").write_text("a\n")
    meta = write_json(tmp_path / "meta.json", {"videos": {"a": {"objects": {"1": entry}}}})
    request = Request(tmp_path / "gt", tmp_path / "pred", meta=meta, unseen=tmp_path / "unseen.txt")
    with pytest.raises(InputError, match=lvos):
        evaluate("lvos", request)
    if youtube is None:
        assert evaluate("youtube-vos", request).scores.numbers["J-seen"] == 100
    else:
        with pytest.raises(InputError, match=youtube):
            evaluate("youtube-vos", request)


def test_sequences_that_do_not_count_are_on_the_card(tmp_path: Path) -> None:
    """DAVIS counts the objects of frame 0; folders of file managers are no sequences."""
    write_davis(tmp_path)
    numbers = run(tmp_path).scores.numbers
    for side in ("gt", "pred_semi"):
        write_clip(tmp_path / side / "later", np.arange(4)[:, None, None] * np.ones((4, 8, 8)))
    (tmp_path / "pred_semi" / "__MACOSX").mkdir()
    report = run(tmp_path)
    assert report.scores.numbers == numbers
    assert report.card.notes == ("sequences without an object that counts: 1",)


def test_images(tmp_path: Path) -> None:
    for index, mask in enumerate(masks("ris")["gt"][:3]):
        write_mask(tmp_path / "gt" / f"{index}.png", mask)
        write_mask(tmp_path / "pred" / f"{index}.png", mask)
    request = Request(tmp_path / "gt", tmp_path / "pred")
    allowed = Request(tmp_path / "gt", tmp_path / "pred", allow_missing=True)
    write_mask(tmp_path / "pred" / "9.png", np.zeros((60, 80)))
    (tmp_path / "pred" / "1.png").unlink()
    write_mask(tmp_path / "pred" / "2.png", np.random.default_rng(0).integers(0, 9, (60, 80)))
    with pytest.raises(InputError, match=r"pred/9\.png is no sample"):
        evaluate("lavt", request)
    warnings = evaluate("lavt", allowed).card.warnings
    assert warnings == {"extra mask": 1, "missing mask": 1, "unusable mask": 1}
    (tmp_path / "pred" / "9.png").unlink()
    with pytest.raises(InputError, match=r"pred/1\.png is missing"):
        evaluate("lavt", request)
    write_mask(tmp_path / "pred" / "1.png", np.zeros((60, 80)))
    with pytest.raises(InputError, match=r"pred/2\.png holds 8 values besides 0"):
        evaluate("lavt", request)
    for names in (("x",), ("0", "x")):
        with pytest.raises(InputError, match=r"the split has x, which is no class or mask of"):
            evaluate("lavt", Request(tmp_path / "gt", tmp_path / "pred", Split(names, "list")))
    with pytest.raises(InputError, match="lies in no class folder"):
        evaluate("hsnet", request)
    with pytest.raises(InputError, match=r"pred/2\.png holds label 3, .* --classes .* JPEG"):
        evaluate("mmseg", Request(tmp_path / "gt", tmp_path / "pred", num_classes=3))
    with pytest.raises(InputError, match=r"--classes is 0, expected 1 to 256"):
        evaluate("mmseg", Request(tmp_path / "gt", tmp_path / "pred", num_classes=0))
    write_mask(tmp_path / "gt" / "2.png", np.full((60, 80), 9))
    with pytest.raises(InputError, match=r"gt/2\.png: ground truth holds label 9"):
        evaluate("mmseg", Request(tmp_path / "gt", tmp_path / "pred", num_classes=9))
    write_json(tmp_path / "pred" / "no_target.json", {"0": True})
    with pytest.raises(InputError, match=r"no_target\.json lacks sample 1"):
        evaluate("grefcoco", allowed)


def test_report_files_and_checkpoint(tmp_path: Path) -> None:
    write_davis(tmp_path)
    (tmp_path / "model.pth").write_bytes(b"weights")
    report = evaluate(
        "davis17-semi",
        Request(tmp_path / "gt", tmp_path / "pred_semi"),
        weights=tmp_path / "model.pth",
    )
    report.write(tmp_path / "out")
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["card"]["checkpoint_sha256"] == file_sha256(tmp_path / "model.pth")
    assert summary["card"]["inference"] is None
    assert summary["card"]["num_samples"] == 12
    expected = recorded("davis17")["semi-supervised"]["global"]["J&F-Mean"]
    assert summary["numbers"]["J&F-Mean"] == pytest.approx(100 * expected, abs=1e-9)
    lines = (tmp_path / "out" / "per_sequence.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in lines[1:]] == sorted(masks_of_davis())
    for name in ("per_sequence", "per_item"):
        head, *lines = (tmp_path / "out" / f"{name}.csv").read_text().splitlines()
        assert head == "sequence,item,J&F,J,F,J-Recall,J-Decay,F-Recall,F-Decay,protocol"
        assert {line.split(",")[-1] for line in lines} == {"davis17-semi"}
    with pytest.raises(InputError, match=r"none\.pth do not exist"):
        evaluate(
            "davis17-semi",
            Request(tmp_path / "not read", tmp_path / "before that"),
            weights=tmp_path / "none.pth",
        )


def masks_of_davis() -> set[str]:
    return {key.rsplit("_", 1)[1] for key in masks("davis17")}


def test_scoring_needs_neither_torch_nor_detectron2() -> None:
    modules = ("protocols", "plots", "reading", "submission", "submission_check")
    code = (
        f"import sys, unified.label_maps, {', '.join(f'unified.evaluation.{m}' for m in modules)}\n"
        "print([m for m in ('torch', 'detectron2', 'matplotlib') if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.strip() == "[]"
