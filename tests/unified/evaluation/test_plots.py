"""Bars and worst cases say and show what was scored."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

from unified.evaluation.plots import bars_title
from unified.evaluation.protocols import evaluate
from unified.evaluation.report import Report, Request

sys.path.insert(0, str(Path(__file__).parent))
from golden_folders import write_mask


def score(root: Path, protocol: str, **changes: object) -> Report:
    return evaluate(protocol, Request(root / "gt", root / "pred", **changes))


@pytest.mark.parametrize(
    ("protocol", "unit"),
    [
        ("hsnet", "IoU per class"),
        ("fss-per-image", "IoU per image"),
        ("lavt", "IoU per expression"),
        ("mmseg", "IoU per class"),
        ("vos-all-frames", "J&F per sequence"),
    ],
)
def test_bars_name_their_unit(tmp_path: Path, protocol: str, unit: str) -> None:
    for side in ("gt", "pred"):
        for name in ("a/0", "a/1", "b/0"):
            write_mask(tmp_path / side / f"{name}.png", np.eye(8))
    report = score(tmp_path, protocol, num_classes=2)
    assert bars_title(report.scores, 0) == f"{unit}, worst first"
    assert bars_title(report.scores, 3).endswith(", 3 better ones not shown")
