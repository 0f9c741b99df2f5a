"""Rules about frames and objects, on videos small enough to count by hand."""

from __future__ import annotations

import numpy as np
import pytest

from unified.errors import InputError
from unified.metrics.davis import Track
from unified.metrics.video import (
    Span,
    davis_semi_supervised,
    davis_unsupervised,
    expression_track,
    lvos_objects,
    seen_unseen,
    variation,
    visible_objects,
)


def clip(rows: list[tuple[int, ...]]) -> np.ndarray:
    """(T, 8, 8 * n): frame t shows ids rows[t] side by side as 4 x 4 squares."""
    frames = np.zeros((len(rows), 8, 8 * max(map(len, rows))), np.uint8)
    for frame, ids in zip(frames, rows, strict=True):
        for column, i in enumerate(ids):
            frame[2:6, 8 * column + 2 : 8 * column + 6] = i
    return frames


def test_davis_takes_objects_from_the_first_frame_and_skips_both_ends() -> None:
    truth = clip([(3,), (3,), (3,), (3,)])
    wrong_ends = truth.copy()
    wrong_ends[[0, -1]] = 0
    tracks = davis_semi_supervised(zip(truth, wrong_ends, strict=True))
    # ids 1 and 2 never exist and score 1
    assert {i: track.mean for i, track in tracks.items()} == {1: 1, 2: 1, 3: 1}
    assert [len(track.region) for track in tracks.values()] == [2, 2, 2]


def test_davis_needs_a_frame_between_the_ends() -> None:
    truth = clip([(1,)] * 2)
    with pytest.raises(InputError, match="at least 3 frames"):
        davis_semi_supervised(zip(truth, truth, strict=True))


def test_davis_unsupervised_counts_all_frames_and_ignores_void() -> None:
    truth = clip([(1, 2)] * 3)
    void = truth.copy()
    void[:, :2] = 255
    prediction = np.choose(truth, [0, 2, 1]).astype(np.uint8)
    prediction[:, :2] = 9  # only on void pixels
    tracks = davis_unsupervised(zip(void, prediction, strict=True))
    assert [track.region.tolist() for track in tracks.values()] == [[1, 1, 1]] * 2
    with pytest.raises(InputError, match="no frame"):
        davis_unsupervised([])


@pytest.mark.parametrize(
    ("skip_first_last", "skip_prompt", "expected"),
    [(False, False, {4: 4, 9: 6}), (True, False, {4: 3, 9: 4}), (False, True, {4: 3, 9: 5})],
)
def test_objects_count_from_their_first_appearance(
    skip_first_last: bool, skip_prompt: bool, expected: dict[int, int]
) -> None:
    truth = clip([(9, 0), (9, 0), (9, 4), (9, 4), (0, 4), (9, 0)])
    stray = truth.copy()
    stray[:, 0, 0] = 13
    tracks = visible_objects(
        zip(truth, stray, strict=True), skip_first_last=skip_first_last, skip_prompt=skip_prompt
    )
    assert {i: len(track.region) for i, track in tracks.items()} == expected
    assert all(track.mean == 1 for track in tracks.values())


def test_lvos_counts_inside_the_span_and_fills_missing_frames_with_zero() -> None:
    truth = clip([(1,)] * 6)
    spans = {1: Span(1, 5, 5)}
    pairs = list(zip(truth, truth, strict=True))
    whole = lvos_objects(pairs, spans, "unsupervised_single", skip_first_last=False)[1]
    assert whole.region.tolist() == [1, 1, 1, 1, 0]
    assert lvos_objects(pairs, spans)[1].region.tolist() == [1, 1, 1]
    assert lvos_objects(pairs, {1: Span(1, 3, 2)}) == {}  # nothing is left between the ends
    with pytest.raises(InputError, match=r"frames 1 to 7 .* the video has 6"):
        lvos_objects(pairs, {1: Span(1, 7, 6)})


def test_lvos_assigns_proposals_over_noncontiguous_ids() -> None:
    truth = clip([(2, 5)] * 4)
    prediction = np.zeros_like(truth)
    prediction[truth == 5] = 1
    spans = {2: Span(0, 4, 4), 5: Span(0, 4, 4)}
    pairs = list(zip(truth, prediction, strict=True))
    tracks = lvos_objects(pairs, spans, "unsupervised_multiple", skip_first_last=False)
    assert sorted(track.mean for track in tracks.values()) == [0, 1]


def test_variation_rounds_the_variance_to_four_digits() -> None:
    track = Track(np.array([0.5, 0.51]), np.array([0.5, 0.51]))
    assert variation(track) == 0  # variance 2.5e-5
    track = Track(np.array([0.0, 1.0]), np.array([0.0, 1.0]))
    assert variation(track) == 0.5


def test_an_expression_is_one_object_on_every_frame() -> None:
    truth = clip([(1, 2), (0, 2), (0, 0)])
    white = ((truth > 0) * 255).astype(np.uint8)
    assert expression_track(zip(truth, white, strict=True)).region.tolist() == [1, 1, 1]
    with pytest.raises(InputError, match="no frame"):
        expression_track([])


def test_seen_and_unseen_weigh_the_same() -> None:
    means = seen_unseen({"J": [0.0, 0.0, 1.0]}, [False, False, True])
    assert means == {"J-Mean": 0.5, "J-seen-Mean": 0.0, "J-unseen-Mean": 1.0}
    assert seen_unseen({"J": [0.25, 0.75]}, [False, False]) == {
        "J-Mean": 0.5,
        "J-seen-Mean": 0.5,
    }
