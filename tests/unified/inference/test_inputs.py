"""What --input can name."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from unified.errors import InputError
from unified.inference.inputs import Clip, expand_lists, find_clips, find_pictures


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Files without content; the working folder."""
    for name in (
        "photos/2.jpg", "photos/10.png", "photos/notes.md", "photos/d.heic",
        "photos/old/b.jpg", "photos/old/2.jpg", "photos/.hidden/x.jpg", "photos/__MACOSX/2.jpg",
        "photos/out/results.json", "photos/out/masks/2.png", "photos/out/overlay/2.jpg",
        "clips/a.mp4", "clips/b/1.jpg", "clips/b/2.jpg", "clips/deep/c/1.png", "clips/read.me",
    ):  # fmt: skip
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def names(inputs: list[str]) -> list[str]:
    return [picture.name for picture in find_pictures(inputs).found]


def test_a_folder_is_read_with_its_sub_folders_but_for_what_a_run_made(tree: Path) -> None:
    pictures, skipped = find_pictures(["photos"])
    assert [p.name for p in pictures] == ["2", "10", "d", "old/2", "old/b"]
    assert [str(p.path) for p in pictures][:2] == ["photos/2.jpg", "photos/10.png"]
    assert [path.name for path in skipped] == ["notes.md"]


def test_files_patterns_and_folders_can_be_mixed(tree: Path) -> None:
    assert names(["photos/10.png", "photos/old", "photos/10.png"]) == ["10", "2", "b"]
    assert names(["photos/*.jpg"]) == ["2"]
    assert names(["photos/out/masks"]) == ["2"]
    (tree / "strange").touch()
    assert names(["strange"]) == ["strange"]  # given by name, so it is tried


def test_a_list_names_inputs_from_here_or_from_beside_it(tree: Path) -> None:
    (tree / "photos/list.txt").write_text("\ufeff# mine\n10.png\n\nphotos/old\n", encoding="utf-8")
    assert expand_lists(["photos/list.txt", "x"]) == ["photos/10.png", "photos/old", "x"]
    assert names(["photos/list.txt"]) == ["10", "2", "b"]
    (tree / "quoted.txt").write_text('"photos/10.png"\r\n"photos/old"\r\n', encoding="utf-16")
    assert expand_lists(["quoted.txt"]) == ["photos/10.png", "photos/old"]
    (tree / "single.txt").write_text("'photos/10.png'\n'photos/*.jpg'\n")
    assert expand_lists(["single.txt"]) == ["photos/10.png", "photos/*.jpg"]
    (tree / "it's").touch()
    (tree / "apostrophe.txt").write_text("it's\n")
    assert expand_lists(["apostrophe.txt"]) == ["it's"]
    (tree / "empty.txt").touch()
    (tree / "bad.txt").write_text("gone.jpg")
    (tree / "remark.txt").write_text("photos/10.png # mine")
    for wrong, reason in (
        ("empty.txt", "is empty"),
        ("bad.txt", r"names gone\.jpg, which does not exist: check the path$"),
        ("remark.txt", "and write remarks on lines of their own$"),
    ):
        with pytest.raises(InputError, match=reason):
            names([wrong])


def test_pictures_that_would_share_files_or_are_not_there_are_refused(tree: Path) -> None:
    (tree / "photos/2.png").touch()
    cases = {
        "photos": r"photos/2\.(jpg|png) and photos/2\.(png|jpg) would both be called 2: rename one",
        "none": "none does not exist",
        "*.gone": "matches no file",
        "clips/deep": None,
        "clips/*.me": "holds no image",
    }
    for source, reason in cases.items():
        if reason is None:
            assert names([source]) == ["c/1"]
            continue
        with pytest.raises(InputError, match=reason):
            names([source])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        ("", "an --input is empty: an unset variable"),
        ("https://example.org/photos/2.jpg", "is an address: download it first"),
        ("file:///photos/2.jpg", "is an address: give the path alone"),
    ],
)
def test_what_is_no_path_is_not_looked_for(tree: Path, source: str, reason: str) -> None:
    """Path("") is the working folder, and would be read with all that is below it."""
    for find in (find_pictures, find_clips):
        with pytest.raises(InputError, match=reason):
            find([source])


def test_one_clip_fills_the_folder_itself(tree: Path) -> None:
    for source in ("clips/a.mp4", "clips/b", "clips/b/*.jpg", "0", "gone.mp4"):
        assert find_clips([source]) == [Clip((source,), "")]
    several = ["clips/b/1.jpg", "clips/b/2.jpg"]
    assert find_clips(several) == [Clip(tuple(several), "")]


def test_several_clips_get_a_folder_each(tree: Path) -> None:
    found = [
        Clip(("clips/a.mp4",), "a"),
        Clip(("clips/b",), "b"),
        Clip(("clips/deep/c",), "deep/c"),
    ]
    assert find_clips(["clips"]) == found
    assert find_clips(["clips/deep"]) == [Clip(("clips/deep/c",), "c")]
    assert find_clips(["clips/a.mp4", "clips/b"]) == found[:2]
    assert find_clips(["clips/*[ab]*"]) == found[:2]
    assert find_clips(["clips/a.mp4", "clips/b/1.jpg", "clips/b/2.jpg"]) == [
        found[0], Clip(("clips/b/1.jpg", "clips/b/2.jpg"), "b")
    ]  # fmt: skip
    assert find_clips(["photos"]) == [Clip(("photos",), "")]  # its own images, as one clip
    (tree / "clips/b.mov").touch()
    with pytest.raises(InputError, match="would both be called b: rename one"):
        find_clips(["clips"])
    os.mkdir("nothing")
    with pytest.raises(InputError, match="holds no image and no video"):
        find_clips(["nothing"])
