"""The inference tools from the command line to the files, with a tiny untrained model."""

from __future__ import annotations

import importlib.util
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from unified.data.formats.files import segmentation_mask
from unified.inference.clip_prompts import clip_captions, clip_prompts, describe_prompts
from unified.inference.image_io import read_image, write_image
from unified.inference.video_io import FrameReader, VideoWriter
from unified.label_maps import write_label_map

ROOT = Path(__file__).parents[4]
SIZE = (48, 64)
# fmt: off
TINY = [
    "--device", "cpu", "--max-size", "64", "--opts",
    "MODEL.UNIREF.BACKBONE_WEIGHTS", "", "MODEL.UNIREF.TEXT_ENCODER.WEIGHTS", "",
    "MODEL.UNIREF.HIDDEN_DIM", "64", "MODEL.UNIREF.ENCODER_LAYERS", "1",
    "MODEL.UNIREF.DECODER_LAYERS", "1", "MODEL.WEIGHTS", "",
    "INFERENCE.SCORE_THRESHOLD", "0.0", "INFERENCE.IMAGE_SCORE_THRESHOLD", "0.0",
]
# fmt: on
Tool = Callable[[list[str]], int]


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


infer_image: Tool = module("infer_image").main
infer_video: Tool = module("infer_video").main
parse_arguments = module("infer_video").parse_arguments


@pytest.fixture
def clip(tmp_path: Path) -> Path:
    """Six frames of noise that moves to the right."""
    noise = np.random.default_rng(0).integers(0, 255, (*SIZE, 3), np.uint8)
    with VideoWriter(tmp_path / "clip.mp4", fps=5, size=SIZE) as writer:
        for number in range(6):
            writer.write(np.roll(noise, number, axis=1))
    return tmp_path / "clip.mp4"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Two images and a mask of the first, in which 0 is background."""
    for name, seed in (("a", 1), ("b", 2)):
        noise = np.random.default_rng(seed).integers(0, 255, (*SIZE, 3), np.uint8)
        write_image(tmp_path / f"photos/{name}.png", noise)
    mask_file(tmp_path / "a_mask.png", 1)
    return tmp_path / "photos"


def mask_file(path: Path, *ids: int, size: tuple[int, int] = SIZE) -> str:
    label_map = np.zeros(size, np.uint8)
    for place, object_id in enumerate(ids):
        label_map[5:25, 20 * place : 20 * place + 15] = object_id
    write_label_map(path, label_map)
    return str(path)


def results(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "results.json").read_text(encoding="utf-8"))


def files(folder: Path) -> list[str]:
    return sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.*"))


def test_a_clip_with_a_sentence_a_mask_and_a_correction(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    first, later = mask_file(tmp_path / "1.png", 1), mask_file(tmp_path / "2.png", 1, 3)
    arguments = ["--input", str(clip), "--output", str(out), "--text", "the noise", *TINY]
    arguments += ["--mask", first, "--mask-at", f"5={later}", "--start", "1", "--stride", "2"]
    assert infer_video(arguments) == 0
    names = [f"masks/0000{number}.png" for number in (1, 3, 5)]
    assert files(out) == [*names, "overlay.mp4", "results.json"]
    content = results(out)
    assert content["complete"] is True and content["merge_rule"] == "soft"
    assert content["objects"] == [
        {"id": 1, "text": None, "masks_at": [1, 5]},
        {"id": 3, "text": None, "masks_at": [5]},
        {"id": 4, "text": "the noise", "masks_at": []},
    ]
    assert content["weights"] == {"file": None, "sha256": None}
    known = [[entry["id"] for entry in frame["objects"]] for frame in content["frames"]]
    assert known == [[1, 4], [1, 4], [1, 3, 4]]
    for frame, name in zip(content["frames"], names, strict=True):
        with Image.open(out / name) as image:
            assert image.mode == "P"
            label_map = np.asarray(image)
        assert label_map.shape == SIZE
        areas = {entry["id"]: entry["area"] for entry in frame["objects"]}
        assert areas == {i: int((label_map == i).sum()) for i in areas}
    with FrameReader(out / "overlay.mp4") as reader:
        assert len(list(reader)) == 3 and reader.fps == 2.5


@pytest.mark.parametrize("precision", ["bfloat16", "float32"])
def test_the_precision_is_chosen_and_written_down(
    clip: Path, photos: Path, tmp_path: Path, precision: str
) -> None:
    out, chosen = tmp_path / "out", ["--precision", precision, *TINY]
    chosen += ["INFERENCE.PRECISION", "float16"]
    arguments = ["--input", str(clip), "--output", str(out), "--text", "noise", "--end", "1"]
    assert infer_video([*arguments, *chosen]) == 0
    assert results(out)["inference"]["precision"] == precision
    arguments = ["--input", str(photos / "a.png"), "--output", str(out), "--text", "noise"]
    assert infer_image([*arguments, *chosen]) == 0
    assert results(out)["inference"]["precision"] == precision


def test_an_object_of_low_score_is_absent_in_an_image(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--input", str(photos / "a.png"), "--output", str(out), "--text", "the noise"]
    assert infer_image([*arguments, *TINY]) == 0
    (found,) = results(out)["images"][0]["objects"]
    assert found["present"] == (found["area"] > 0)
    assert infer_image([*arguments, *TINY, "INFERENCE.IMAGE_SCORE_THRESHOLD", "1.0"]) == 0
    (absent,) = results(out)["images"][0]["objects"]
    assert (absent["area"], absent["box"], absent["present"]) == (0, None, False)
    assert results(out)["thresholds"]["score"] == 1.0
    with Image.open(out / "masks/a.png") as image:
        assert not np.asarray(image).any()


def test_a_clip_with_separate_objects_and_probabilities(clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--input", str(clip), "--output", str(out), "--end", "2", "--separate"]
    arguments += ["--text", "one thing", "--text", "another", "--save-logits", *TINY]
    assert infer_video(arguments) == 0
    assert files(out) == [
        *(f"logits/0000{number}.npz" for number in (0, 1)),
        *(f"masks/{object_id}/0000{number}.png" for object_id in (1, 2) for number in (0, 1)),
        "overlay.mp4",
        "results.json",
    ]
    frame = results(out)["frames"][1]["objects"]
    with np.load(out / "logits/00001.npz") as stored:
        for entry in frame:
            mask = read_image(out / f"masks/{entry['id']}/00001.png")[..., 0]
            assert set(np.unique(mask)) <= {0, 255}
            assert entry["area"] == (mask > 0).sum()
            # float16 may round to exactly one half
            assert ((stored[str(entry["id"])] > 0.5) != (mask > 0)).mean() < 0.01
    assert [entry["text"] for entry in frame] == ["one thing", "another"]


def test_images_with_sentences(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    arguments = ["--input", str(photos), "--output", str(out), "--text", "x", "--text", "y"]
    assert infer_image([*arguments, *TINY]) == 0
    assert files(out) == [
        "masks/a.png", "masks/b.png", "overlay/a.jpg", "overlay/b.jpg", "results.json"
    ]  # fmt: skip
    content = results(out)
    assert [entry["text"] for entry in content["objects"]] == ["x", "y"]
    assert [Path(row["image"]).name for row in content["images"]] == ["a.png", "b.png"]
    assert content["images"][0]["size"] == list(SIZE)
    # The same folder again, in the other layout: nothing of the first run stays.
    assert infer_image([*arguments, "--separate", *TINY]) == 0
    assert files(out) == [
        *(f"masks/{stem}/{object_id}.png" for stem in "ab" for object_id in (1, 2)),
        "overlay/a.jpg",
        "overlay/b.jpg",
        "results.json",
    ]


def test_images_with_examples(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    pair = f"{photos}/a.png:{tmp_path}/a_mask.png"
    arguments = ["--input", f"{photos}/b.*", "--output", str(out), "--support", pair, pair]
    assert infer_image([*arguments, "--support", pair, *TINY]) == 0
    content = results(out)
    assert [len(entry["supports"]) for entry in content["objects"]] == [2, 1]
    assert [entry["id"] for entry in content["images"][0]["objects"]] == [1, 2]
    assert content["inference"]["support_margin"] == 0.15 and content["inference"]["mirror"]
    whole = ["--input", f"{photos}/b.*", "--output", f"{out}2", "--support", pair, *TINY]
    assert infer_image([*whole, "INFERENCE.SUPPORT_MARGIN", "1e999"]) == 0
    wider = results(tmp_path / "out2")
    assert wider["inference"]["support_margin"] is None
    alone = [*whole[:3], f"{out}4", *whole[4:], "INFERENCE.MIRROR", "False"]
    assert infer_image(alone) == 0
    once = results(tmp_path / "out4")
    assert once["inference"]["mirror"] is False
    scores = [entry["images"][0]["objects"][-1]["score"] for entry in (content, wider, once)]
    assert len(set(scores)) == 3
    assert infer_image([*whole[:3], f"{out}3", *whole[4:], "INFERENCE.SUPPORT_MARGIN", "-0.1"]) == 2


def test_all_objects_of_images_as_coco_results(photos: Path, tmp_path: Path) -> None:
    (photos / "a.png").rename(photos / "007.png")
    out = tmp_path / "out"
    arguments = ["--input", str(photos), "--output", str(out), "--detect", *TINY]
    assert infer_image([*arguments, "INFERENCE.IMAGE_SCORE_THRESHOLD", "0.0"]) == 0
    content = results(out)
    found = json.loads((out / "detections.json").read_text())
    assert content["inference"]["mirror"] is False  # though the configuration asks for it
    assert content["objects"] == [] and {entry["image_id"] for entry in found} == {7, "b"}
    assert len(found) > sum(len(image["objects"]) for image in content["images"]) >= 2
    for image in content["images"]:
        stem = Path(image["image"]).stem
        mine = [e for e in found if e["image_id"] in (stem, int(stem) if stem.isdecimal() else "")]
        scores = [entry["score"] for entry in mine]
        assert scores == sorted(scores, reverse=True)
        assert (out / f"overlay/{stem}.jpg").is_file()
        for entry in mine:
            assert segmentation_mask(entry["segmentation"], *image["size"]).shape
            assert min(entry["bbox"][2:]) > 0 and entry["category_id"] >= 1
    assert infer_image([*arguments, "INFERENCE.IMAGE_SCORE_THRESHOLD", "1.0"]) == 0
    assert json.loads((out / "detections.json").read_text()) == []


def test_a_box_shows_an_object(photos: Path, clip: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    box = ["--text", "the red dog", "--box", "5,4,40,30", "--output", str(out)]
    assert infer_image(["--input", str(photos / "a.png"), *box, *TINY]) == 0
    (entry,) = results(out)["objects"]
    assert entry["text"] == "the red dog" and entry["box"] == [5, 4, 40, 30]
    assert infer_video(["--input", str(clip), *box, *TINY]) == 0
    assert [entry["id"] for entry in results(out)["objects"]] == [1, 2]
    assert results(out)["objects"][0]["shown_at"] == {"0": {"box": [5, 4, 40, 30]}}


def test_points_are_refused_with_the_models_that_follow_them(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = ["--output", str(tmp_path / "out"), *TINY]
    assert infer_image(["--input", str(photos / "a.png"), "--point", "3,4", *out]) == 2
    assert "follows no points: choose another model (" in capsys.readouterr().err
    assert infer_video(["--input", str(clip), "--point-at", "2=1:3,4", *out]) == 2
    assert "or give a box or a mask" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_places_off_the_image_are_refused_before_a_model_is_loaded(
    photos: Path, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(photos / "c.png", np.zeros((20, 20, 3), np.uint8))
    out = ["--output", str(tmp_path / "out"), "--model", "of no such name"]
    for source, *place in (
        (photos / "a.png", "--point", "64,3"),
        (photos / "a.png", "--box", "9,9,9,20"),
        (photos, "--box", "5,4,40,30"),
        (clip, "--box", "5,4,90,30"),
        (clip, "--point-at", "3=1:64,3"),
        (clip, "--point", "3,3,0"),
    ):
        tool = infer_video if source == clip else infer_image
        assert tool(["--input", str(source), *place, *out]) == 2
        message = capsys.readouterr().err
        assert ("c.png: the box" in message) == (source == photos)
        assert re.search("outside|no area|does not lie within|beside the object", message)


def test_a_damaged_image_does_not_end_the_run(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    whole = (photos / "a.png").read_bytes()
    (photos / "a.png").write_bytes(b"damaged")
    (photos / "sub").mkdir()
    (photos / "sub/b.png").write_bytes(whole)
    (photos / "d.heic").write_bytes(b"of a phone")
    (photos / "notes.txt").write_text("mine")
    arguments = ["--output", str(out), "--text", "x", *TINY]
    assert infer_image(["--input", str(photos), *arguments]) == 3
    said, told = (text.splitlines() for text in capsys.readouterr())
    told = told[-5:]
    assert [line.partition(": ")[0] for line in said[:2]] == [
        str(photos / "b.png"), str(photos / "sub/b.png")
    ]  # fmt: skip
    assert re.fullmatch(r".*: 1 x( absent)? \d\.\d\d", said[0]), said
    assert told[0] == "skipped, not of a kind that is read: notes.txt"
    assert told[1] == "finished: 2 images"
    assert told[2] == "failed: 2 images"
    assert "a.png" in told[3] and "cannot be read" in told[3] and "d.heic" in told[4]
    assert files(out) == [
        "masks/b.png", "masks/sub/b.png", "overlay/b.jpg", "overlay/sub/b.jpg", "results.json"
    ]  # fmt: skip
    rows = results(out)["images"]
    assert results(out)["complete"] is True
    assert ["error" in row for row in rows] == [True, False, True, False]
    # Mended, it is all that is done by a run that resumes.
    (photos / "a.png").write_bytes(whole)
    kept = (out / "masks/b.png").stat().st_mtime_ns
    (photos / "d.heic").unlink()
    assert infer_image(["--input", str(photos), "--resume", *arguments]) == 0
    assert "already done: 2 images" in capsys.readouterr().err
    assert (out / "masks/b.png").stat().st_mtime_ns == kept
    rows = results(out)["images"]
    assert [Path(row["image"]).name for row in rows] == ["b.png", "b.png", "a.png"]
    stopped = (out / "results.json").read_text().replace('"complete": true', '"complete": false')
    (out / "results.json").write_text(stopped)
    assert infer_image(["--input", str(photos), "--resume", *arguments]) == 0
    assert results(out)["complete"] is True and len(results(out)["images"]) == 3
    # Another question is another run.
    assert infer_image(["--input", str(photos), "--resume", *arguments[:3], "y", *TINY]) == 2
    assert "other objects, so it cannot be resumed" in capsys.readouterr().err
    # Nothing at all is done.
    (photos / "a.png").write_bytes(b"damaged")
    (photos / "b.png").write_bytes(b"damaged")
    (photos / "sub/b.png").unlink()
    assert infer_image(["--input", str(photos), *arguments]) == 2


def test_several_clips_get_a_folder_each(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, broken = tmp_path / "out", tmp_path / "broken.mp4"
    broken.write_bytes(b"damaged")
    inputs = ["--input", str(clip), str(broken), "--input", str(photos), "--end", "2"]
    arguments = [*inputs, "--output", str(out), "--text", "x", *TINY]
    assert infer_video(arguments) == 3
    said, told = (text.splitlines() for text in capsys.readouterr())
    assert re.fullmatch(r".*clip\.mp4: 1 x in (\d|none) of 2 frames, score to \d\.\d\d", said[0]), (
        said
    )
    told = told[-3:]
    assert told[0] == "finished: 2 clips" and told[1] == "failed: 1 clip"
    assert told[2].strip().startswith(f"clip {broken} cannot be read")
    rows = results(out)["clips"]
    assert [row.get("folder") for row in rows] == ["clip", None, "photos"]
    assert "cannot be read" in rows[1]["error"]
    assert files(out / "clip") == [
        "masks/00000.png", "masks/00001.png", "overlay.mp4", "results.json"
    ]  # fmt: skip
    assert (out / "photos/masks/b.png").exists()
    kept = (out / "clip/masks/00000.png").stat().st_mtime_ns
    content = (
        (out / "photos/results.json").read_text().replace('"complete": true', '"complete": false')
    )
    (out / "photos/results.json").write_text(content)  # as after Ctrl-C
    assert infer_video([*arguments, "--resume"]) == 3
    told = capsys.readouterr().err
    assert "already done: 1 clip\n" in told and "finished: 1 clip\n" in told
    assert (out / "clip/masks/00000.png").stat().st_mtime_ns == kept
    assert results(out / "photos")["complete"] is True
    before = (out / "results.json").read_text()
    other = [*inputs, "--output", str(out), "--text", "y", *TINY]
    assert infer_video([*other, "--resume"]) == 2
    assert "so it cannot be resumed" in capsys.readouterr().err
    assert (out / "results.json").read_text() == before
    one = mask_file(tmp_path / "1.png", 1)
    assert infer_video([*arguments, "--mask", one]) == 2
    assert "--mask shows an object in one" in capsys.readouterr().err


def test_names_that_are_no_text_do_not_end_the_run(
    photos: Path, clip: Path, tmp_path: Path
) -> None:
    out, latin = tmp_path / "out", os.fsdecode(b"caf\xe9")
    (photos / "a.png").rename(photos / f"{latin}.png")
    arguments = ["--output", str(out), "--text", "x", *TINY]
    assert infer_image(["--input", str(photos), *arguments]) == 0
    assert files(out / "masks") == ["b.png", f"{latin}.png"]
    names = [Path(row["image"]).stem for row in results(out)["images"]]
    assert names == ["b", latin]
    moved = clip.rename(tmp_path / f"{latin}.mp4")
    assert infer_video(["--input", str(moved), "--end", "1", *arguments]) == 0
    assert results(out)["complete"] is True


def test_a_sentence_of_another_script_is_warned_about_once(
    clip: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    inputs = ["--input", str(clip), str(photos), "--end", "1"]
    arguments = [*inputs, "--output", str(tmp_path / "out"), *TINY]
    assert infer_video(["--text", "the cat", "--text", "собака", *arguments]) == 0
    assert capsys.readouterr().err.count("may be answered with anything") == 1
    known, unknown = results(tmp_path / "out/clip")["objects"]
    assert "warning" not in known
    assert unknown["warning"] == "not understood: it is not written in Latin letters"


def test_objects_can_be_added_at_later_frames(clip: Path, tmp_path: Path) -> None:
    out, mask = tmp_path / "out", mask_file(tmp_path / "1.png", 1, 2)
    arguments = ["--input", str(clip), "--output", str(out), "--mask", mask, *TINY]
    later = ["--add-mask", f"2={mask}", "--text-at", "3=the noise", "--text-at", "4=1=a square"]
    assert infer_video([*later, *arguments]) == 0
    content = results(out)
    assert content["objects"] == [
        {"id": 1, "text": "a square", "masks_at": [0], "texts_at": {"4": "a square"}},
        {"id": 2, "text": None, "masks_at": [0]},
        {"id": 3, "text": None, "masks_at": [2]},
        {"id": 4, "text": None, "masks_at": [2]},
        {"id": 5, "text": "the noise", "masks_at": [], "texts_at": {"3": "the noise"}},
    ]
    known = [[entry["id"] for entry in frame["objects"]] for frame in content["frames"]]
    assert known == [[1, 2], [1, 2], [1, 2, 3, 4], *[[1, 2, 3, 4, 5]] * 3]
    assert infer_video([*arguments, "--text-at", "9=late"]) == 2
    assert infer_video([*arguments, "--text-at", "late"]) == 2


def test_the_threshold_and_the_threads_are_chosen(photos: Path, tmp_path: Path) -> None:
    out, before = tmp_path / "out", torch.get_num_threads()
    arguments = ["--input", str(photos / "a.png"), "--output", str(out), "--text", "x"]
    assert infer_image([*arguments, "--threshold", "1", "--threads", "1", *TINY]) == 0
    assert torch.get_num_threads() == 1
    torch.set_num_threads(before)
    assert results(out)["thresholds"]["score"] == 1.0
    (found,) = results(out)["images"][0]["objects"]
    assert (found["text"], found["present"], found["state"]) == ("x", False, "refused")


def test_untrained_weights_are_an_error_unless_they_are_asked_for(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    place = TINY.index("MODEL.WEIGHTS")
    arguments = ["--input", str(photos / "a.png"), "--output", str(tmp_path / "out"), "--text", "x"]
    arguments += ["--config-file", "configs/lite/joint_tiny.yaml"]
    assert infer_image([*arguments, *TINY[:place], *TINY[place + 2 :]]) == 2
    assert "has no trained weights yet: give --weights FILE, or" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_legend_names_what_showed_an_object(clip: Path, tmp_path: Path) -> None:
    first, later = mask_file(tmp_path / "1.png", 1), mask_file(tmp_path / "cup.png", 1, 2)
    given = ["--mask", first, "--mask-at", f"3={later}", "--add-mask", f"4={later}"]
    given += ["--box", "3,4,30,40", "--point-at", "2=9:3,4", "--text", "1=the dog", "--input", "a"]
    options = parse_arguments([*given, "--output", "b"])
    with FrameReader(clip) as frames:
        objects = describe_prompts(clip_prompts(options, frames))
    assert clip_captions(objects, options) == {
        1: "the dog", 2: "mask cup.png", 9: "point", 10: "box", 11: "mask cup.png",
        12: "mask cup.png",
    }  # fmt: skip


VIDEO_FAULTS = {
    "no prompt": ([], "nothing to segment"),
    "empty text": (["--text", "  "], "has no words"),
    "empty mask": (["--mask", "{tmp}/empty.png"], "empty.png is empty"),
    "RGB mask": (["--mask", "{tmp}/rgb.png"], "rgb.png has colours"),
    "mask of another size": (["--mask", "{tmp}/small.png"], "small.png is 8x8 pixels"),
    "ids over 255": (["--mask", "{tmp}/ids.png"], "ids.png holds the object id 300"),
    "mask behind the end": (["--mask-at", "6={tmp}/good.png"], "frame 6, which is not among"),
    "missing input": (["--text", "x", "--input", "{tmp}/none.mp4"], "none.mp4 does not exist"),
    "unreadable input": (["--text", "x", "--input", "{tmp}/text.mp4"], "text.mp4 cannot be read"),
    "no frame": (["--text", "x", "--start", "6"], "no frame from number 6 on"),
    "unknown config key": (["--text", "x", "--opts", "NO.KEY", "1"], "NO.KEY"),
    "unknown model": (["--text", "x", "--model", "nobody"], "nobody"),
    "missing weights": (["--text", "x", "--weights", "{tmp}/w.pth"], "w.pth"),
    "no folder": (
        ["--text", "x", "--output", "{tmp}/text.mp4/out"],
        "is a file, expected a folder",
    ),
}


@pytest.mark.parametrize("fault", VIDEO_FAULTS)
def test_bad_input_gives_one_error_and_no_file(
    fault: str, clip: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write_image(tmp_path / "rgb.png", np.full((*SIZE, 3), (0, 90, 200), np.uint8))
    Image.fromarray(np.full(SIZE, 300, np.uint16)).save(tmp_path / "ids.png")
    Image.fromarray(np.zeros(SIZE, np.uint8)).save(tmp_path / "empty.png")
    mask_file(tmp_path / "small.png", 1, size=(8, 8))
    mask_file(tmp_path / "good.png", 1)
    (tmp_path / "text.mp4").write_text("not a clip")
    before = files(tmp_path)
    extra, reason = VIDEO_FAULTS[fault]
    arguments = ["--output", f"{tmp_path}/out"]
    arguments += [] if "--input" in extra else ["--input", str(clip)]
    arguments += [part.format(tmp=tmp_path) for part in extra]
    assert infer_video(arguments) == 2
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1].startswith("error: ") and reason in lines[-1]
    assert files(tmp_path) == before and not (tmp_path / "out").exists()


def test_wrong_arguments_end_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    common = ["--input", "a", "--output", "b"]
    wrong = (["--max-size", "3"], ["--threshold", "2"], ["--threads", "0"], ["--precision", "x"])
    for arguments in ([], *([*common, *extra] for extra in wrong)):
        for main in (infer_image, infer_video):
            with pytest.raises(SystemExit) as caught:
                main(arguments)
            assert caught.value.code == 2
    assert "expected a number of at least 32, got 3" in capsys.readouterr().err
