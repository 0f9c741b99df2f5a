"""Clean submissions pass and are written as the server wants; every seeded fault is found."""

from __future__ import annotations

import io
import json
import sys
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from unified.errors import ConfigError, InputError
from unified.evaluation.submission import (
    SERVERS,
    find_server,
    open_files,
    write_submission,
)
from unified.evaluation.submission_check import Fault, check_results, check_submission
from unified.evaluation.submission_videos import read_videos

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import write_json, write_mask

FRAMES = [f"{t:05d}" for t in range(0, 25, 5)]
SIZE = (24, 32)
ITEMS = {"label_maps": [""], "expressions": ["0", "1"], "objects": ["000", "001"]}
CODE = {"size": list(SIZE), "counts": "PPYo0"}


def frame(kind: str, t: int) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    if kind == "label_maps":
        mask[2:8, 2 + t : 8 + t], mask[12:18, 2 + t : 8 + t] = 1, 2
    else:
        mask[2:8, 2 + t : 8 + t] = 255
    return mask


@dataclass(frozen=True)
class Case:
    """A clean submission with the data set it belongs to."""

    server: str
    root: Path

    @property
    def pred(self) -> Path:
        return self.root / "pred"

    def faults(self, *, data: bool = True, source: Path | None = None) -> list[Fault]:
        server = SERVERS[self.server]
        videos = read_videos(server, self.root / "data") if data else None
        with open_files(server, source or self.pred) as files:
            return check_submission(server, files, videos, num_workers=2)


def make(server: str, root: Path) -> Case:
    content = SERVERS[server].content
    for video in ("bear", "cat", "dog"):
        for t, name in enumerate(FRAMES):
            image = root / "data" / "JPEGImages" / video / f"{name}.jpg"
            image.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", SIZE[::-1]).save(image)
            for item in ITEMS[content]:
                write_mask(root / "pred" / video / item / f"{name}.png", frame(content, t))
                if t == 0 and content != "expressions":
                    drawn = root / "data" / "Annotations" / video / item / f"{name}.png"
                    write_mask(drawn, frame(content, t))
    expressions = {"expressions": {"0": {"exp": "a"}, "1": {"exp": "b"}}}
    videos = dict.fromkeys(("bear", "cat", "dog"), expressions)
    write_json(root / "data" / "meta_expressions.json", {"videos": videos})
    return Case(server, root)


MASK_SERVERS = [name for name, server in SERVERS.items() if server.content != "results"]


@pytest.mark.parametrize("server", MASK_SERVERS)
def test_clean_submissions_have_no_fault_before_and_after_zipping(
    server: str, tmp_path: Path
) -> None:
    case = make(server, tmp_path)
    (case.pred / ".DS_Store").write_text("x")
    assert case.faults() == []
    assert case.faults(data=False) == []
    path = tmp_path / "out" / "submission.zip"
    with open_files(SERVERS[server], case.pred) as files:
        number = write_submission(SERVERS[server], files, path)
    with zipfile.ZipFile(path) as archive:
        names = archive.namelist()
    assert len(names) == number == 15 * len(ITEMS[SERVERS[server].content])
    tops = {name.split("/")[0] for name in names}
    assert tops == ({"Annotations"} if SERVERS[server].top else {"bear", "cat", "dog"})
    assert case.faults(source=path) == []


def test_the_released_tree_of_sav(tmp_path: Path) -> None:
    """It has frame rates in the names of its folders, and objects are looked up there too."""
    case = make("sav", tmp_path)
    for name, rate in (("JPEGImages", 24), ("Annotations", 6)):
        (tmp_path / "data" / name).rename(tmp_path / "data" / f"{name}_{rate}fps")
    assert case.faults() == []
    remove_folder("cat/001")(case.pred)
    assert [fault.path for fault in case.faults()] == ["cat/001"]


def test_test_dev_is_looked_up_in_the_folder_of_all_davis(tmp_path: Path) -> None:
    """Its videos lie beside those to train on, and a list names them."""
    case = make("davis17-testdev", tmp_path)
    remove_folder("dog")(case.pred)
    assert any(fault.path == "dog" for fault in case.faults())
    path = tmp_path / "data" / "ImageSets" / "2017" / "test-dev.txt"
    path.parent.mkdir(parents=True)
    path.write_text("bear\ncat\n")
    assert case.faults() == []
    with pytest.raises(InputError, match="has no video kilo"):
        read_videos(SERVERS["davis17-testdev"], tmp_path / "data", names=["kilo"])


@pytest.mark.parametrize("given", ["", "valid"])
def test_the_released_tree_of_ref_youtube_vos(tmp_path: Path, given: str) -> None:
    """Expressions lie beside the splits; those of the test file are hidden."""
    case = make("ref-youtube-vos", tmp_path)
    root = tmp_path / "ref-youtube-vos"
    (root / "meta_expressions" / "valid").mkdir(parents=True)
    (tmp_path / "data").rename(root / "valid")
    name = "meta_expressions.json"
    (root / "valid" / name).rename(root / "meta_expressions" / "valid" / name)
    server = SERVERS[case.server]
    assert set(read_videos(server, root / given)) == {"bear", "cat", "dog"}
    write_json(root / "meta_expressions" / "test" / name, {"videos": {"dog": {}}})
    videos = read_videos(server, root / given)
    assert {name: video.items for name, video in videos.items()} == {
        "bear": ("0", "1"),
        "cat": ("0", "1"),
    }


def test_a_folder_that_has_the_top_folder_already(tmp_path: Path) -> None:
    case = make("youtube-vos", tmp_path)
    (tmp_path / "whole").mkdir()
    case.pred.rename(tmp_path / "whole" / "Annotations")
    assert case.faults(source=tmp_path / "whole") == []


def test_label_maps_get_a_palette_and_keep_the_one_they_have(tmp_path: Path) -> None:
    case = make("mose", tmp_path)
    with Image.open(case.pred / "bear" / "00005.png") as grey:
        own = grey.copy()
    own.putpalette([9, 8, 7] * 256)
    own.save(case.pred / "bear" / "00005.png")
    with open_files(SERVERS["mose"], case.pred) as files:
        write_submission(SERVERS["mose"], files, tmp_path / "a.zip")
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        first, second = (
            Image.open(io.BytesIO(archive.read(f"bear/{name}.png"))) for name in FRAMES[:2]
        )
    assert (first.mode, second.mode) == ("P", "P")
    assert first.getpalette()[3:6] == [128, 0, 0]
    assert second.getpalette()[3:6] == [9, 8, 7]
    assert np.array_equal(np.array(first), frame("label_maps", 0))


def test_masks_of_zero_and_one_become_visible_and_the_zip_is_reproducible(tmp_path: Path) -> None:
    case = make("mevis", tmp_path)
    write_mask(case.pred / "cat" / "0" / "00000.png", frame("expressions", 0) // 255)
    for name in ("a.zip", "b.zip"):
        with open_files(SERVERS["mevis"], case.pred) as files:
            write_submission(SERVERS["mevis"], files, tmp_path / name)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        mask = np.array(Image.open(io.BytesIO(archive.read("cat/0/00000.png"))))
    assert np.array_equal(mask, frame("expressions", 0))


def save_as(mode: str, file: str) -> Callable[[Path], None]:
    def spoil(pred: Path) -> None:
        Image.open(pred / file).convert(mode).save(pred / file)

    return spoil


def set_pixels(file: str, value: int) -> Callable[[Path], None]:
    def spoil(pred: Path) -> None:
        mask = np.array(Image.open(pred / file))
        mask[0, :3] = value
        write_mask(pred / file, mask)

    return spoil


def write_jpeg(file: str, target: str) -> Callable[[Path], None]:
    def spoil(pred: Path) -> None:
        image = Image.open(pred / file).convert("L")
        (pred / file).unlink()
        image.save(pred / target, format="JPEG")

    return spoil


def noise(file: str) -> Callable[[Path], None]:
    return lambda pred: write_mask(pred / file, np.random.default_rng(3).integers(0, 60, SIZE))


def move(source: str, target: str) -> Callable[[Path], None]:
    def spoil(pred: Path) -> None:
        (pred / target).parent.mkdir(parents=True, exist_ok=True)
        (pred / source).rename(pred / target)

    return spoil


def copy_folder(source: str, target: str) -> Callable[[Path], None]:
    import shutil

    return lambda pred: shutil.copytree(pred / source, pred / target) and None


def remove_folder(name: str) -> Callable[[Path], None]:
    import shutil

    return lambda pred: shutil.rmtree(pred / name)


def resize_all(video: str) -> Callable[[Path], None]:
    def spoil(pred: Path) -> None:
        for path in (pred / video).rglob("*.png"):
            write_mask(path, np.zeros((12, 16)))

    return spoil


def add_frame(file: str) -> Callable[[Path], None]:
    return lambda pred: write_mask(pred / file, frame("expressions", 5))


F = "bear/00010.png"
G = "bear/0/00010.png"
LAST = "bear/0/00020.png"  # without the data set only the other expression tells
# server, needs the data set, what is done, file named, what is said
SEEDED: list[tuple[str, bool, Callable[[Path], None], str, str]] = [
    ("mose", False, lambda p: (p / F).unlink(), F, "frame is missing"),
    ("mose", True, lambda p: (p / "bear/00020.png").unlink(), "bear/00020.png", "frame is missing"),
    ("mose", True, lambda p: (p / "bear/00000.png").unlink(), "bear/00000.png", "frame is missing"),
    ("mose", False, save_as("RGB", F), F, "mode RGB"),
    ("davis17-testdev", False, save_as("RGBA", F), F, "mode RGBA"),
    ("mose", False, lambda p: write_mask(p / F, np.zeros((12, 16))), F, "16x12 pixels"),
    ("mose", True, resize_all("cat"), "cat/00000.png", "the video is 32x24"),
    ("youtube-vos", True, set_pixels(F, 7), F, "holds id 7, the video has 1, 2"),
    ("youtube-vos", False, set_pixels(F, 255), F, "255 (void)"),
    ("lvos", False, noise(F), F, "smoothed"),
    ("lvos", True, copy_folder("bear", "extra"), "extra", "not among those to submit"),
    ("lvos", True, remove_folder("dog"), "dog", "video is missing"),
    ("mose", False, write_jpeg(F, F), F, "JPEG file named .png"),
    ("mose", False, write_jpeg(F, "bear/00010.jpg"), "bear/00010.jpg", "is no PNG"),
    ("mose", False, lambda p: (p / F).write_bytes((p / F).read_bytes()[:40]), F, "cannot be read"),
    ("mose", False, lambda p: (p / F).write_bytes(b""), F, "empty file"),
    ("mose", False, lambda p: (p / "bird").mkdir(), "bird", "empty folder"),
    ("mose", False, lambda p: (p / "notes.txt").write_text("x"), "notes.txt", "is no PNG"),
    ("mose", False, move("bear", "all/bear"), "all/bear/00000.png", "lies too deep"),
    ("mose", False, move(F, "00010.png"), "00010.png", "lies too high"),
    (
        "mose",
        False,
        lambda p: Image.fromarray(np.zeros(SIZE, np.uint16)).save(p / F),
        F,
        "mode I;16",
    ),
    ("mose", True, move(F, "bear/0010.png"), "bear/0010.png", "not among those to submit"),
    ("sav", True, copy_folder("bear/001", "bear/002"), "bear/002", "is not among those to submit"),
    ("mevis", False, set_pixels(G, 3), G, "holds 2 values besides 0"),
    ("mevis", True, remove_folder("bear/1"), "bear/1", "expression is missing"),
    ("ref-youtube-vos", True, copy_folder("bear/1", "bear/2"), "bear/2", "not among those to"),
    ("ref-youtube-vos", False, lambda p: (p / LAST).unlink(), LAST, "frame is missing"),
    ("sav", False, move("bear/001", "bear/1"), "bear/1", "three digits"),
    ("sav", True, remove_folder("cat/001"), "cat/001", "object is missing"),
    ("mevis", True, add_frame("bear/0/00025.png"), "bear/0/00025.png", "is not among those"),
]


@pytest.mark.parametrize("seed", range(len(SEEDED)))
def test_every_seeded_fault_is_found(seed: int, tmp_path: Path) -> None:
    server, data, spoil, path, message = SEEDED[seed]
    case = make(server, tmp_path)
    spoil(case.pred)
    found = case.faults(data=data)
    assert any(fault.path == path and message in fault.message for fault in found), found


def test_thirty_different_faults_are_seeded_on_every_server() -> None:
    different = {(SERVERS[server].content, data, *said) for server, data, _, *said in SEEDED}
    assert len(SEEDED) == len(different) == 30
    assert {server for server, *_ in SEEDED} == set(MASK_SERVERS)


def rezip(source: Path, target: Path, rename: Callable[[str], str], extra: str = "") -> Path:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for name in old.namelist():
            new.writestr(rename(name), old.read(name))
        if extra:
            new.writestr(extra, b"x")
    return target


@pytest.mark.parametrize(
    ("server", "rename", "extra", "message"),
    [
        ("davis17-testdev", lambda n: f"submission/{n}", "", "lies too deep"),
        ("youtube-vos", lambda n: n.removeprefix("Annotations/"), "", "outside the folder"),
        ("mose", lambda n: n, "__MACOSX/bear/._00000.png", "operating system"),
    ],
)
def test_faults_of_zips_made_by_hand(
    tmp_path: Path, server: str, rename: Callable[[str], str], extra: str, message: str
) -> None:
    case = make(server, tmp_path)
    with open_files(SERVERS[server], case.pred) as files:
        write_submission(SERVERS[server], files, tmp_path / "good.zip")
    bad = rezip(tmp_path / "good.zip", tmp_path / "bad.zip", rename, extra)
    assert any(message in fault.message for fault in case.faults(source=bad))


def test_what_cannot_be_opened(tmp_path: Path) -> None:
    (tmp_path / "broken.zip").write_bytes(b"PK no zip")
    (tmp_path / "empty").mkdir()
    for name, message in (
        ("broken.zip", "not a readable zip"),
        ("empty", "is empty"),
        ("none", "no folder"),
    ):
        with pytest.raises(InputError, match=message), open_files(SERVERS["mose"], tmp_path / name):
            pass
    with pytest.raises(ConfigError, match="choose from youtube-vos"):
        find_server("kitti")
    with pytest.raises(InputError, match="no JPEGImages"):
        read_videos(SERVERS["mose"], tmp_path)
    with pytest.raises(ConfigError, match=r"must end in \.zip"):
        case = make("mose", tmp_path)
        with open_files(SERVERS["mose"], case.pred) as files:
            write_submission(SERVERS["mose"], files, tmp_path / "out.tar")


TRUTH = {
    "videos": [{"id": 1, "length": 3, "height": SIZE[0], "width": SIZE[1]}],
    "categories": [{"id": 5}],
}


def entry(**changes: Any) -> dict[str, Any]:
    good = {"video_id": 1, "category_id": 5, "score": 0.5, "segmentations": [CODE, None, CODE]}
    return {**good, **changes}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ([entry()], ""),
        ([], "must be a list"),
        ({"results": []}, "must be a list"),
        ([{"image_id": 1, "bbox": []}], "has no video_id"),
        ([entry(video_id=9)], "video_id 9 is not"),
        ([entry(category_id=9)], "category_id 9 is not"),
        ([entry(score="high")], "expected a number"),
        ([entry(score=float("nan"))], "expected a number"),
        ([entry(segmentations=[CODE])], "has 1 masks, the video has 3 frames"),
        ([entry(segmentations=None)], "must be a list"),
        ([entry(segmentations=[[1, 2, 3, 4], None, None])], "neither null nor"),
        ([entry(segmentations=[{**CODE, "size": [9, 9]}, None, None])], "not 32x24 pixels"),
        ([entry(segmentations=[{"counts": "PPYo0"}, None, None])], "neither null nor"),
        ([entry(segmentations=[{**CODE, "size": 9}, None, None])], "neither null nor"),
        ([entry(video_id=[1])], r"video_id [1] is not"),
    ],
)
def test_results_files(tmp_path: Path, content: object, message: str) -> None:
    path = tmp_path / "my_results.json"
    path.write_text(json.dumps(content))
    with open_files(SERVERS["youtube-vis"], path) as files:
        faults = check_results(files, TRUTH)
    if message:
        assert any(message in fault.message for fault in faults)
    else:
        assert faults == []
        with open_files(SERVERS["ovis"], path) as files:
            write_submission(SERVERS["ovis"], files, tmp_path / "a.zip")
        with zipfile.ZipFile(tmp_path / "a.zip") as archive:
            assert archive.namelist() == ["results.json"]


def test_results_in_the_wrong_place(tmp_path: Path) -> None:
    for name, message in (("out/results.json", "at the top"), ("r.json", "is missing")):
        with zipfile.ZipFile(tmp_path / "r.zip", "w") as archive:
            archive.writestr(name, json.dumps([entry()]))
        with open_files(SERVERS["youtube-vis"], tmp_path / "r.zip") as files:
            assert any(message in fault.message for fault in check_results(files))
    (tmp_path / "results.json").write_text("{not json")
    with open_files(SERVERS["youtube-vis"], tmp_path / "results.json") as files:
        assert "not valid JSON" in check_results(files)[0].message
