"""tools/data.py: makes sets, finds the first wrong file, and converts without changing a sample."""

from __future__ import annotations

import importlib.util
import json
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified.data.catalog import CATALOG, load_records
from unified.data.check import check_dataset
from unified.data.formats.records import annotation_mask, target_mask
from unified.modeling.vocabulary import SPECIAL, Vocabulary, split_words

ROOT = Path(__file__).parents[2]
_SPEC = importlib.util.spec_from_file_location("data_tool", ROOT / "tools/data.py")
assert _SPEC is not None and _SPEC.loader is not None
_TOOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOOL)
main = _TOOL.main


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tool sets the root for the rest of its process; here it is put back after each test."""
    monkeypatch.setitem(os.environ, "DETECTRON2_DATASETS", "nowhere")


def _make(root: Path, name: str, size: int = 2) -> None:
    assert main(["make", name, "--root", str(root), "--size", str(size)]) == 0


def _delete(path: Path) -> None:
    path.unlink()


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _shrink(path: Path) -> None:
    with Image.open(path) as image:
        smaller = image.resize((20, 10), Image.Resampling.NEAREST)
    smaller.save(path)


def _colour(path: Path) -> None:
    with Image.open(path) as image:
        image.convert("RGB").save(path)


def _blank(path: Path) -> None:
    with Image.open(path) as image:
        Image.fromarray(np.zeros((image.height, image.width), dtype=np.uint8)).save(path)


def _mute(path: Path) -> None:
    content = json.loads(path.read_text())
    for video in content["videos"].values():
        for entry in video["expressions"].values():
            entry["exp"] = " "
    path.write_text(json.dumps(content))


def _rename_a_key(key: str) -> Callable[[Path], None]:
    """Spoils the last entry in the file that has the key."""

    def spoil(path: Path) -> None:
        before, _, after = path.read_text().rpartition(f'"{key}":')
        path.write_text(f'{before}"{key}_":{after}')

    return spoil


def _lengthen_a_code(path: Path) -> None:
    """A run-length code of more pixels than the picture has, which no library may be given."""
    content = json.loads(path.read_text())
    content["annotations"][-1]["segmentation"] = {"size": [64, 96], "counts": [10, 60000]}
    path.write_text(json.dumps(content))


LISTS = (".json", ".txt")
FAULTS: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("coco_2017_val", "coco/val2017/*.jpg", _delete, "is missing: expected image"),
    ("coco_2017_val", "coco/val2017/*.jpg", _truncate, "cannot be read"),
    ("coco_2017_val", "coco/val2017/*.jpg", _shrink, "is 10 x 20 pixels"),
    ("coco_2017_val", "coco/annotations/*val2017.json", _truncate, "is not valid JSON"),
    ("objects365_v2_train", "Objects365V2/images/v2/*/*.jpg", _delete, "is missing"),
    ("grefcoco-unc-train", "refer/grefcoco/instances.json", _delete, "is missing"),
    ("fss-1000-val", "fss-1000/images/*/3.png", _delete, "the mask of 3.jpg"),
    ("fss-1000-train", "fss-1000/splits/trn.txt", _delete, "one class name per line"),
    ("fss-1000-train", "fss-1000/images/*/1.png", _shrink, "has size (10, 20)"),
    ("pascal-5i-val-0", "VOC2012/SegmentationClassAug/*.png", _blank, "is empty"),
    ("ytbvos18-train", "ytbvos18/train/Annotations/*/00000.png", _colour, "has mode RGB"),
    ("ytbvos18-train", "ytbvos18/train/JPEGImages/*/00010.jpg", _delete, "expected the frame of"),
    ("ytbvos18-val", "ytbvos18/valid/meta.json", _delete, "meta.json is missing"),
    ("mose-val", "mose/valid/Annotations/*/00000.png", _blank, "has no object"),
    ("davis17-val", "DAVIS/ImageSets/2017/val.txt", _delete, "not installed: expected"),
    ("vos-lvos-val", "lvos/valid/valid_meta.json", _delete, "frame range of every object"),
    ("ovis-train", "ovis/train/*/img_0000003.jpg", _delete, "a frame of clip"),
    ("refytvos-train", "ref-youtube-vos/train/JPEGImages/*/00005.jpg", _delete, "00005"),
    ("mevis-train", "mevis/train/meta_expressions.json", _mute, "expected words in each"),
    ("mevis-val_u", "mevis/valid_u/mask_dict.json", _truncate, "is not valid JSON"),
    # In the middle of a clip, or one of the ten of a class.
    ("davis17-val", "DAVIS/JPEGImages/480p/*/00001.jpg", _truncate, "cannot be read"),
    ("davis17-val", "DAVIS/Annotations/480p/*/00004.png", _delete, "the label map of a frame"),
    ("davis16-val", "DAVIS2016/Annotations/480p/*/00004.png", _shrink, "has size (10, 20)"),
    ("mose-train", "mose/train/Annotations/*/00002.png", _delete, "the label map of a frame"),
    ("ytbvos19-val", "ytbvos19/valid/Annotations/*/*.png", _delete, "starts on that frame"),
    ("vos-lvos-val", "lvos/valid/Annotations/*/00000001.png", _delete, "starts on that frame"),
    ("refytvos-train", "ref-youtube-vos/train/Annotations/*/00010.png", _colour, "has mode RGB"),
    ("refytvos-val", "ref-youtube-vos/valid/JPEGImages/*/00010.jpg", _shrink, "is 10 x 20"),
    ("fss-1000-val", "fss-1000/images/*/4.jpg", _delete, "expected the image of a mask"),
    # Wrong keys and values.
    ("coco_2017_val", "coco/annotations/*val2017.json", _rename_a_key("name"), "lacks 'name'"),
    ("refcoco-unc-val", "coco2014/**/instances_val.json", _rename_a_key("id"), "lacks 'id'"),
    (
        "ovis-train",
        "ovis/annotations/train.json",
        _rename_a_key("segmentations"),
        "lacks 'segmentations'",
    ),
    ("mevis-val", "mevis/valid/meta_expressions.json", _rename_a_key("exp"), "lacks 'exp'"),
    ("refytvos-train", "ref*/meta*/train/*.json", _rename_a_key("obj_id"), "without obj_id"),
    ("coco_2017_val", "coco/annotations/*val2017.json", _lengthen_a_code, "is not of 128 x 96"),
]


def _used_files(name: str) -> set[str]:
    """Pictures and masks of a set, whose release may hold other sets as well."""
    used: set[str] = set()
    for record in load_records(name):
        used.update(record.get("file_names") or [record["file_name"]])
        used.update(filter(None, record.get("mask_files", ())))
        used.update(a["mask_file"] for a in record.get("annotations", ()) if "mask_file" in a)
    return used


@pytest.mark.parametrize(
    ("name", "pattern", "spoil", "message"),
    FAULTS,
    ids=[f"{name}-{spoil.__name__[1:]}-{i}" for i, (name, _, spoil, _) in enumerate(FAULTS)],
)
def test_check_names_the_wrong_file(
    name: str,
    pattern: str,
    spoil: Callable[[Path], None],
    message: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    _make(tmp_path, name)
    assert main(["check", name, "--root", str(tmp_path)]) == 0
    used = _used_files(name)
    paths = sorted(p for p in tmp_path.glob(pattern) if p.suffix in LISTS or str(p) in used)
    wrong = paths[len(paths) // 2]  # one file among many that are right
    spoil(wrong)
    capsys.readouterr()
    assert main(["check", name, "--root", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith(f"error: dataset {name}")
    assert spoil in (_mute, _lengthen_a_code) or "is not as expected: /" not in error
    if spoil not in (_mute, _lengthen_a_code):
        assert str(wrong) in error or str(wrong.parent) in error


def test_check_opens_every_file_while_there_is_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _make(tmp_path, "davis17-val")
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    whole, hasty = check_dataset("davis17-val"), check_dataset("davis17-val", seconds=0)
    assert whole.num_opened == whole.num_files == hasty.num_files == 2 * 2 * 8
    assert hasty.num_opened == 2 * 2 * 3
    assert whole.gaps == ()


def test_check_points_at_gaps_that_nothing_lists(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Releases without lists of frames cannot be said to be wrong, but are unlikely."""
    _make(tmp_path, "mose-val")
    gap = next((tmp_path / "mose/valid/JPEGImages").glob("*/00005.jpg"))
    gap.unlink()
    capsys.readouterr()
    assert main(["check", "mose-val", "--root", str(tmp_path)]) == 0
    assert f"perhaps missing: {gap} (1 gaps in all)" in capsys.readouterr().out


def test_check_all_reports_only_what_is_there(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["check", "all", "--root", str(tmp_path)]) == 2
    assert "no dataset is installed" in capsys.readouterr().err
    _make(tmp_path, "davis16-val")
    assert main(["check", "all", "--root", str(tmp_path)]) == 0
    assert "2 sets ok, 0 wrong" in capsys.readouterr().out


def test_check_all_includes_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made, root = tmp_path / "made", tmp_path / "root"
    _make(made, "mose-train")
    (root / "own").mkdir(parents=True)
    folder = made / "mose/train"
    text = f"task: vos\nsplit: train\nimages: {folder}/JPEGImages\nmasks: {folder}/Annotations\n"
    (root / "own/cells.yaml").write_text(text)
    capsys.readouterr()
    assert main(["check", "all", "--root", str(root)]) == 0
    found = capsys.readouterr().out
    assert "cells: ok, 2 samples" in found and "1 sets ok, 0 wrong" in found
    wrong = sorted(folder.glob("Annotations/*/00004.png"))[0]
    _truncate(wrong)
    assert main(["check", "all", "--root", str(root)]) == 2
    assert f"error: dataset cells: mask {wrong} cannot be read" in capsys.readouterr().err
    (root / "own/cells.yaml").write_text("task: [")
    assert main(["check", "all", "--root", str(root)]) == 2
    assert "not valid yaml" in capsys.readouterr().err


def test_hints_keep_the_root(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "my data"
    assert main(["check", "davis17-val", "--root", str(root)]) == 2
    command = f"`python tools/data.py check davis17-val --root '{root}'`"
    assert command in capsys.readouterr().err


def test_make_never_replaces_real_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _make(tmp_path, "mose-train")
    (tmp_path / "MADE.txt").unlink()  # as if the user had put the data there
    assert main(["make", "mose-train", "--root", str(tmp_path), "--size", "2"]) == 2
    assert "not made" in capsys.readouterr().err
    assert main(["make", "mose-trian", "--root", str(tmp_path)]) == 2
    assert "not in the catalog" in capsys.readouterr().err


def test_converted_refcoco_has_the_same_samples(tmp_path: Path) -> None:
    for name in ("refcocog-google-train", "refcoco-mixed", "grefcoco-unc-train"):
        _make(tmp_path, name)
        os.environ["DETECTRON2_DATASETS"] = str(tmp_path)
        for path in tmp_path.glob("coco2014/annotations/*/*.json"):
            path.unlink()
        before = load_records(name)
        assert main(["convert", name, "--root", str(tmp_path)]) == 0
        assert list(tmp_path.glob("coco2014/annotations/*/*.json"))
        after = load_records(name)
        assert len(before) == len(after)
        for a, b in zip(before, after, strict=True):
            assert a["file_name"] == b["file_name"]
            assert a["expressions"] == b["expressions"]
            size = a["height"], a["width"]
            for x, y in zip(a["annotations"], b["annotations"], strict=True):
                np.testing.assert_array_equal(annotation_mask(x, *size), annotation_mask(y, *size))


def test_converted_mevis_has_the_same_masks(tmp_path: Path) -> None:
    _make(tmp_path, "mevis-train")
    os.environ["DETECTRON2_DATASETS"] = str(tmp_path)
    before = load_records("mevis-train")
    assert main(["convert", "mevis-train", "--root", str(tmp_path)]) == 0
    (tmp_path / "mevis/train/mask_dict.json").unlink()
    for a, b in zip(before, load_records("mevis-train"), strict=True):
        np.testing.assert_array_equal(target_mask(a, 3), target_mask(b, 3))


def test_convert_says_when_there_is_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["convert", "davis17-val"]) == 2
    assert "needs no conversion" in capsys.readouterr().err


def test_a_vocabulary_holds_the_words_of_a_set_and_of_its_mirror_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _make(tmp_path, "refcoco-unc-train", size=12)
    output = tmp_path / "words" / "refcoco.txt"
    command = ["vocabulary", "refcoco-unc-train", "--root", str(tmp_path), "--output", str(output)]
    assert main(command) == 0
    made = Vocabulary.read(output)
    assert f"{output}: {len(made)} words" in capsys.readouterr().out
    sentences = [t for record in load_records("refcoco-unc-train") for t in record["expressions"]]
    words = {word for text in sentences for word in split_words(text)}
    assert words <= set(made.words)
    assert set(made.words) - words <= {*SPECIAL, "left", "right", "leftmost", "rightmost"}


def test_sets_without_sentences_give_no_vocabulary(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _make(tmp_path, "fss-1000-test")
    output = tmp_path / "words.txt"
    command = ["vocabulary", "fss-1000-test", "--root", str(tmp_path), "--output", str(output)]
    assert main(command) == 2
    assert "fss-1000-test has no sentences" in capsys.readouterr().err
    assert not output.exists()


def test_names_are_listed_by_task_with_what_is_on_disk(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _make(tmp_path, "fss-1000-test")
    capsys.readouterr()
    assert main(["list", "--root", str(tmp_path)]) == 0
    *rows, last = capsys.readouterr().out.splitlines()
    assert last == f"below {tmp_path}"
    found = {line.split()[1]: line.split() for line in rows}
    assert set(found) == set(CATALOG)
    assert found["fss-1000-test"] == ["fss", "fss-1000-test", "test", "on", "disk"]
    assert found["davis17-val"] == ["vos", "davis17-val", "test", "absent"]
    tasks = [line.split()[0] for line in rows]
    assert tasks == sorted(tasks)
