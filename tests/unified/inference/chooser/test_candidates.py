from __future__ import annotations

import numpy as np
import pytest
import torch

from tests.toy.model import Toy
from tests.unified.inference.chooser.scenes import boxes, found
from unified.inference.chooser.candidates import joined, on_grid, overlaps
from unified.inference.chooser.colours import SHADES, colour_maps
from unified.inference.chooser.scene import Scene
from unified.inference.frames import FrameEncoder
from unified.inference.settings import ImageSettings
from unified.structures import Segmentation

SETTINGS = ImageSettings(short_side=64, max_size=128)


def photo() -> np.ndarray:
    image = np.random.default_rng(0).integers(0, 60, (60, 80, 3), dtype=np.uint8)
    image[5:30, 10:40] = (200, 30, 30)
    return image


def test_the_same_mask_found_twice_is_one_candidate() -> None:
    masks = boxes((0, 0, 10, 10), (20, 0, 30, 10), (0, 0, 10, 11), (0, 0, 1, 1))
    one = joined([found(masks[:2], [0.5, 0.7]), found(masks[2:], [0.9, 0.8])], limit=10)
    torch.testing.assert_close(one.scores, torch.tensor([0.9, 0.7]))  # the speck is too small
    torch.testing.assert_close(one.probabilities[0, 10, :10], torch.full((10,), 0.5))
    assert len(joined([found(masks[:2])], limit=1)) == 1


def test_overlaps() -> None:
    iou, within = overlaps(boxes((0, 0, 4, 4)), boxes((0, 0, 4, 8), (8, 8, 9, 9)))
    assert iou.tolist() == [[0.5, 0.0]] and within.tolist() == [[1.0, 0.0]]


def test_a_mask_of_the_mirror_image_is_turned_back(segmenter: Toy) -> None:
    frame = FrameEncoder(segmenter, SETTINGS).image(photo())
    height, width = (side // 4 for side in frame.images.padded_size)
    logits = torch.full((1, 1, height, width), -5.0)
    logits[..., :5] = 5.0
    given = Segmentation(logits, torch.ones(1, 1), torch.zeros(1, 1, 4), torch.zeros(1, 1))
    size = frame.images.image_sizes[0][0] // 4, frame.images.image_sizes[0][1] // 4
    plain, turned = (on_grid(given, frame, size, mirrored=m).masks[0] for m in (False, True))
    assert plain[:, :5].all() and not plain[:, 5:].any()
    assert torch.equal(turned, plain.flip(1))


def test_shades_have_the_name_of_their_colour() -> None:
    names = list(SHADES)
    for name, shades in SHADES.items():
        maps = colour_maps(np.array([shades], np.uint8))[:11, 0]  # (11, shades)
        assert [names[i] for i in maps.argmax(dim=0)] == [name] * len(shades)
        torch.testing.assert_close(maps.sum(dim=0), torch.ones(len(shades)))


def scene(model: Toy, image: np.ndarray) -> Scene:
    encoder = FrameEncoder(model, SETTINGS)
    frames = [encoder.image(image), encoder.image(image[:, ::-1].copy())]
    return Scene(model, frames, image, model.backbone, *(torch.full((3,), 128.0),) * 2)


@torch.inference_mode()
def test_places_and_colours_of_a_candidate(segmenter: Toy) -> None:
    seen = scene(segmenter, photo())
    height, width = seen.size
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, round(5 / 60 * height) : height // 2, round(width / 8) : width // 2] = True
    described = seen.describer.describe(found(mask))
    x, y, x0, y0, x1, y1, area, _ = described.places[0].tolist()
    assert (x0, x1) == pytest.approx((1 / 8, 1 / 2), abs=0.03)
    assert (y0, y1) == pytest.approx((1 / 12, 1 / 2), abs=0.03)
    assert (x, y) == pytest.approx(((x0 + x1) / 2, (y0 + y1) / 2), abs=1e-4)
    assert area == pytest.approx((x1 - x0) * (y1 - y0), abs=1e-4)
    assert list(SHADES)[described.colours[0, :11].argmax()] == "red"


@torch.inference_mode()
def test_candidates_of_a_sentence_join_those_of_the_image(segmenter: Toy) -> None:
    seen = scene(segmenter, photo())
    assert seen.detected is not None
    asked = seen.asked(segmenter.encode_text(["the red dog"]))
    both, described = seen.candidates(asked)
    assert len(both) == len(described) >= len(seen.detected)
    whole = seen.describer.describe(both)
    for name, value in vars(whole).items():
        torch.testing.assert_close(getattr(described, name), value, msg=name)
