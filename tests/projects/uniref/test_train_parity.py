"""Training steps recorded from the reference, replayed on the full R50 models.

golden_train_rvos: sentence and mask reference, masks, auxiliary mask losses, frozen sentence
network. golden_train_boxinst: pre-training on boxes with 365 classes (without three large arrays of
the original file).
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from projects.uniref.parity.training import check_train_file, compare_output
from unified.engine.config import load_config
from unified.engine.models import CONFIGS
from unified.engine.system import system
from unified.parity import Comparison

DATA = Path(__file__).parents[2] / "data" / "uniref"


def check(path: Path, config: str) -> dict[str, Comparison]:
    model = system("UniRef").build(load_config(CONFIGS / f"{config}.yaml", []))
    results = check_train_file(path, model)
    assert all(parameter.requires_grad for parameter in model.head.parameters())
    return {result.name: result for result in results}


@pytest.mark.parametrize(
    "run, config, num_losses",
    [("rvos", "video_joint_r50", 45), ("boxinst", "pretrain_objects365_r50", 33)],
)
def test_a_recorded_step_replays(run: str, config: str, num_losses: int) -> None:
    results = check(DATA / f"golden_train_{run}.npz", config)
    assert [str(result) for result in results.values() if not result.passed] == []
    assert sum(name.startswith("loss/") for name in results) == num_losses
    assert sum(name.startswith("match_") for name in results) == 14
    # Measured 1.3e-6 and 4e-4; a wider gap would be a change of the model, not of rounding.
    assert max(r.error for name, r in results.items() if name.startswith("loss/")) < 3e-6
    assert results["gradnorm_total"].error < 1e-5


@pytest.mark.parametrize(
    "name, change",
    [
        ("loss/loss_ce", lambda x: x * 1.0001),
        ("total", lambda x: x * np.nan),
        ("match_enc_b0", lambda x: x + np.array([[1], [0]])),
        ("gradnorm", lambda x: np.where(x == x.max(), x * 1.01, x)),
        ("gradnorm", lambda x: np.where(x > 1000, -1, x)),
        ("gradnorm", lambda x: np.where(x < 0, 10, x)),
        ("gradnorm_total", lambda x: x * 1.01),
        ("grad/detr.detr.transformer.level_embed", lambda x: x + 0.01 * np.abs(x).max()),
        ("pred_logits", lambda x: x + 0.01),
    ],
)
def test_small_differences_fail(name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    with np.load(DATA / "golden_train_rvos.npz") as file:
        arrays = {key: file[key] for key in file.files}
    expected = arrays[f"out/{name}"]
    assert compare_output(name, expected, expected.copy(), arrays, allowed=1e-4).passed
    assert not compare_output(name, expected, change(expected), arrays, allowed=1e-4).passed


def test_a_gradient_that_is_only_rounding_may_differ() -> None:
    with np.load(DATA / "golden_train_rvos.npz") as file:
        arrays = {key: file[key] for key in file.files}
    expected = arrays["out/gradnorm"]
    actual = np.where((expected > 0) & (expected < 1e-5), 3 * expected, expected)
    assert (actual != expected).any()
    assert compare_output("gradnorm", expected, actual, arrays, allowed=0.0).passed
