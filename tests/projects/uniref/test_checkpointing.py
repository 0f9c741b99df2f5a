"""A model of UniRef may get parts after its first stage."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch

from unified.checkpoint import write_weights
from unified.engine.checkpointing import load_initial_weights
from unified.engine.config import load_config
from unified.engine.system import system
from unified.errors import CheckpointError

CONFIG = Path(__file__).parents[2] / "data/tiny_training.yaml"


def test_a_neck_may_get_its_top_down_path_after_the_first_stage(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plain, grown = (["MODEL.UNIREF.NECK", name] for name in ("plain", "top_down"))
    first = system("UniRef").build(load_config(CONFIG, plain))
    write_weights(tmp_path / "first.pth", first.state_dict())
    cfg = load_config(CONFIG, [*grown, "MODEL.WEIGHTS", str(tmp_path / "first.pth")])
    second = system("UniRef").build(cfg)
    with caplog.at_level(logging.INFO):
        load_initial_weights(second, cfg)
    assert "has no neck.top_down.: these parts start fresh" in caplog.text
    assert torch.equal(second.neck.input_proj[0][0].weight, first.neck.input_proj[0][0].weight)
    write_weights(tmp_path / "second.pth", second.state_dict())
    cfg = load_config(CONFIG, [*plain, "MODEL.WEIGHTS", str(tmp_path / "second.pth")])
    with pytest.raises(CheckpointError, match=r"6 unexpected \(neck\.top_down"):
        load_initial_weights(first, cfg)
