"""A SAM with UniFusion beside itself without it, on a clip whose objects are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from projects.sam.baseline import BoxTracking
from projects.sam.system import SYSTEM
from tests.projects.sam.tiny import make_model
from unified import VideoPredictor
from unified.errors import InputError
from unified.inference import benchmark
from unified.inference.image_io import write_image
from unified.inference.settings import VideoSettings
from unified.label_maps import write_label_map
from unified.mask_files import VOID

SIZE = (48, 64)
SETTINGS = VideoSettings(short_side=48, max_size=64, score_threshold=0.0, keep_probabilities=True)


def folders(root: Path, num: int) -> tuple[Path, Path]:
    """Frames of two moving rectangles, and their label maps with the ids 3 and 5."""
    frames, masks = root / "frames", root / "masks"
    for folder in (frames, masks):
        folder.mkdir(parents=True)
    for number in range(num):
        image, (first, second) = benchmark.moving_rectangles(number, SIZE, 2)
        write_image(frames / f"{number:03}.png", image)
        write_label_map(masks / f"{number:03}.png", (3 * first + 5 * second).astype(np.uint8))
    return frames, masks


def test_frames_of_a_folder_are_compared_with_their_label_maps(tmp_path: Path) -> None:
    clip = benchmark.known_clip(*folders(tmp_path, 3))
    wanted = benchmark.moving_rectangles(1, SIZE, 2)[1]
    assert clip.size == SIZE and np.array_equal(clip.masks(1), wanted)
    model = make_model()
    outcomes = list(
        benchmark.segment_clip(
            VideoPredictor(model, SETTINGS), tmp_path, clip, num_frames=2, stages=SYSTEM.stages
        )
    )
    assert len(outcomes) == 2 and outcomes[0].lap.iou == 1  # the masks of the first are given
    ious = [
        (a & b).sum() / (a | b).sum()
        for a, b in zip((outcomes[1].label_map == i for i in (1, 2)), wanted, strict=True)
    ]
    assert outcomes[1].lap.iou == pytest.approx(np.mean(ious))
    laps = [outcome.lap for outcome in outcomes]
    report = benchmark.summary(laps, stages=SYSTEM.stages, num_objects=2, peak=1.0)
    assert report["iou"] == pytest.approx(50 * (1 + np.mean(ious)), abs=0.01)
    assert all(report["milliseconds"][stage] >= 0 for stage in SYSTEM.stages.values())


def test_without_an_object_in_the_first_map_nothing_can_be_followed(tmp_path: Path) -> None:
    frames, masks = folders(tmp_path, 1)
    write_label_map(masks / "000.png", np.zeros(SIZE, np.uint8))
    for given in (masks, tmp_path / "none"):
        with pytest.raises(InputError, match="needs a label map for each frame, with objects"):
            benchmark.known_clip(frames, given)


def test_objects_that_leave_no_background_are_followed_and_void_is_not(tmp_path: Path) -> None:
    frames, masks = folders(tmp_path, 2)
    full = np.full(SIZE, 3, np.uint8)
    full[:9], full[9:12] = 5, VOID
    write_label_map(masks / "000.png", full)
    clip = benchmark.known_clip(frames, masks)
    assert [mask.sum() for mask in clip.masks(0)] == [36 * 64, 9 * 64]
    with pytest.raises(InputError, match="holds 2 label maps, and the clip goes on"):
        clip.masks(2)


def test_white_is_the_object_of_black_and_white_masks(tmp_path: Path) -> None:
    frames, masks = folders(tmp_path, 2)
    wanted = benchmark.moving_rectangles(1, SIZE, 2)[1].any(axis=0)
    for number in range(2):
        shown = benchmark.moving_rectangles(number, SIZE, 2)[1].any(axis=0)
        Image.fromarray(shown * np.uint8(255)).save(masks / f"{number:03}.png")
    assert np.array_equal(benchmark.known_clip(frames, masks).masks(1), wanted[None])


def test_the_baseline_is_the_sam_inside() -> None:
    model = make_model()
    assert SYSTEM.baseline is not None
    plain = SYSTEM.baseline(model)
    assert isinstance(plain, BoxTracking) and plain.sam is model.sam and not plain.training
    assert all(callable(getattr(model, path.split(".")[0])) for path in SYSTEM.stages)
