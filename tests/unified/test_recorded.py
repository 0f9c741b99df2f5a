from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from unified.errors import InputError
from unified.recorded import make_input, make_weights, named_generator, named_inputs, thin_out


def test_weights_depend_on_their_own_key_alone() -> None:
    shapes = {"a.weight": (3, 4, 5), "a.bias": (3,), "norm.weight": (7,), "table": (2, 9)}
    weights = make_weights(shapes, embeddings=["table"])

    def drawn(key: str) -> np.ndarray:
        return named_generator(key).standard_normal(shapes[key])

    expected = {
        "a.weight": drawn("a.weight") / math.sqrt(20),
        "a.bias": 0.02 * drawn("a.bias"),
        "norm.weight": 1 + 0.1 * drawn("norm.weight"),
        "table": 0.02 * drawn("table"),
    }
    assert list(weights) == list(shapes)
    for key, value in expected.items():
        assert torch.equal(weights[key], torch.from_numpy(value.astype(np.float32))), key


def test_statistics_of_batch_norm_are_plausible() -> None:
    shapes = {"running_mean": (500,), "running_var": (500,), "num_batches_tracked": ()}
    weights = make_weights(shapes, embeddings=[])
    assert weights["running_mean"].abs().max() < 0.5
    assert 0.5 <= weights["running_var"].min() and weights["running_var"].max() < 1.5
    assert (
        weights["num_batches_tracked"] == 0
        and not weights["num_batches_tracked"].is_floating_point()
    )


def test_inputs_are_named_in_a_note() -> None:
    note = 'img=rnd("a.img",(3,3,64,64)), img2=rnd("a.img2", (1, 3, 128, 160)); soft stride 1'
    assert named_inputs(note) == {"a.img": (3, 3, 64, 64), "a.img2": (1, 3, 128, 160)}
    assert make_input("a.img", (2, 3), scale=2.0).dtype == np.float32
    assert np.array_equal(make_input("a", (4,), scale=2.0), 2 * make_input("a", (4,)))


def test_large_arrays_are_thinned_by_equal_steps() -> None:
    full = np.arange(14 * 7).reshape(14, 7)
    assert np.array_equal(thin_out(full, (7, 2)), full[::2, ::4])
    assert np.array_equal(thin_out(full, (14, 7)), full)
    for shape in ((13, 7), (14,), (15, 7)):
        with pytest.raises(InputError, match=r"ours is \(14, 7\)"):
            thin_out(full, shape)
