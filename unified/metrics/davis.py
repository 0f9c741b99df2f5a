"""Region similarity J, boundary accuracy F and their statistics over a sequence.

Label maps are (H, W) uint8: 0 background, the pixel value is the object id, 255 void.
Source: Perazzi et al., A Benchmark Dataset and Evaluation Methodology for Video Object
Segmentation, CVPR 2016, section 5; numbers agree with davis2017-evaluation ac7c43f.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray
from scipy.optimize import linear_sum_assignment

from unified.errors import InputError

VOID = 255
BOUNDARY_TOLERANCE = 0.008
MAX_PROPOSALS = 20

Window = tuple[slice, slice]


@dataclass(frozen=True)
class Track:
    """Scores of one object over time: ``region`` and ``boundary`` are (T,) in [0, 1].

    ``matched`` are the ids of the ground truth and of the proposal that was assigned to it, 0 for
    all foreground; None where the ids are the same.
    """

    region: NDArray[np.float64]
    boundary: NDArray[np.float64]
    matched: tuple[int, int] | None = None

    @property
    def mean(self) -> float:
        """J&F of the track."""
        return float(self.region.mean() + self.boundary.mean()) / 2

    def frames(self, keep: slice) -> Track:
        """The same track restricted to some frames."""
        return Track(self.region[keep], self.boundary[keep], self.matched)


@dataclass(frozen=True)
class Statistics:
    """Mean, share of frames above 0.5, and first quarter minus last quarter of a series."""

    mean: float
    recall: float
    decay: float


def region_similarity(truth: NDArray, prediction: NDArray, void: NDArray | None = None) -> float:
    """Returns J = intersection over union of two (H, W) masks; 1 when both are empty.

    ``void`` pixels count neither for nor against.
    """
    truth, prediction = _without_void(truth, prediction, void)
    union = np.count_nonzero(truth | prediction)
    return float(np.count_nonzero(truth & prediction) / union) if union else 1.0


def boundary_radius(shape: tuple[int, ...]) -> int:
    """Returns the matching distance in pixels for masks of this (H, W)."""
    return int(np.ceil(BOUNDARY_TOLERANCE * np.linalg.norm(shape[:2])))


def mask_boundary(mask: NDArray) -> NDArray[np.bool_]:
    """Marks pixels that differ from their right, lower or lower right neighbour.

    The edge of the image is no boundary: the last row looks only right, the last column only down.
    """
    mask = np.asarray(mask, dtype=bool)
    boundary = np.zeros_like(mask)
    right, below = mask[:, :-1] ^ mask[:, 1:], mask[:-1] ^ mask[1:]
    boundary[:, :-1] |= right
    boundary[:-1] |= below
    boundary[:-1, :-1] |= mask[:-1, :-1] ^ mask[1:, 1:]
    return boundary


def frame_scores(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    object_ids: Sequence[int],
    void: NDArray | None = None,
) -> NDArray[np.float64]:
    """Returns (O, 2) J and F of every object of one frame, each worked out in its own window."""
    truth_windows, prediction_windows = (_windows(m, object_ids) for m in (truth, prediction))
    pairs = [
        _pair_scores(truth, i, truth_windows.get(i), prediction, i, prediction_windows.get(i), void)
        for i in object_ids
    ]
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)


def proposal_scores(
    truth: NDArray[np.uint8],
    prediction: NDArray[np.uint8],
    object_ids: Sequence[int],
    void: NDArray | None = None,
) -> NDArray[np.float64]:
    """Returns (1 + P, O, 2) J and F of proposals 1..P of one frame against every object.

    Row 0 is what a proposal scores that is not in this frame; P is the largest id of the frame.

    Raises:
        InputError: more than 20 proposals, the limit of the benchmark.
    """
    num_proposals = int(prediction.max())
    if num_proposals > MAX_PROPOSALS:
        raise InputError(
            f"expected at most {MAX_PROPOSALS} proposals in a sequence, got id {num_proposals}: "
            "keep the best proposals and number them from 1"
        )
    truth_windows = _windows(truth, object_ids)
    windows = _windows(prediction, range(1, num_proposals + 1))
    # No pixel is VOID here, so row 0 compares with an empty mask.
    return np.array(
        [
            [
                _pair_scores(truth, o, truth_windows.get(o), prediction, p, windows.get(p), void)
                for o in object_ids
            ]
            for p in (VOID, *range(1, num_proposals + 1))
        ],
        dtype=np.float64,
    ).reshape(num_proposals + 1, len(object_ids), 2)


def align_proposals(frames: Sequence[NDArray[np.float64]]) -> NDArray[np.float64]:
    """Stacks the ``proposal_scores`` of all frames to (T, P, O, 2), at least one proposal each."""
    num_objects = frames[0].shape[1]
    num_proposals = max(num_objects, *(len(frame) - 1 for frame in frames))
    aligned = np.stack([np.repeat(frame[:1], num_proposals, axis=0) for frame in frames])
    for row, frame in zip(aligned, frames, strict=True):
        row[: len(frame) - 1] = frame[1:]
    return aligned


def match_proposals(scores: NDArray[np.float64]) -> list[tuple[int, int]]:
    """Assigns proposals to objects by J&F over the whole sequence; extra proposals are free.

    Args:
        scores: (T, P, O, 2) from ``align_proposals``, P >= O.

    Returns:
        O pairs (proposal, object) in the order of the proposals: the official program names the
        first of them object 1, and so on.
    """
    rows, columns = linear_sum_assignment(-scores.mean(axis=(0, 3)))
    return list(zip(rows.tolist(), columns.tolist(), strict=True))


def present_ids(label_map: NDArray[np.uint8]) -> list[int]:
    """Returns the pixel values of an (H, W) label map in rising order, 0 and 255 among them."""
    counts = cv2.calcHist([np.ascontiguousarray(label_map)], [0], None, [256], [0, 256])
    return np.flatnonzero(counts).tolist()


def num_objects(first_truth: NDArray[np.uint8]) -> int:
    """The DAVIS rule: objects are 1..(largest id of the FIRST ground-truth frame)."""
    return int(np.where(first_truth == VOID, 0, first_truth).max())


def statistics(values: NDArray[np.float64], *, wrap_index: bool = False) -> Statistics:
    """Returns mean, recall and decay of a (T,) series.

    Args:
        values: one score per frame.
        wrap_index: repeat the official program, whose 8-bit frame index overflows above 256 values
            so that decay is NaN. Off, decay is right for any length.
    """
    num_bins = 4
    edges = np.round(np.linspace(1, len(values), num_bins + 1) + 1e-10).astype(np.int64) - 1
    if wrap_index:
        edges = edges.astype(np.uint8).astype(np.int64)
    first = values[edges[0] : edges[1] + 1]
    last = values[edges[num_bins - 1] : edges[num_bins] + 1]
    decay = first.mean() - last.mean() if len(first) and len(last) else np.nan
    return Statistics(float(values.mean()), float((values > 0.5).mean()), float(decay))


def summarise(tracks: Sequence[Track]) -> dict[str, float]:
    """Returns the seven DAVIS numbers: every object counts once, whatever its sequence."""
    regions = [statistics(track.region) for track in tracks]
    boundaries = [statistics(track.boundary) for track in tracks]
    means = {
        f"{letter}-{name.capitalize()}": float(np.mean([getattr(s, name) for s in series]))
        for letter, series in (("J", regions), ("F", boundaries))
        for name in ("mean", "recall", "decay")
    }
    return {"J&F-Mean": (means["J-Mean"] + means["F-Mean"]) / 2, **means}


def _without_void(
    truth: NDArray, prediction: NDArray, void: NDArray | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    truth, prediction = np.asarray(truth, dtype=bool), np.asarray(prediction, dtype=bool)
    if truth.shape != prediction.shape:
        raise InputError(
            f"ground truth is {truth.shape}, prediction is {prediction.shape}: "
            "resize the prediction to the size of the ground truth with nearest neighbour"
        )
    if void is None:
        return truth, prediction
    keep = ~np.asarray(void, dtype=bool)
    return truth & keep, prediction & keep


def _windows(label_map: NDArray[np.uint8], ids: Iterable[int]) -> dict[int, Window]:
    """The box of pixels around each id that has any."""
    windows = {}
    for i in ids:
        x, y, width, height = cv2.boundingRect((label_map == i).view(np.uint8))
        if width:
            windows[i] = (slice(y, y + height), slice(x, x + width))
    return windows


def _pair_scores(
    truth: NDArray[np.uint8],
    truth_id: int,
    truth_window: Window | None,
    prediction: NDArray[np.uint8],
    prediction_id: int,
    prediction_window: Window | None,
    void: NDArray | None,
) -> tuple[float, float]:
    """J and F of one object, looking only at the pixels around both masks."""
    if truth_window is None and prediction_window is None:
        return 1.0, 1.0
    window = _union(truth_window, prediction_window)
    truth_mask, prediction_mask = _without_void(
        truth[window] == truth_id,
        prediction[window] == prediction_id,
        None if void is None else void[window],
    )
    union = np.count_nonzero(truth_mask | prediction_mask)
    if union == 0:
        return 1.0, 1.0
    region = np.count_nonzero(truth_mask & prediction_mask) / union
    return float(region), _boundary_f(truth_mask, prediction_mask, boundary_radius(truth.shape))


def _union(first: Window | None, second: Window | None) -> Window:
    """The box around both windows plus one pixel, where the boundary of the masks still runs."""
    windows = [window for window in (first, second) if window is not None]
    rows, columns = (
        slice(
            max(min(window[axis].start for window in windows) - 1, 0),
            max(window[axis].stop for window in windows) + 1,
        )
        for axis in (0, 1)
    )
    return rows, columns


def _boundary_f(truth: NDArray[np.bool_], prediction: NDArray[np.bool_], radius: int) -> float:
    truth_boundary, prediction_boundary = mask_boundary(truth), mask_boundary(prediction)
    num_truth = np.count_nonzero(truth_boundary)
    num_prediction = np.count_nonzero(prediction_boundary)
    if num_truth == 0 or num_prediction == 0:
        return float(num_truth == num_prediction)
    near_truth = np.count_nonzero(prediction_boundary & _grow(truth_boundary, radius))
    near_prediction = np.count_nonzero(truth_boundary & _grow(prediction_boundary, radius))
    precision, recall = near_truth / num_prediction, near_prediction / num_truth
    return float(2 * precision * recall / (precision + recall)) if near_truth else 0.0


def _grow(boundary: NDArray[np.bool_], radius: int) -> NDArray[np.bool_]:
    # Inside the window only: pixels farther out hold no boundary that could be matched.
    return cv2.dilate(boundary.view(np.uint8), _disk(radius)).view(np.bool_)


@lru_cache(maxsize=16)
def _disk(radius: int) -> NDArray[np.uint8]:
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    return (x * x + y * y <= radius * radius).astype(np.uint8)
