"""What the tools write: right files, valid at any moment, nothing of an earlier run among them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified.errors import InputError
from unified.inference.detections import uncovered
from unified.inference.image_io import read_image
from unified.inference.inputs import Picture
from unified.inference.lines import legend
from unified.inference.output import (
    ClipWriter,
    ImageWriter,
    describe_object,
    write_image_result,
)
from unified.inference.results import (
    ResultsFile,
    check_writable,
    earlier_results,
    prepare_folder,
)
from unified.inference.video_io import Frame, FrameReader
from unified.label_maps import mask_box
from unified.mask_files import read_label_map
from unified.structures import FrameResult, Instance, Presence

SIZE = (32, 48)


def result(masks: dict[int, np.ndarray], *, separate: bool = False) -> FrameResult:
    label_map = np.zeros(SIZE, np.uint8)
    for object_id, mask in masks.items():
        label_map[mask] = object_id
    return FrameResult(
        label_map=label_map,
        scores=dict.fromkeys(masks, 0.75),
        boxes={object_id: mask_box(mask) for object_id, mask in masks.items()},
        areas={object_id: int(mask.sum()) for object_id, mask in masks.items()},
        masks=masks if separate else {},
        probabilities={i: mask.astype(np.float32) for i, mask in masks.items()} if separate else {},
        presence={i: Presence("present" if m.any() else "absent") for i, m in masks.items()},
    )


def square(left: int) -> np.ndarray:
    mask = np.zeros(SIZE, bool)
    mask[4:20, left : left + 10] = True
    return mask


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def test_results_are_valid_json_after_every_row(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    header = {"tool": "x", "text": "ein Hündchen"}
    with ResultsFile(path, header, "frames") as results:
        assert read(path) == {**header, "frames": [], "complete": False}
        for number in range(3):
            results.add({"frame": number, "name": "für"})
            assert [row["frame"] for row in read(path)["frames"]] == list(range(number + 1))
            assert read(path)["complete"] is False
    assert read(path)["complete"] is True and len(read(path)["frames"]) == 3


def test_results_of_a_run_that_failed_say_so(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with pytest.raises(KeyboardInterrupt), ResultsFile(path, {}, "frames") as results:
        results.add({"frame": 0})
        raise KeyboardInterrupt
    assert read(path) == {"frames": [{"frame": 0}], "complete": False}


FULL_DISK = """
import resource, sys
from pathlib import Path
from unified.inference.results import ResultsFile
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
with ResultsFile(Path(sys.argv[1]), {}, "frames") as results:
    for number in range(1000):
        results.add({"frame": number, "objects": ["x" * 100]})
"""


def test_rows_before_a_full_disk_stay(tmp_path: Path) -> None:
    """A limit on the size of files stands in for the full disk: the write stops half way."""
    path = tmp_path / "results.json"
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1 and "OSError" in done.stderr
    content = read(path)
    assert [row["frame"] for row in content["frames"]] == list(range(len(content["frames"])))
    assert len(content["frames"]) > 20 and content["complete"] is False


def test_every_sentence_about_a_clip_is_answered_on_the_terminal(tmp_path: Path) -> None:
    captions = {i: f"box {i}" for i in range(1, 12)} | {12: "the cat"}
    header = {"objects": [{"id": i, "text": "the cat" if i == 12 else None} for i in captions]}
    image = np.full((*SIZE, 3), 90, np.uint8)
    with ClipWriter(tmp_path, header=header, fps=5, size=SIZE, captions=captions) as writer:
        writer.write(Frame(0, image, "00000"), result({i: square(2) for i in captions}))
        parts = writer.summary().split(" | ")
    assert parts[0].startswith("12 the cat in ") and parts[1].startswith("1 box 1 in ")
    assert len(parts) == 9 and parts[-1] == "and 4 more"


def test_a_clip_says_which_sentence_means_what_another_one_does(tmp_path: Path) -> None:
    captions = {1: "the man", 2: "the man in red"}
    image, masks = np.full((*SIZE, 3), 90, np.uint8), {1: square(2), 2: np.zeros(SIZE, bool)}
    both = result(masks)
    same = replace(both, presence={**both.presence, 2: Presence("outcompeted", by=1)})
    with ClipWriter(tmp_path, header={}, fps=5, size=SIZE, captions=captions) as writer:
        for number in range(2):
            writer.write(Frame(number, image, f"{number:05d}"), same)
        assert writer.summary().endswith(
            "2 the man in red in none of 2 frames, outcompeted by 1 in 2, score to 0.75"
        )


def test_a_clip_becomes_masks_overlay_and_results(tmp_path: Path) -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    captions = {1: "the cat", 2: "box"}
    header = {"objects": [{"id": 1, "text": "the cat"}, {"id": 2, "text": None}]}
    masks = {1: square(2), 2: square(30)}
    with ClipWriter(tmp_path, header=header, fps=5, size=SIZE, captions=captions) as writer:
        writer.write(Frame(7, image, "00007"), result(masks))
        writer.write(Frame(9, image, "00009"), result({**masks, 2: np.zeros(SIZE, bool)}))
        summary = writer.summary()
    assert (
        summary
        == "1 the cat in 2 of 2 frames, score to 0.75 | 2 box in 1 of 2 frames, score to 0.75"
    )
    files = sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*"))
    assert files == ["masks/00007.png", "masks/00009.png", "overlay.mp4", "results.json"]
    assert np.array_equal(read_label_map(tmp_path / "masks/00007.png"), result(masks).label_map)
    rows = read(tmp_path / "results.json")["frames"]
    assert [row["frame"] for row in rows] == [7, 9]
    shown = {"present": True, "state": "present", "score": 0.75, "area": 160}
    box = [2.0, 4.0, 12.0, 20.0]
    assert rows[1]["objects"][0] == {"id": 1, "text": "the cat", **shown, "box": box}
    hidden = {"present": False, "state": "absent", "score": 0.75, "box": None, "area": 0}
    assert rows[1]["objects"][1] == {"id": 2, "text": None, **hidden}
    with FrameReader(tmp_path / "overlay.mp4") as reader:
        first = next(iter(reader)).image
        assert reader.num_frames == 2 and reader.fps == 5
    # Eight times as large, with the legend.
    assert first.shape[0] == 8 * SIZE[0] and first.shape[1] > 8 * SIZE[1] + 50
    first = first[4::8, 4::8]
    red, green = (first[4:20, x : x + 10].mean(axis=(0, 1)) for x in (2, 30))
    assert red[0] > red[1] + 30 and green[1] > green[0] + 30


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from unified.inference.output import ClipWriter
from unified.inference.video_io import Frame
from unified.structures import FrameResult, Presence
with ClipWriter(Path(sys.argv[1]), header={}, fps=5, size=(32, 48), captions={1: ""}) as writer:
    for number in range(6):
        label_map = np.full((32, 48), 1, np.uint8)
        there = {1: Presence("present")}
        result = FrameResult(label_map, {1: 0.5}, {1: None}, {1: 9}, presence=there)
        image = np.full((32, 48, 3), 20 * number, np.uint8)
        writer.write(Frame(number, image, f"{number:05d}"), result)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_run_leaves_every_finished_frame_valid(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], check=False)
    assert done.returncode == -9
    content = read(tmp_path / "results.json")
    assert [row["frame"] for row in content["frames"]] == [0, 1, 2, 3, 4, 5]
    assert content["complete"] is False
    for number in range(6):
        assert (read_label_map(tmp_path / f"masks/{number:05d}.png", size=SIZE) == 1).all()
    with FrameReader(tmp_path / "overlay.mp4") as reader:
        assert len(list(reader)) == 5  # the last one leaves with its successor
    # The next run cleans up after it.
    prepare_folder(tmp_path)
    assert not list(tmp_path.rglob("*.*"))


def test_separate_masks_are_binary_and_may_overlap(tmp_path: Path) -> None:
    masks = {3: square(2), 8: square(5)}
    with ClipWriter(
        tmp_path, header={}, fps=5, size=SIZE, captions={3: "a", 8: "b"}, separate=True
    ) as writer:
        writer.write(
            Frame(0, np.zeros((*SIZE, 3), np.uint8), "00000"), result(masks, separate=True)
        )
    for object_id, mask in masks.items():  # the same numbers as in results.json
        written = read_image(tmp_path / f"masks/{object_id}/00000.png")[..., 0]
        assert np.array_equal(written, mask * 255)
    assert not (tmp_path / "masks/00000.png").exists()
    with np.load(tmp_path / "logits/00000.npz") as stored:
        assert sorted(stored) == ["3", "8"]
        assert stored["8"].dtype == np.float16 and np.array_equal(stored["8"], masks[8])


def test_an_image_becomes_one_label_map_by_score(tmp_path: Path) -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    masks, scores = [square(2), square(5)], [0.4, 0.9]
    named = {1: "left", 2: "right"}
    given = {"texts": {1: "left"}, "threshold": 0.3}
    rows = write_image_result(tmp_path, "a", image, masks, scores, named, **given)
    label_map = read_label_map(tmp_path / "masks/a.png")
    assert np.array_equal(label_map == 2, masks[1])
    assert np.array_equal(label_map == 1, masks[0] & ~masks[1])
    assert [row["area"] for row in rows] == [3 * 16, 160]
    assert rows[0]["box"] == [2.0, 4.0, 5.0, 20.0]
    assert [(row["text"], row["state"]) for row in rows] == [("left", "present"), (None, "present")]
    drawn = read_image(tmp_path / "overlay/a.jpg").astype(int)[4::8, 4 : 8 * SIZE[1] : 8]
    assert np.abs(drawn - image)[masks[1]].max() > 50
    apart = write_image_result(
        tmp_path / "apart", "sub/a", image, masks, scores, named, **given, separate=True
    )
    assert [row["area"] for row in apart] == [160, 160]
    assert [row["id"] for row in apart] == [1, 2]
    written = [read_image(tmp_path / f"apart/masks/sub/a/{i}.png")[..., 0] for i in (1, 2)]
    assert np.array_equal(written, np.array(masks) * 255)


def test_two_names_of_one_object_are_told_apart_from_what_is_not_there(tmp_path: Path) -> None:
    image, nothing = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, bool)
    part = square(5) & (np.arange(SIZE[1]) < 8)
    masks, scores = [square(5), square(5), part, nothing], [0.9, 0.8, 0.7, 0.1]
    rows = write_image_result(
        tmp_path, "a", image, masks, scores, {}, texts={}, threshold=0.3
    )  # fmt: skip
    assert [row["state"] for row in rows] == ["present", "outcompeted", "covered", "refused"]
    assert [row.get("by") for row in rows] == [None, 1, 1, None]


def test_a_legend_holds_id_score_state_and_name() -> None:
    found = {1: Presence("present"), 2: Presence("covered", by=1), 3: Presence("absent")}
    captions = {1: "the\ncat ", 2: "", 3: "a dog"}
    assert legend(captions, {2: 0.5, 1: 0.987, 3: 0.1}, found) == {
        1: "1  0.99  the cat",
        2: "2  0.50 (covered by 1)",
        3: "3  0.10 (absent)  a dog",
    }


def test_a_name_that_the_font_cannot_draw_is_left_to_the_results() -> None:
    found = {i: Presence("present") for i in (1, 2, 3)}
    captions = {1: "日本の猫", 2: "собака", 3: "mask café.png"}
    assert legend(captions, dict.fromkeys(found, 0.5), found) == {
        1: "1  0.50  (name in results.json)",
        2: "2  0.50  собака",
        3: "3  0.50  mask café.png",
    }


def test_a_few_pixels_that_are_left_are_no_object(tmp_path: Path) -> None:
    """Its rim outlasts an object that another one won; results and label map say so."""
    outer = square(5)
    inner = outer.copy()
    inner[4] = False
    image = np.full((*SIZE, 3), 90, np.uint8)
    rows = write_image_result(
        tmp_path, "a", image, [outer, inner], [0.4, 0.9], {}, texts={}, threshold=0.3
    )
    assert [(row["present"], row["state"]) for row in rows] == [
        (False, "outcompeted"), (True, "present")
    ]  # fmt: skip
    assert rows[0]["area"] == 10


def test_what_is_told_about_an_image(tmp_path: Path) -> None:
    """Of many objects the first ones; a line has no line breaks."""
    header = {"thresholds": {"score": 0.3}}
    image, nothing = np.zeros((*SIZE, 3), np.uint8), np.zeros(SIZE, bool)
    found = [Instance(square(2), 0.9, None, 0), Instance(nothing, 0.21, None, 0)]
    picture = Picture(Path("a.png"), "a")
    with ImageWriter(tmp_path, header=header, inputs=[]) as writer:
        names = {1: "the\ncat", 2: "the dog"}
        told = writer.write(picture, image, found, names, names)
        assert told == "1 the cat 0.90 | 2 the dog refused 0.21"
        assert writer.write(picture, image, [], {}, {}) == "nothing found"
        told = writer.write(picture, image, found[:1], {1: "the cat " * 50}, {})
        assert told == "1 the cat the cat the cat the cat the cat… 0.90"
        many = dict.fromkeys(range(1, 12), "object")
        told = writer.write(picture, image, [found[0]] * 11, many, {})
    assert told.startswith("1 object 0.90 | 2 object outcompeted by 1 0.90 | ")
    assert told.endswith("| 8 object outcompeted by 1 0.90 | and 3 more")


def test_objects_that_overlap_are_all_seen(tmp_path: Path) -> None:
    image = np.full((*SIZE, 3), 90, np.uint8)
    masks = [square(2), square(2), square(5)]
    given = {"texts": {}, "threshold": 0.3, "separate": True}
    write_image_result(tmp_path, "a", image, masks, [0.4, 0.9, 0.5], {1: "a"}, **given)
    drawn = read_image(tmp_path / "overlay/a.jpg").astype(int)
    for colour in (0, 1):  # the outlines of both
        assert drawn[32:160, 16, colour].max() > 150
    assert drawn.shape[1] > 8 * SIZE[1]


def test_an_object_that_is_not_there_keeps_its_score() -> None:
    assert describe_object(4, 0.1234567, None, 0, Presence("refused"), "a dog") == {
        "id": 4, "text": "a dog", "present": False, "state": "refused", "score": 0.123457,
        "box": None, "area": 0,
    }  # fmt: skip


def test_names_that_are_no_text_are_escaped(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    with ResultsFile(tmp_path / "results.json", {"input": name}, "images") as results:
        results.add({"image": name})
    assert read(tmp_path / "results.json")["images"] == [{"image": name}]
    assert rb"caf\udce9" in (tmp_path / "results.json").read_bytes()


def test_a_run_goes_on_from_its_own_results_only(tmp_path: Path) -> None:
    header = {"objects": [{"id": 1, "box": (1, 2)}], "input": ["a"]}
    assert earlier_results(tmp_path, header, "images") is None
    with ResultsFile(tmp_path / "results.json", header, "images") as results:
        results.add({"image": "a"})
    found = earlier_results(tmp_path, {**header, "input": ["a", "b"]}, "images")
    assert found is not None and found["images"] == [{"image": "a"}]
    with ResultsFile(tmp_path / "results.json", header, "images", found["images"]) as results:
        results.add({"image": "b"})
    assert read(tmp_path / "results.json")["images"] == [{"image": "a"}, {"image": "b"}]
    with pytest.raises(InputError, match="of a run with other objects, so it cannot be resumed"):
        earlier_results(tmp_path, {"objects": []}, "images")
    (tmp_path / "results.json").write_text("{")
    with pytest.raises(InputError, match="cannot be read"):
        earlier_results(tmp_path, header, "images")
    (tmp_path / "results.json").write_text("[1]")
    with pytest.raises(InputError, match="is no result of a run"):
        earlier_results(tmp_path, header, "images")


def make_run(folder: Path) -> None:
    image = np.zeros((*SIZE, 3), np.uint8)
    with ClipWriter(folder, header={}, fps=5, size=SIZE, captions={1: ""}) as writer:
        writer.write(Frame(0, image, "00000"), result({1: square(3)}))


def test_a_new_run_replaces_the_earlier_one_and_nothing_else(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "notes.txt").write_text("mine")
    prepare_folder(tmp_path)
    assert [path.name for path in tmp_path.rglob("*.*")] == ["notes.txt"]


def test_masks_of_unknown_origin_are_not_deleted(tmp_path: Path) -> None:
    make_run(tmp_path)
    (tmp_path / "results.json").unlink()
    with pytest.raises(InputError, match=r"holds .* but no results\.json"):
        prepare_folder(tmp_path)
    assert (tmp_path / "masks/00000.png").exists() and (tmp_path / "overlay.mp4").exists()


@pytest.mark.parametrize("inside", ["overlay.mp4", "masks", "masks/*.png"])
def test_a_run_does_not_delete_its_own_input(tmp_path: Path, inside: str) -> None:
    make_run(tmp_path)
    with pytest.raises(InputError, match="would be read and replaced"):
        prepare_folder(tmp_path, [f"{tmp_path}/{inside}"])
    assert (tmp_path / "masks/00000.png").exists() and (tmp_path / "overlay.mp4").exists()


def test_the_folder_itself_may_hold_the_input(tmp_path: Path) -> None:
    make_run(tmp_path)
    prepare_folder(tmp_path, [str(tmp_path)])
    assert not (tmp_path / "overlay.mp4").exists()


def test_a_file_in_place_of_the_folder_is_refused_at_once(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    check_writable(tmp_path / "new" / "deep")
    assert not (tmp_path / "new").exists()
    with pytest.raises(NotADirectoryError, match="is a file, expected a folder"):
        check_writable(tmp_path / "file" / "deep")


@pytest.mark.skipif(os.geteuid() == 0, reason="the superuser may write everywhere")
def test_a_folder_without_permission_is_refused_at_once(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(PermissionError):
        check_writable(tmp_path / "new")


def test_objects_that_better_ones_cover_are_left_out() -> None:
    def instance(left: int, right: int, score: float) -> Instance:
        mask = np.zeros((4, 20), bool)
        mask[:, left:right] = True
        return Instance(mask, score, (left, 0, right, 4), category=0)

    first, part, beside, half = (
        instance(0, 10, 0.9),
        instance(3, 13, 0.8),  # 3 of 10 columns are left
        instance(10, 14, 0.7),
        instance(12, 16, 0.6),  # 2 of 4
    )
    empty = instance(5, 5, 0.5)
    assert uncovered([first, part, beside, half, empty]) == [first, beside, half]
    assert uncovered([]) == []
