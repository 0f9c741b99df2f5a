"""Training steps: they learn, split and repeat exactly, and stop with a reason."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.engine import HookBase
from detectron2.utils.events import EventStorage
from PIL import Image

from tests.toy.system import CONFIG
from unified.checkpoint import read_weights
from unified.commands import Terminated
from unified.engine.config import load_config
from unified.engine.hooks import default_hooks
from unified.engine.run import run_folder, train
from unified.engine.trainer import Trainer, TrainingError, split
from unified.errors import ConfigError, InputError
from unified.files import file_sha256


def run(options: list[str], *more: str, resume: bool = False) -> Trainer:
    cfg = load_config(CONFIG, [*options, *more])
    with run_folder(cfg):
        return train(cfg, resume=resume)


def metrics(trainer: Trainer) -> list[dict[str, Any]]:
    lines = (trainer.folder / "metrics.json").read_text().splitlines()
    keep = ("iteration", "lr", "total_loss")
    return [
        {k: v for k, v in json.loads(line).items() if k in keep or k.startswith("loss")}
        for line in lines
    ]


def test_a_joint_run_lowers_the_loss_and_leaves_its_records(options: list[str]) -> None:
    trainer = run(options, "SOLVER.MAX_ITER", "24", "TEST.EVAL_PERIOD", "12")
    losses = [line["total_loss"] for line in metrics(trainer)]
    assert len(losses) == 24
    assert np.mean(losses[-8:]) < 0.8 * np.mean(losses[:8])
    names = {path.name for path in trainer.folder.iterdir()}
    assert {"config.yaml", "curves.png", "last_checkpoint", "model_final.pth"} <= names
    assert any(name.startswith("events.out.tfevents") for name in names)
    with Image.open(trainer.folder / "curves.png") as curves:
        assert curves.size[0] > 500
    drawn = {path.name for path in trainer.folder.glob("samples/step_0000023/*")}
    assert drawn == {"fss-1000-train.png", "ytbvos19-train.png", "coco_2017_train.png"}


def test_a_step_moves_what_its_batch_uses_and_nothing_else(options: list[str]) -> None:
    """Detection uses neither mask encoder nor fusion: no weight decay, no momentum there."""
    kinds = ["MODEL.TOY.KINDS", "('mask',)"]
    trainer = Trainer(*_parts([*options, *kinds, "SOLVER.MAX_ITER", "8"]))
    trainer._stream = iter(trainer.loader)
    trainable = {n: p for n, p in trainer.segmenter.named_parameters() if p.requires_grad}
    references = tuple(n for n in trainable if n.startswith(("mask_encoder.", "fusion.")))
    moved_by: dict[str, set[str]] = {}
    with EventStorage() as trainer.storage:
        for trainer.iter in range(8):
            before = {name: value.detach().clone() for name, value in trainable.items()}
            trainer.run_step()
            moved = {name for name, value in trainable.items() if not value.equal(before[name])}
            moved_by.setdefault(trainer.batch[0]["dataset"], set()).update(moved)
    assert len(moved_by) == 3
    assert moved_by["coco_2017_train"] == set(trainable) - set(references)
    assert moved_by["fss-1000-train"] | moved_by["ytbvos19-train"] == set(trainable)


@pytest.mark.parametrize("name", ["UniFusion", "FilmUniFusion", "PooledFusion", "NoFusion"])
def test_ablations_train_and_see_what_they_should(options: list[str], name: str) -> None:
    """With random gates, another reference mask changes the losses, unless it is ignored."""
    only = ("DATASETS.TRAIN", "('fss-1000-train',)")
    trainer = run(options, *only, "SOLVER.MAX_ITER", "2", "MODEL.TOY.FUSION", name)
    with torch.no_grad():
        for key, value in trainer.segmenter.fusion.named_parameters():
            if "modulation" in key:
                value.normal_(std=0.3)
    other = [{**s, "reference_masks": [~m for m in s["reference_masks"]]} for s in trainer.batch]
    first, second = (trainer.model(batch) for batch in (trainer.batch, other))
    differ = any(not torch.equal(first[key], second[key]) for key in first)
    # A summary of features says nothing about the mask.
    assert differ == (name in ("UniFusion", "FilmUniFusion"))
    encoder_has_learnt = bool(trainer.optimizer.state[trainer.segmenter.mask_encoder.conv1.weight])
    assert encoder_has_learnt == differ


def _parts(options: list[str]) -> tuple[Any, Any]:
    from unified.engine.train_loader import build_train_loader

    cfg = load_config(CONFIG, options)
    return cfg, build_train_loader(cfg)


def test_resuming_gives_the_same_losses_to_the_last_bit(options: list[str], tmp_path: Path) -> None:
    whole = run(options)
    options[-1] = str(tmp_path / "parts")
    more = ("SOLVER.CHECKPOINT_PERIOD", "2")
    trainer = Trainer(*_parts([*options, *more]))
    trainer.max_iter = 4  # as if it were ended here, one step after what the next run finds
    trainer.register_hooks([])
    trainer.train()
    trainer.iter = 3
    trainer.save()
    resumed = run(options, *more, resume=True)
    assert resumed.start_iter == 4
    assert metrics(resumed) == metrics(whole)[4:]
    for name, value in whole.segmenter.state_dict().items():
        assert torch.equal(value, resumed.segmenter.state_dict()[name]), name


def test_resuming_needs_no_weights_of_the_stage_before(options: list[str], tmp_path: Path) -> None:
    before = run(options, "SOLVER.MAX_ITER", "1")
    weights = before.folder / "model_final.pth"
    options[-1] = str(tmp_path / "next")
    more = ("MODEL.WEIGHTS", str(weights), "SOLVER.MAX_ITER")
    run(options, *more, "2")
    weights.unlink()
    resumed = run(options, *more, "3", resume=True)
    assert resumed.start_iter == 2
    with pytest.raises(InputError, match="does not exist"):
        run([*options[:-1], str(tmp_path / "fresh")], *more, "2", resume=True)


def test_what_was_logged_after_the_last_checkpoint_is_replaced(options: list[str]) -> None:
    whole = run(options, "SOLVER.CHECKPOINT_PERIOD", "4")
    (whole.folder / "last_checkpoint").write_text("model_0000003.pth")
    with (whole.folder / "metrics.json").open("a") as file:
        file.write('{"iteration": 6, "total_lo')
    before = metrics_of_file(whole)
    resumed = run(options, resume=True)
    assert [line["iteration"] for line in metrics(resumed)] == list(range(6))
    assert metrics(resumed) == before


def test_a_run_that_is_killed_while_it_evaluates_evaluates_when_it_goes_on(
    options: list[str],
) -> None:
    """Its weights are final only then, and are those that the evaluation was given."""
    scored: list[str] = []

    def evaluate(weights: Path | None) -> dict[str, float]:
        assert weights is not None
        scored.append(file_sha256(weights))
        if len(scored) == 1:
            raise KeyboardInterrupt
        return {"set/protocol/J": 50.0}

    def go_on() -> Trainer:
        more = ("SOLVER.MAX_ITER", "1", "SOLVER.EMA_DECAY", "0.9")
        trainer = Trainer(*_parts([*options, *more]), resume=True)
        assert not trainer.is_done
        trainer.register_hooks(default_hooks(trainer.cfg, trainer.start_iter, evaluate))
        trainer.train()
        return trainer

    with pytest.raises(KeyboardInterrupt):
        go_on()
    trainer = go_on()
    assert trainer.start_iter == 1
    assert trainer.is_done
    assert file_sha256(trainer.folder / "model_final.pth") == scored[1]
    (line,) = (trainer.folder / "evaluation.json").read_text().splitlines()
    assert json.loads(line) == {"iteration": 0, "set/protocol/J": 50.0}


class Terminate(HookBase):
    """Ends its own process as a queueing system does."""

    def after_step(self) -> None:
        os.kill(os.getpid(), signal.SIGTERM)


def test_a_run_that_is_ended_leaves_its_curves(options: list[str]) -> None:
    trainer = Trainer(*_parts(options))
    trainer.register_hooks([*default_hooks(trainer.cfg, 0, None), Terminate()])
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Terminated):
        trainer.train()
    assert (trainer.folder / "curves.png").exists()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_longer_run_takes_the_final_weights_away_before_its_last_checkpoint(
    options: list[str],
) -> None:
    """So that those of the shorter run are never taken for its own."""
    trainer = run(options, "SOLVER.MAX_ITER", "1")
    assert (trainer.folder / "model_final.pth").exists()
    trainer.max_iter = 2
    trainer.save()
    assert (trainer.folder / "model_final.pth").exists()
    trainer.iter = 1
    trainer.save()
    assert not (trainer.folder / "model_final.pth").exists()


def metrics_of_file(trainer: Trainer) -> list[dict[str, Any]]:
    path = trainer.folder / "metrics.json"
    text = path.read_text()
    path.write_text(text[: text.rindex("\n") + 1])
    before = metrics(trainer)
    path.write_text(text)
    return before


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision_stays_near_full_precision(options: list[str], dtype: str) -> None:
    more = ("SOLVER.MAX_ITER", "3")
    full = metrics(run(options, *more))
    options[-1] += dtype
    half = run(options, *more, "SOLVER.AMP.ENABLED", "True", "SOLVER.AMP.DTYPE", dtype)
    assert half.scaler.is_enabled() == (dtype == "float16")
    # Rounding may turn a match around, which moves the loss of four boxes by some percent.
    assert metrics(half)[0]["total_loss"] == pytest.approx(full[0]["total_loss"], rel=0.1)
    assert metrics(half)[0]["total_loss"] != full[0]["total_loss"]


def test_parts_of_a_batch_add_up_to_the_batch_of_their_losses(options: list[str]) -> None:
    """Without random numbers, two halves of a batch give the mean of their gradients."""
    more = ("SOLVER.MAX_ITER", "1")
    trainer = Trainer(*_parts([*options, *more]))
    batch = next(iter(trainer.loader))
    gradients = []
    for part in split(batch, 2):
        total = torch.stack(list(trainer.model(part).values())).sum()
        total.backward()
        gradients.append(nonzero_gradients(trainer))
        trainer.segmenter.zero_grad()
    mean = {name: (grad + gradients[1][name]) / 2 for name, grad in gradients[0].items()}
    seen: dict[str, torch.Tensor] = {}
    twin = Trainer(*_parts([*options, *more, "SOLVER.ACCUMULATE", "2"]))
    zero_grad = twin.optimizer.zero_grad

    def keep_gradients() -> None:
        seen.update(nonzero_gradients(twin))
        zero_grad()

    twin.optimizer.zero_grad = keep_gradients  # type: ignore[method-assign]
    twin.train()
    norm = torch.stack([g.norm() for g in mean.values()]).norm()
    expected = {name: grad * min(1, 0.1 / norm) for name, grad in mean.items()}
    torch.testing.assert_close(seen, expected, rtol=1e-4, atol=1e-7)


def nonzero_gradients(trainer: Trainer) -> dict[str, torch.Tensor]:
    named = trainer.segmenter.named_parameters()
    return {n: p.grad.clone() for n, p in named if p.grad is not None and p.grad.any()}


def test_averaged_weights_are_handed_on_and_resumed(options: list[str]) -> None:
    trainer = run(options, "SOLVER.EMA_DECAY", "0.9")
    assert trainer.average is not None
    final = read_weights(trainer.folder / "model_final.pth")
    differ = 0
    for name, value in trainer.segmenter.state_dict().items():
        assert torch.equal(final[name], trainer.average.module.state_dict()[name]), name
        differ += not torch.equal(final[name], value)
    assert differ > 50
    averages = {name: value.clone() for name, value in trainer.average.module.state_dict().items()}
    again = Trainer(*_parts([*options, "SOLVER.EMA_DECAY", "0.9"]), resume=True)
    assert again.start_iter == again.max_iter and again.average is not None
    assert all(
        torch.equal(averages[n], value) for n, value in again.average.module.state_dict().items()
    )


def test_a_loss_that_is_no_number_names_the_samples(options: list[str]) -> None:
    trainer = Trainer(*_parts(options))
    with torch.no_grad():
        trainer.segmenter.mask_head.kernel.weight.fill_(float("nan"))
    with pytest.raises(TrainingError, match=r"step 0: total_loss.*became NaN.*(fss|ytb|coco)"):
        trainer.train()


def test_a_batch_that_cannot_be_divided_is_an_error(options: list[str]) -> None:
    with pytest.raises(ConfigError, match=r"2 samples of .*ACCUMULATE 3 does not divide it"):
        Trainer(*_parts([*options, "SOLVER.ACCUMULATE", "3"])).train()


def test_a_folder_with_a_run_is_not_overwritten(options: list[str]) -> None:
    run(options, "SOLVER.MAX_ITER", "1")
    with pytest.raises(ConfigError, match="continue it with --resume"):
        run(options, "SOLVER.MAX_ITER", "1")
