"""The whole pipeline on a made set: same bytes, true sentences, and sets that can be trained on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from projects.uniref.lite.data.vocabulary import COLOURS
from projects.uniref.lite.data.writing import SET_SPLITS, OwnWriter
from unified.data.augmentation import Augmentation
from unified.data.catalog import load_records
from unified.data.check import check_dataset
from unified.data.formats.files import segmentation_mask
from unified.data.mappers import TestMapper, TrainMapper
from unified.data.synthetic.clip_sets import write_davis16
from unified.data.synthetic.coco_sets import write_coco
from unified.data.synthetic.world import Scene as World
from unified.data.synthetic.world import make_scene
from unified.data.synthetic.writing import random_streams, save_jpeg
from unified.errors import InputError
from unified.label_maps import write_label_map
from unified.mask_files import read_ids

ROOT = Path(__file__).parents[5]
TOOL = ROOT / "datasets/prepare_lite.py"
_SPEC = importlib.util.spec_from_file_location("prepare_lite", TOOL)
assert _SPEC is not None and _SPEC.loader is not None
_TOOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOOL)
main = _TOOL.main

NUM_IMAGES, HELD_IMAGES, HELD_CLASS = 20, 9, "circle"
TRAIN = [name for name, split in SET_SPLITS.items() if split == "train"]
TEST = [name for name, split in SET_SPLITS.items() if split == "test"]


def _write_objects(folder: Path, name: str, values: str) -> None:
    """A folder of images and masks; ``values``: one thing, or all with their labels."""
    for number, rng in enumerate(random_streams(0, name, 4)):
        image, labels = make_scene(rng).draw()
        save_jpeg(folder / f"{name}/images/{number}.jpg", image)
        mask = labels == labels.max() if values == "one" else labels
        write_label_map(folder / f"{name}/masks/{number}.png", mask.astype(np.uint8))


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """COCO and DAVIS 2016 as released, folders of objects, and sentences for the clips."""
    root = tmp_path_factory.mktemp("given")
    write_coco(root, NUM_IMAGES, 0)
    write_davis16(root, 3, 0)
    _write_objects(root, "gadgets", "one")
    _write_objects(root, "regions", "all")
    _write_objects(root, "clothes", "all")
    labels = {"0": "null", "1": "dress", "2": "coat", "3": "hat", "4": "bag", "5": "belt"}
    (root / "clothes/labels.json").write_text(json.dumps(labels))
    davis = root / "DAVIS2016"
    videos = {
        folder.name: {
            "frames": sorted(path.stem for path in folder.iterdir()),
            "expressions": {"0": {"exp": "the thing in front", "obj_id": "1"}},
        }
        for folder in sorted((davis / "JPEGImages/480p").iterdir())
    }
    (davis / "meta_expressions.json").write_text(json.dumps({"videos": videos}))
    return root


def _arguments(given: Path, out: Path, **changes: str) -> list[str]:
    clips = sorted(path.name for path in (given / "DAVIS2016/JPEGImages/480p").iterdir())
    options = {
        "coco": f"{given / 'coco/train2017'} {given / 'coco/annotations/instances_train2017.json'}",
        "objects": f"gadget={given / 'gadgets'} {given / 'clothes'} {given / 'regions'}",
        "clips": str(given / "DAVIS2016"),
        "hold-out-images": str(HELD_IMAGES),
        "hold-out-classes": HELD_CLASS,
        "hold-out-clips": clips[0],
        "out": str(out),
        "size": "10",
        "longest-side": "120",
        **{name.replace("_", "-"): value for name, value in changes.items()},
    }
    return [word for name, value in options.items() for word in (f"--{name}", *value.split())]


@pytest.fixture(scope="module")
def built(given: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that the command wrote."""
    out = tmp_path_factory.mktemp("built") / "lite"
    assert main(_arguments(given, out)) == 0
    return out


@pytest.fixture
def data_root(built: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder as the root of all datasets."""
    monkeypatch.setitem(os.environ, "DETECTRON2_DATASETS", str(built))
    return built


def _bytes(root: Path) -> dict[str, bytes]:
    files = (path for path in sorted(root.rglob("*")) if path.is_file())
    return {path.relative_to(root).as_posix(): path.read_bytes() for path in files}


def test_another_seed_other_bytes(given: Path, built: Path, tmp_path: Path) -> None:
    assert main(_arguments(given, tmp_path / "1", seed="1")) == 0
    first, other = _bytes(built), _bytes(tmp_path / "1")
    assert first["own/lite/lite_ris.json"] != other["own/lite/lite_ris.json"]


def test_order_of_hashed_words_changes_no_file(given: Path, built: Path, tmp_path: Path) -> None:
    digests = [_digests(built)]
    for seed in ("1", "2"):
        command = [sys.executable, str(TOOL), *_arguments(given, tmp_path / seed)]
        hashed = {**os.environ, "PYTHONHASHSEED": seed}
        subprocess.run(command, env=hashed, check=True, capture_output=True)
        digests.append(_digests(tmp_path / seed))
    assert digests[0] == digests[1] == digests[2]


def _digests(root: Path) -> dict[str, str]:
    return {name: hashlib.sha256(data).hexdigest() for name, data in _bytes(root).items()}


def test_every_set_is_known_by_its_yaml(built: Path) -> None:
    assert {path.stem for path in (built / "own").glob("*.yaml")} == {*TRAIN, *TEST}


@pytest.mark.parametrize("name", TRAIN)
def test_training_sets_are_checked_and_trained_on(name: str, data_root: Path) -> None:
    check_dataset(name)
    augmentation = Augmentation(short_sides=(48,), max_size=80, crop_range=(40, 60))
    mapper = TrainMapper(augmentation=augmentation)
    records = load_records(name)[::5]
    assert records
    for index, record in enumerate(records):
        rngs = (np.random.default_rng(index) for _ in range(2))
        sample = mapper(record, *rngs)
        wanted = bool(record["annotations"]) if name.startswith("lite_ris") else None
        assert wanted is None or len(sample["instances"]) == wanted
        assert ("expression" in sample) == (name.startswith(("lite_ris", "lite_rvos")))


@pytest.mark.parametrize("name", TEST)
def test_validation_sets_are_checked_and_predicted(name: str, data_root: Path) -> None:
    check_dataset(name)
    records = load_records(name)
    assert records
    for record in records:
        if "file_name" not in record:
            continue
        (sample,) = TestMapper()([record])
        if name.startswith("lite_ris"):
            assert sample["target"].any() == (name != "lite_ris_absent_val")


def test_what_is_held_out_is_in_no_training_set(given: Path, data_root: Path) -> None:
    held = {Path(record["file_name"]).name for record in load_records("lite_det_val")}
    assert len(held) == HELD_IMAGES
    trained = {Path(record["file_name"]) for record in load_records("lite_det")}
    assert len(trained) == NUM_IMAGES - HELD_IMAGES
    referred = {Path(record["file_name"]) for record in load_records("lite_ris")}
    assert all(path.name not in held for path in trained | referred if path.parent.name == "coco")
    classes = {record["class_name"] for record in load_records("lite_fss")}
    assert f"coco_{HELD_CLASS}" not in classes and "coco_square" in classes
    assert {record["class_name"] for record in load_records("lite_fss_val")} == {"coco_circle"}
    assert all(len(record["supports"]) >= 5 for record in load_records("lite_fss_val"))
    clips = {record["clip_id"] for record in load_records("lite_vos_val")}
    assert len(clips) == 1
    assert not clips & {record["clip_id"] for record in load_records("lite_vos")}
    assert not clips & {record["clip_id"] for record in load_records("lite_rvos")}


def test_held_out_classes_have_a_query_and_five_supports(given: Path, tmp_path: Path) -> None:
    held = _arguments(given, tmp_path / "out", hold_out_classes=f"{HELD_CLASS},square")
    assert main(held) == 0  # of nine images too few show either
    own = tmp_path / "out/own"
    assert not (own / "lite_fss_val.yaml").exists() and not (own / "lite/fss_val").exists()
    summary = json.loads((own / "lite/summary.json").read_text())["lite_fss_val"]
    assert summary["classes"] == 0
    assert summary["left out, as they have fewer than 6 images"] == 2


def test_held_out_classes_are_left_out_of_all_folders(given: Path, tmp_path: Path) -> None:
    clothes = tmp_path / "clothes"
    shutil.copytree(given / "clothes", clothes)
    labels = json.loads((clothes / "labels.json").read_text())
    (clothes / "labels.json").write_text(json.dumps({**labels, "2": HELD_CLASS}))
    round_things = tmp_path / "round"
    shutil.copytree(given / "gadgets", round_things)
    folders = f"{HELD_CLASS}={round_things} {clothes}"
    out = tmp_path / "out"
    assert main(_arguments(given, out, objects=folders, size="40")) == 0
    classes = out / "own/lite/fss"
    names = {folder.name for folder in classes.iterdir()}
    assert "clothes_dress" in names and not any(HELD_CLASS in name for name in names)
    own = {path.stat().st_ino for path in (out / "own/lite/images/round").iterdir()}
    pseudo = [path.stat().st_ino for path in classes.glob("region_*/*.jpg")]
    assert pseudo and not own & set(pseudo)


def test_held_out_clips_keep_their_frames(given: Path, data_root: Path) -> None:
    (record,) = load_records("lite_vos_val")
    source = given / "DAVIS2016/JPEGImages/480p" / record["clip_id"]
    assert [Path(path).read_bytes() for path in record["file_names"]] == [
        path.read_bytes() for path in sorted(source.iterdir())
    ]
    grey = given / "DAVIS2016/Annotations/480p" / record["clip_id"]
    for path, original in zip(record["mask_files"], sorted(grey.iterdir()), strict=True):
        assert np.array_equal(read_ids(path) > 0, read_ids(original) > 0)


def _worlds() -> dict[str, World]:
    """file name -> the made scene that it shows, from the generator that drew it."""
    rngs = random_streams(0, "coco/train", NUM_IMAGES)
    return {f"{n:012d}.jpg": make_scene(rng) for n, rng in enumerate(rngs, start=1)}


def _referring(root: Path, name: str) -> list[tuple[str, list[str], np.ndarray]]:
    """Stored file, sentences and merged mask of each record of a COCO-style file."""
    content = json.loads((root / f"own/lite/{name}.json").read_text())
    images = {image["id"]: image for image in content["images"]}
    result = []
    for image in content["images"]:
        size = image["height"], image["width"]
        entries = [a for a in content["annotations"] if a["image_id"] == image["id"]]
        masks = [segmentation_mask(entry["segmentation"], *size) for entry in entries]
        if "expressions" in image:
            merged = np.any([np.zeros(size, bool), *masks], axis=0)
            result.append((image["file_name"], image["expressions"], merged))
        for entry, mask in zip(entries, masks, strict=True):
            if "expressions" in entry:
                result.append((images[entry["image_id"]]["file_name"], entry["expressions"], mask))
    return result


def _said(text: str, words: Any) -> set[str]:
    found = set(re.findall("[a-z]+", text.replace("grey", "gray")))
    return {word for word in words if word in found or f"{word}s" in found}


def test_sentences_say_what_the_scene_was_drawn_from(built: Path) -> None:
    """Colour and kind come from the made world, not from what the pipeline measured."""
    worlds = _worlds()
    seen: Counter[str] = Counter()
    for name in ("lite_ris_real", "lite_ris_val", "lite_ris_class_val", "lite_ris_absent_val"):
        for file_name, texts, mask in _referring(built, name):
            if not file_name.startswith("coco/"):
                continue
            world = worlds[Path(file_name).name]
            _, labels = world.draw()
            labels = cv2.resize(labels, mask.shape[::-1], interpolation=cv2.INTER_NEAREST)
            present = {n: world.things[n - 1] for n in np.unique(labels[labels > 0]).tolist()}
            covered = {n for n in present if (mask & (labels == n)).sum() > 0.5 * mask.sum()}
            for text in texts:
                if re.search(
                    r" of the | next to | beside | near | by | above | below | under ", text
                ):
                    continue  # names two kinds
                (kind,) = _said(text, {"circle", *(t.kind for t in present.values()), *_kinds()})
                colours = _said(text, COLOURS)
                meant = {
                    n
                    for n, thing in present.items()
                    if thing.kind == kind and colours <= {thing.colour}
                }
                if not mask.any():
                    assert not meant, (file_name, text)
                    seen["absent"] += 1
                elif len(covered) == 1:
                    assert covered <= meant, (file_name, text)
                    plain = re.fullmatch(rf"((the|an?) )?(\w+ )?{kind}", text)
                    if plain and (plain[3] or "").strip() in ("", *colours):
                        assert len(meant) == 1, (file_name, text)
                    seen["colour" if colours else "kind"] += 1
    assert seen["colour"] > 3 and seen["kind"] > 10 and seen["absent"] > 10, seen


def _kinds() -> set[str]:
    from unified.data.synthetic.world import KINDS

    return set(KINDS)


def test_places_hold_after_mirroring_and_pasting(built: Path) -> None:
    checked = 0
    for _, texts, mask in _referring(built, "lite_ris"):
        if not mask.any():
            continue
        x = np.nonzero(mask)[1].mean() / mask.shape[1]
        for text in texts:
            place = re.search(r"(on|to|at) (?:the )?(left|right)( side)?$", text)
            if place and not re.search(r"from| of ", text):
                assert (x < 0.5) == (place[2] == "left"), text
                checked += 1
    assert checked > 5


def test_about_one_record_in_seven_is_of_something_absent(built: Path) -> None:
    records = json.loads((built / "own/lite/summary.json").read_text())["lite_ris"]["records"]
    assert 0.1 < records["absent"] / sum(records.values()) < 0.2


def test_objects_of_pseudo_clips_move_and_sentences_name_one(built: Path) -> None:
    videos = json.loads((built / "own/lite/clips/meta_expressions.json").read_text())["videos"]
    moved = 0
    for clip in sorted((built / "own/lite/clips/masks").glob("pseudo_*")):
        maps = [read_ids(path) for path in sorted(clip.iterdir())]
        assert any(labels.any() for labels in maps)
        moved += not np.array_equal(maps[0], maps[-1])
        numbers = {int(value) for labels in maps for value in np.unique(labels)}
        entries = videos.get(clip.name, {"expressions": {}})["expressions"].values()
        assert {int(entry["obj_id"]) for entry in entries} <= numbers
    assert moved >= 3


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hold_out_classes": "unicorn"}, "unicorn"),
        ({"hold_out_clips": "nowhere"}, "nowhere"),
        ({"hold_out_images": str(NUM_IMAGES)}, f"there are {NUM_IMAGES} images"),
        ({"clips": "missing"}, "is missing"),
        ({"size": "0"}, "--size is 0"),
        ({"objects": "=x"}, "no noun"),
    ],
)
def test_wrong_options_are_one_error_and_nothing_is_left(
    changes: dict[str, str],
    message: str,
    given: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(_arguments(given, tmp_path / "out", **changes)) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error:" in line]
    assert len(errors) == 1 and message in errors[0]
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["coco", "composites", "regions_pasted", "gadgets"])
def test_a_folder_whose_name_is_taken_is_an_error(
    name: str, given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    second = tmp_path / name
    shutil.copytree(given / "gadgets", second)
    folders = f"gadget={given / 'gadgets'} gadget={second}/."
    assert main(_arguments(given, tmp_path / "out", objects=folders)) == 2
    assert f"the name {name!r} is taken" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [second]


def test_two_pictures_with_one_stem_are_an_error(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = tmp_path / "photos"
    shutil.copytree(given / "coco/train2017", root / "a")
    shutil.copytree(given / "coco/train2017", root / "b")
    content = json.loads((given / "coco/annotations/instances_train2017.json").read_text())
    first, second = content["images"][:2]
    first["file_name"], second["file_name"] = (f"{f}/{first['file_name']}" for f in "ab")
    content["images"] = [first, second]
    ids = {first["id"], second["id"]}
    content["annotations"] = [a for a in content["annotations"] if a["image_id"] in ids]
    (tmp_path / "instances.json").write_text(json.dumps(content))
    coco = f"{root} {tmp_path / 'instances.json'}"
    assert main(_arguments(given, tmp_path / "out", coco=coco)) == 2
    assert "a second picture would be coco/" in capsys.readouterr().err


def test_classes_whose_folders_have_one_name_are_an_error(built: Path, tmp_path: Path) -> None:
    path = next((built / "own/lite/images/coco").iterdir())
    members = [(path, np.ones((4, 4), dtype=bool))] * 2
    with pytest.raises(InputError, match="coco_hot_dog"):
        OwnWriter(tmp_path, 0).save_classes(
            "lite_fss", {"coco_hot dog": members, "coco_hot_dog": members}, least=2
        )


def test_an_existing_folder_is_never_replaced(
    given: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(_arguments(given, tmp_path)) == 2
    assert "give another --out" in capsys.readouterr().err
