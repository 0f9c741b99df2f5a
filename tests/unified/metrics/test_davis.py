"""J and F against definitions written out plainly; official numbers are in test_golden."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from scipy.ndimage import binary_dilation

from unified.errors import InputError
from unified.metrics.davis import (
    Track,
    align_proposals,
    boundary_radius,
    frame_scores,
    mask_boundary,
    match_proposals,
    proposal_scores,
    region_similarity,
    statistics,
    summarise,
)


def blobs(seed: int, size: tuple[int, int], count: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    label_map = np.zeros(size, np.uint8)
    for i in range(1, count + 1):
        centre = rng.integers(0, size[1]), rng.integers(0, size[0])
        axes = rng.integers(3, max(4, size[0] // 3)), rng.integers(3, max(4, size[0] // 3))
        cv2.ellipse(label_map, [int(c) for c in centre], [int(a) for a in axes], 30, 0, 360, i, -1)
    return label_map


def plain_boundary_f(truth: np.ndarray, prediction: np.ndarray) -> float:
    """The definition: dilate both boundaries over the whole image."""
    radius = boundary_radius(truth.shape)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x * x + y * y <= radius * radius
    edges = [mask_boundary(truth), mask_boundary(prediction)]
    if not edges[0].any() or not edges[1].any():
        return float(edges[0].any() == edges[1].any())
    precision = (edges[1] & binary_dilation(edges[0], disk)).sum() / edges[1].sum()
    recall = (edges[0] & binary_dilation(edges[1], disk)).sum() / edges[0].sum()
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


@pytest.mark.parametrize("size", [(60, 80), (97, 53), (120, 214), (1, 9), (5, 1)])
@pytest.mark.parametrize("seed", range(6))
def test_windowed_scores_equal_the_plain_definition(size: tuple[int, int], seed: int) -> None:
    truth, prediction = blobs(seed, size, 3), blobs(seed + 1000, size, 3)
    scores = frame_scores(truth, prediction, [1, 2, 3, 4])
    for i, (region, boundary) in zip((1, 2, 3, 4), scores, strict=True):
        masks = truth == i, prediction == i
        union = (masks[0] | masks[1]).sum()
        assert region == ((masks[0] & masks[1]).sum() / union if union else 1.0)
        assert boundary == pytest.approx(plain_boundary_f(*masks), abs=1e-15)


@pytest.mark.parametrize("seed", range(4))
def test_void_pixels_do_not_count(seed: int) -> None:
    truth, prediction = blobs(seed, (60, 80), 2), blobs(seed + 9, (60, 80), 2)
    void = blobs(seed + 77, (60, 80), 1) > 0
    scores = frame_scores(truth, prediction, [1, 2], void)
    for i, (region, boundary) in zip((1, 2), scores, strict=True):
        assert region == region_similarity(truth == i, prediction == i, void)
        cleared = (truth == i) & ~void, (prediction == i) & ~void
        assert boundary == pytest.approx(plain_boundary_f(*cleared), abs=1e-15)


def test_empty_and_full_masks() -> None:
    empty, full = np.zeros((20, 30), np.uint8), np.ones((20, 30), np.uint8)
    for pair, region in (((empty, empty), 1), ((full, full), 1), ((empty, full), 0)):
        # a mask that fills the image has no boundary, like an empty one
        assert frame_scores(*pair, [1]).tolist() == [[region, 1]]
        assert region_similarity(*pair) == region


def test_another_size_is_an_error_that_says_what_to_do() -> None:
    with pytest.raises(InputError, match=r"\(20, 30\), prediction is \(10, 15\): resize"):
        region_similarity(np.zeros((20, 30)), np.zeros((10, 15)))


def test_decay_is_right_for_long_series_and_can_repeat_the_official_overflow() -> None:
    series = np.linspace(1, 0, 300)
    assert statistics(series).decay == pytest.approx(series[:76].mean() - series[224:].mean())
    assert np.isnan(statistics(series, wrap_index=True).decay)
    short = np.array([0.9, 0.5, 0.4, 0.51])
    assert statistics(short) == statistics(short, wrap_index=True)
    assert statistics(short).recall == 0.5  # above one half, not at it


def test_every_object_counts_once_whatever_the_length_of_its_track() -> None:
    tracks = [Track(np.ones(100), np.ones(100)), Track(np.zeros(4), np.zeros(4))]
    assert summarise(tracks)["J&F-Mean"] == 0.5


def test_proposals_are_assigned_over_the_whole_sequence() -> None:
    truth = blobs(1, (60, 80), 2)
    swapped = np.choose(truth, [0, 2, 1]).astype(np.uint8)
    extra = np.where(truth == 0, 3, swapped).astype(np.uint8)
    aligned = align_proposals([proposal_scores(truth, p, [1, 2]) for p in (swapped, extra)])
    assert aligned.shape == (2, 3, 2, 2)
    assert match_proposals(aligned) == [(0, 1), (1, 0)]
    assert aligned[:, 0, 1].min() == 1
    # the third proposal is not in the first frame and scores there like an empty mask
    assert aligned[0, 2].max() == 0


def test_too_many_proposals() -> None:
    with pytest.raises(InputError, match="at most 20 proposals"):
        proposal_scores(np.zeros((4, 4), np.uint8), np.full((4, 4), 21, np.uint8), [1])
