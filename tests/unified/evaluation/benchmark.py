"""How fast boundary F and whole folders are scored, beside plain code in the same process."""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import binary_dilation

from unified.evaluation.protocols import evaluate
from unified.evaluation.report import Request
from unified.mask_files import read_ids
from unified.metrics.davis import boundary_radius, frame_scores, mask_boundary

SIZE = (480, 854)
NUM_OBJECTS = 2
NUM_FRAMES = 70
NUM_SEQUENCES = 30
PLAIN_FRAMES = 6  # the plain implementation is timed on these and scaled up


def run_benchmark(num_sequences: int = NUM_SEQUENCES, num_workers: int = 2) -> Iterator[str]:
    """Yields lines: J and F alone, then folders of DAVIS-17 size, each against plain code."""
    cv2.setNumThreads(1)
    pairs = [(shape_map(t, 0), shape_map(t, 9)) for t in range(PLAIN_FRAMES)]
    masks = [(t == i, p == i) for t, p in pairs for i in range(1, NUM_OBJECTS + 1)]
    ids = range(1, NUM_OBJECTS + 1)
    ours = _seconds(lambda: [frame_scores(t, p, ids) for t, p in pairs], repeats=3)
    plain = _seconds(lambda: [plain_boundary_accuracy(t, p) for t, p in masks])
    yield (
        f"J and F at {SIZE[1]}x{SIZE[0]}: {1e3 * ours / len(masks):.2f} ms, F by scipy dilation of "
        f"the whole image {1e3 * plain / len(masks):.1f} ms, {plain / ours:.0f} times faster"
    )
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        _write_sequences(root, num_sequences)
        request = Request(root / "gt", root / "pred", num_workers=num_workers, progress=True)
        ours = _seconds(lambda: evaluate("davis17-semi", request))
        plain = _plain_folder(root) * num_sequences * NUM_FRAMES / PLAIN_FRAMES
    yield (
        f"{num_sequences} sequences of {NUM_FRAMES} frames and {NUM_OBJECTS} objects: {ours:.1f} s "
        f"with {num_workers} workers, plain {plain:.0f} s (scaled from {PLAIN_FRAMES} frames), "
        f"{plain / ours:.0f} times faster"
    )
    yield f"largest memory of the process: {_peak_megabytes():.0f} MB"


def plain_boundary_accuracy(truth: NDArray[np.bool_], prediction: NDArray[np.bool_]) -> float:
    """F by dilating both boundaries over the whole image with scipy."""
    radius = boundary_radius(truth.shape)
    y, x = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disk = x * x + y * y <= radius * radius
    edges = mask_boundary(truth), mask_boundary(prediction)
    counts = [np.count_nonzero(edge) for edge in edges]
    if not all(counts):
        return float(counts[0] == counts[1])
    recall = np.count_nonzero(edges[0] & binary_dilation(edges[1], disk)) / counts[0]
    precision = np.count_nonzero(edges[1] & binary_dilation(edges[0], disk)) / counts[1]
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def shape_map(frame: int, wobble: float) -> NDArray[np.uint8]:
    """A label map of two moving, bumpy shapes; ``wobble`` pixels make a prediction of it."""
    label_map = np.zeros(SIZE, np.uint8)
    angle = np.linspace(0, 2 * np.pi, 90)
    for i in range(1, NUM_OBJECTS + 1):
        radius = 90 + 20 * np.sin(5 * angle + i) + wobble * np.sin(11 * angle + 0.1 * frame)
        x = 260 * i + 60 * np.sin(0.1 * frame) + radius * np.cos(angle)
        y = 240 + radius * np.sin(angle)
        cv2.fillPoly(label_map, [np.stack([x, y], axis=1).astype(np.int32)], i)
    return label_map


def _write_sequences(root: Path, number: int) -> None:
    """One sequence is drawn, the others are links to its files."""
    for side, wobble in (("gt", 0.0), ("pred", 9.0)):
        first = root / side / "000"
        first.mkdir(parents=True)
        for frame in range(NUM_FRAMES):
            Image.fromarray(shape_map(frame, wobble)).save(first / f"{frame:05d}.png")
        for sequence in range(1, number):
            (root / side / f"{sequence:03d}").symlink_to(first, target_is_directory=True)


def _plain_folder(root: Path) -> float:
    """Seconds for reading and scoring a few frames one by one without windows."""

    def work() -> None:
        for frame in range(PLAIN_FRAMES):
            truth, prediction = (
                read_ids(root / side / "000" / f"{frame:05d}.png") for side in ("gt", "pred")
            )
            for i in range(1, NUM_OBJECTS + 1):
                masks = truth == i, prediction == i
                plain_boundary_accuracy(*masks)
                np.count_nonzero(masks[0] & masks[1]) / np.count_nonzero(masks[0] | masks[1])

    return _seconds(work)


def _seconds(work: Callable[[], object], repeats: int = 1) -> float:
    start = time.perf_counter()
    for _ in range(repeats):
        work()
    return (time.perf_counter() - start) / repeats


def _peak_megabytes() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)
