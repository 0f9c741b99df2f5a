"""Training, evaluation and the inference tools read the same file as the same pixels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from unified.data.formats.clips import read_clip_folders
from unified.data.formats.files import image_files
from unified.data.formats.labelled import read_labelled_images
from unified.data.formats.records import frame_labels, frame_masks
from unified.data.samples import read_view
from unified.errors import InputError
from unified.evaluation.reading import frame_names
from unified.inference.image_io import image_size, read_image
from unified.mask_files import read_ids

SIZE = (20, 30)


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (*SIZE, 3), np.uint8)


def record_of(path: Path) -> dict[str, object]:
    height, width = image_size(path)
    return {"file_name": str(path), "height": height, "width": width, "annotations": []}


@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_are_upright_everywhere(orientation: int, tmp_path: Path) -> None:
    """The size that labelling tools export is the displayed one."""
    path = tmp_path / "a.png"
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(pixels()).save(path, exif=exif)
    shown = read_image(path)
    assert image_size(path) == shown.shape[:2] == (SIZE if orientation < 5 else SIZE[::-1])
    view, _ = read_view(record_of(path))
    assert np.array_equal(view.image, shown)
    upright = np.array_equal(shown, pixels())
    assert upright == (orientation == 1)


def test_depths_and_modes_are_one_picture_everywhere(tmp_path: Path) -> None:
    grey = pixels()[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "deep.png")
    clear = np.dstack([np.repeat(grey[..., None], 3, axis=2), np.full(SIZE, 255, np.uint8)])
    Image.fromarray(clear).save(tmp_path / "alpha.png")
    for name in ("grey", "deep", "alpha"):
        view, _ = read_view(record_of(tmp_path / f"{name}.png"))
        assert np.array_equal(view.image, np.repeat(grey[..., None], 3, axis=2)), name


def test_frames_are_in_natural_order_everywhere(tmp_path: Path) -> None:
    for name in ("1", "2", "10", "11"):
        Image.fromarray(pixels()[..., 0]).save(tmp_path / f"{name}.png")
    (tmp_path / ".hidden.png").write_bytes(b"litter")
    expected = ["1", "2", "10", "11"]
    assert [path.stem for path in image_files(tmp_path, "frames")] == expected
    assert frame_names(tmp_path) == expected


@pytest.mark.parametrize("ids", [(1, 255), (255,)])
def test_void_is_void_in_a_whole_clip(ids: tuple[int, ...], tmp_path: Path) -> None:
    """White is the object of a clip only if no frame has another one."""
    for frame in range(3):
        (tmp_path / "frames/c").mkdir(parents=True, exist_ok=True)
        (tmp_path / "masks/c").mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels()).save(tmp_path / f"frames/c/{frame}.jpg")
        labels = np.zeros(SIZE, np.uint8)
        labels[2:5, 2:9] = 255
        if frame < 2:
            labels[8:12, 3:9] = ids[0]
        Image.fromarray(labels).save(tmp_path / f"masks/c/{frame}.png")
    (record,) = read_clip_folders(tmp_path / "frames", tmp_path / "masks")
    found = [set(frame_masks(record, frame)) for frame in range(3)]
    assert found == ([{1}, {1}, set()] if 1 in ids else [{1}] * 3)
    last = frame_labels(record, 2)
    assert last is not None and set(np.unique(last)) == ({0, 255} if 1 in ids else {0, 1})


@pytest.mark.parametrize("brightest", [200, 255])
def test_soft_edges_are_refused_in_training_too(brightest: int, tmp_path: Path) -> None:
    for folder in ("frames/c", "masks/c"):
        (tmp_path / folder).mkdir(parents=True)
    rows, columns = np.mgrid[:64, :64]
    away = np.hypot(rows - 32, columns - 32)
    soft = ((24 - away).clip(0, 4) * brightest / 4).astype(np.uint8)
    Image.fromarray(soft).save(tmp_path / "masks/c/0.png")
    Image.fromarray(np.zeros((64, 64, 3), np.uint8)).save(tmp_path / "frames/c/0.png")
    (record,) = read_clip_folders(tmp_path / "frames", tmp_path / "masks")
    with pytest.raises(InputError, match=r"0\.png has soft edges"):
        frame_masks(record, 0)
    with pytest.raises(InputError, match=r"0\.png has soft edges"):
        read_labelled_images(tmp_path / "frames/c", tmp_path / "masks/c")


def test_a_mask_with_colours_or_losses_is_refused(tmp_path: Path) -> None:
    Image.fromarray(pixels()).save(tmp_path / "colours.png")
    Image.fromarray(pixels()[..., 0]).save(tmp_path / "lossy.jpg")
    for name, reason in (("colours.png", "mode RGB"), ("lossy.jpg", "JPEG file")):
        with pytest.raises(InputError, match=reason):
            read_ids(tmp_path / name)
