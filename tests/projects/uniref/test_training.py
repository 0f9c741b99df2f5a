"""What only a training run of UniRef shows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from unified.engine.config import load_config
from unified.engine.run import run_folder, train
from unified.engine.system import system
from unified.engine.trainer import Trainer

CONFIG = Path(__file__).parents[2] / "data/tiny_training.yaml"


def run(options: list[str], *more: str) -> Trainer:
    cfg = load_config(CONFIG, [*options, *more])
    with run_folder(cfg):
        return train(cfg, resume=False)


def losses(trainer: Trainer) -> list[float]:
    lines = (trainer.folder / "metrics.json").read_text().splitlines()
    return [json.loads(line)["total_loss"] for line in lines]


def test_a_joint_run_lowers_the_loss(options: list[str]) -> None:
    found = losses(run(options, "SOLVER.MAX_ITER", "24"))
    assert len(found) == 24 and sum(found[-8:]) < 0.8 * sum(found[:8])


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_full_precision(options: list[str], dtype: str) -> None:
    more = ("SOLVER.MAX_ITER", "1")
    (full,) = losses(run(options, *more))
    options[-1] += dtype
    half = run(options, *more, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype)
    # Rounding may turn a match around, which moves the loss of four boxes by some percent.
    assert losses(half) == [pytest.approx(full, rel=0.1)] and losses(half) != [full]


def test_recomputing_activations_changes_nothing(options: list[str]) -> None:
    plain = losses(run(options))
    options[-1] += "recomputed"
    saved = run(options, "MODEL.UNIREF.GRADIENT_CHECKPOINTING", "True")
    assert plain and losses(saved) == pytest.approx(plain, rel=1e-5)


def test_a_frozen_text_encoder_keeps_its_dropout(options: list[str]) -> None:
    text = ["MODEL.UNIREF.TEXT_ENCODER.NAME", "minilm", "MODEL.UNIREF.TEXT_ENCODER.WEIGHTS", ""]
    cfg = load_config(CONFIG, [*options, *text, "MODEL.UNIREF.TEXT_ENCODER.FREEZE", "True"])
    model = system("UniRef").build(cfg)
    assert not any(p.requires_grad for p in model.text_encoder.bert.parameters())
    assert all(p.requires_grad for p in model.text_encoder.project.parameters())
    dropouts = [m for m in model.text_encoder.bert.modules() if isinstance(m, torch.nn.Dropout)]
    assert dropouts and all(module.training for module in dropouts)
