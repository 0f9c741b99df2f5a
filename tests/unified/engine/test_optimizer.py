"""Learning rates by key, the schedule, clipping and averages."""

from __future__ import annotations

import json
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch
from torch import nn

from projects.uniref.checkpoint import uniref_keys
from unified.engine.config import load_config
from unified.engine.optimizer import (
    AveragedWeights,
    build_optimizer,
    build_scheduler,
    check_clipping,
    clip_gradients,
    drop_zero_gradients,
    learning_rate,
)
from unified.errors import ConfigError

MANIFESTS = Path(__file__).parents[2] / "data/uniref"
# The reference's rules on its own keys: first match wins.
REFERENCE = (
    ("*backbone*", 2e-5),
    ("*sampling_offsets*", 2e-5),
    ("*reference_points*", 2e-5),
    ("*text_encoder*", 1e-5),
    ("*", 2e-4),
)


@pytest.mark.parametrize(
    ("manifest", "backbone"), [("manifest_r50", "resnet50"), ("manifest_swinl", "swin_large")]
)
def test_every_official_key_has_the_rate_of_the_reference(manifest: str, backbone: str) -> None:
    cfg = load_config(None, ["SOLVER.BASE_LR", "2e-4"])
    table = uniref_keys(backbone)
    counts: dict[float, int] = {}
    for key in json.loads((MANIFESTS / f"{manifest}.json").read_text()):
        native, report = table.to_native({key: torch.zeros(1)})
        if report.unused or report.aliases:
            continue
        expected = next(rate for pattern, rate in REFERENCE if fnmatch(key, pattern))
        assert learning_rate(next(iter(native)), cfg) == pytest.approx(expected), key
        counts[expected] = counts.get(expected, 0) + 1
    assert all(counts[rate] > 50 for rate in (2e-5, 1e-5, 2e-4))


class Toy(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.backbone = nn.Linear(3, 3)
        self.head = nn.Linear(3, 1)
        self.frozen = nn.Linear(3, 3).requires_grad_(False)
        self.norm = nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.norm(self.backbone(x)))


@pytest.fixture
def toy() -> Iterator[Toy]:
    torch.manual_seed(0)
    yield Toy()


def test_all_trainable_parameters_decay_and_the_frozen_ones_are_left_out(toy: Toy) -> None:
    optimizer = build_optimizer(load_config(), toy)
    groups = [(group["lr"], len(group["params"])) for group in optimizer.param_groups]
    assert groups == [(pytest.approx(1e-5), 2), (1e-4, 4)]
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.05}


def test_steps_multiply_the_rates_of_all_groups(toy: Toy) -> None:
    cfg = load_config(None, ["SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(2, 4)"])
    optimizer = build_optimizer(cfg, toy)
    scheduler = build_scheduler(cfg, optimizer)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert seen == [[pytest.approx(1e-5 * f), pytest.approx(1e-4 * f)] for f in factors]


def test_an_unknown_schedule_or_clipping_is_an_error(toy: Toy) -> None:
    cfg = load_config(None, ["SOLVER.LR_SCHEDULER_NAME", "Zigzag"])
    with pytest.raises(ConfigError, match="'Zigzag': choose one of"):
        build_scheduler(cfg, build_optimizer(cfg, toy))
    with pytest.raises(ConfigError, match="only full_model is known"):
        check_clipping(load_config(None, ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value"]))


def test_the_norm_over_all_groups_is_clipped(toy: Toy) -> None:
    for parameter in toy.parameters():
        parameter.grad = torch.ones_like(parameter)
    clip_gradients(load_config(), toy)
    norm = torch.stack([p.grad.norm() for p in toy.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-4)


def test_a_gradient_that_is_zero_throughout_is_passed_over(toy: Toy) -> None:
    """Neither weight decay nor the momentum of earlier steps moves what a step does not use."""
    optimizer = build_optimizer(load_config(), toy)
    for used in (True, False):
        for parameter in toy.parameters():
            parameter.grad = torch.ones_like(parameter)
        toy.head.weight.grad = torch.eye(1, 3)  # one entry is enough
        if not used:
            toy.backbone.weight.grad = torch.zeros(3, 3)
            toy.backbone.bias.grad = None
        before = [value.detach().clone() for value in toy.parameters()]
        drop_zero_gradients(toy)
        optimizer.step()
        names = {
            n for (n, p), b in zip(toy.named_parameters(), before, strict=True) if (p != b).any()
        }
        expected = {"head.weight", "head.bias", "norm.weight", "norm.bias"}
        assert names == (expected | {"backbone.weight", "backbone.bias"} if used else expected)


def test_averages_follow_the_weights_and_give_them_back(toy: Toy) -> None:
    average = AveragedWeights(toy, decay=0.5)
    start = toy.head.weight.detach().clone()
    with torch.no_grad():
        toy.head.weight += 1
        toy.norm.num_batches_tracked += 7
    average.update(toy, step=0)  # decay is 1/10 there
    own = toy.head.weight.detach().clone()
    with average.inside(toy):
        torch.testing.assert_close(toy.head.weight.data, start + 0.9)
        assert int(toy.norm.num_batches_tracked) == 7
    assert torch.equal(toy.head.weight.data, own)
    average.update(toy, step=100)
    torch.testing.assert_close(average.weights["head.weight"], start + 0.95)
