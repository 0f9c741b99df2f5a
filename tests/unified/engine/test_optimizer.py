"""Learning rates by key, the schedule, clipping and averages."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from detectron2.config import CfgNode
from torch import nn

from unified.engine.config import load_config
from unified.engine.optimizer import (
    average_weights,
    build_optimizer,
    build_scheduler,
    check_clipping,
    clip_gradients,
    drop_zero_gradients,
    holding,
)
from unified.engine.system import ParameterGroup, same_group
from unified.errors import ConfigError


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


def slow_backbone(name: str, cfg: CfgNode) -> ParameterGroup:
    slow = name.startswith("backbone.")
    return ParameterGroup(cfg.SOLVER.BASE_LR * (0.1 if slow else 1), 0.0 if slow else 0.05)


def test_parameters_are_grouped_as_the_system_says_and_frozen_ones_left_out(toy: Toy) -> None:
    optimizer = build_optimizer(load_config(), toy, slow_backbone)
    groups = [(g["lr"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert groups == [(pytest.approx(1e-5), 0.0, 2), (1e-4, 0.05, 4)]


def test_without_a_rule_there_is_one_group(toy: Toy) -> None:
    optimizer = build_optimizer(load_config(), toy, same_group)
    (group,) = optimizer.param_groups
    assert (group["lr"], group["weight_decay"], len(group["params"])) == (1e-4, 0.01, 6)


def test_steps_multiply_the_rates_of_all_groups(toy: Toy) -> None:
    cfg = load_config(None, ["SOLVER.MAX_ITER", "6", "SOLVER.STEPS", "(2, 4)"])
    optimizer = build_optimizer(cfg, toy, slow_backbone)
    scheduler = build_scheduler(cfg, optimizer)
    seen = []
    for _ in range(6):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    factors = [1, 1, 0.1, 0.1, 0.01, 0.01]
    assert seen == [[pytest.approx(1e-5 * f), pytest.approx(1e-4 * f)] for f in factors]


def test_the_polynomial_falls_to_the_end_after_the_warm_up(toy: Toy) -> None:
    options = ["SOLVER.LR_SCHEDULER_NAME", "WarmupPolyLR", "SOLVER.MAX_ITER", "10"]
    options += ["SOLVER.BASE_LR", "1e-2", "SOLVER.BASE_LR_END", "1e-3", "SOLVER.WARMUP_ITERS", "2"]
    cfg = load_config(None, [*options, "SOLVER.WARMUP_FACTOR", "0.0"])
    optimizer = build_optimizer(cfg, toy, same_group)
    scheduler = build_scheduler(cfg, optimizer)
    rates = []
    for _ in range(10):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    falling = [1e-3 + 9e-3 * (1 - step / 10) ** 0.9 for step in range(2, 10)]
    assert rates == pytest.approx([0.0, falling[0] / 2, *falling])
    assert optimizer.param_groups[0]["lr"] == pytest.approx(1e-3)


def test_an_unknown_schedule_or_clipping_is_an_error(toy: Toy) -> None:
    cfg = load_config(None, ["SOLVER.LR_SCHEDULER_NAME", "Zigzag"])
    with pytest.raises(ConfigError, match="'Zigzag': choose one of"):
        build_scheduler(cfg, build_optimizer(cfg, toy, same_group))
    clipping = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True"]
    with pytest.raises(ConfigError, match="only full_model is known"):
        check_clipping(load_config(None, ["SOLVER.CLIP_GRADIENTS.CLIP_TYPE", "value", *clipping]))


def test_the_norm_over_all_groups_is_clipped(toy: Toy) -> None:
    for parameter in toy.parameters():
        parameter.grad = torch.ones_like(parameter)
    enabled = ["SOLVER.CLIP_GRADIENTS.ENABLED", "True", "SOLVER.CLIP_GRADIENTS.CLIP_VALUE", "0.1"]
    clip_gradients(load_config(None, enabled), toy)
    norm = torch.stack([p.grad.norm() for p in toy.parameters() if p.grad is not None]).norm()
    assert float(norm) == pytest.approx(0.1, rel=1e-4)


def test_a_gradient_that_is_zero_throughout_is_passed_over(toy: Toy) -> None:
    """Neither weight decay nor the momentum of earlier steps moves what a step does not use."""
    optimizer = build_optimizer(load_config(), toy, same_group)
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
    average = average_weights(toy, decay=0.5)
    average.update_parameters(toy)  # the first weights are those of the model
    start = toy.head.weight.detach().clone()
    with torch.no_grad():
        toy.head.weight += 1
        toy.norm.num_batches_tracked += 7
    average.update_parameters(toy)  # decay is 2/11 there
    own = toy.head.weight.detach().clone()
    with holding(toy, average.module.state_dict()):
        torch.testing.assert_close(toy.head.weight.data, start + 9 / 11)
        assert int(toy.norm.num_batches_tracked) == 7
    assert torch.equal(toy.head.weight.data, own)
    average.n_averaged.fill_(100)
    average.update_parameters(toy)
    torch.testing.assert_close(average.module.head.weight.data, start + 10 / 11)


def test_the_fused_step_moves_weights_as_the_plain_one_does(toy: Toy) -> None:
    plain = Toy()
    plain.load_state_dict(toy.state_dict())
    fused = build_optimizer(load_config(), toy, slow_backbone)
    rest = [*plain.head.parameters(), *plain.norm.parameters()]
    expected = torch.optim.AdamW(
        [
            {"params": list(plain.backbone.parameters()), "lr": 1e-5, "weight_decay": 0.0},
            {"params": rest, "lr": 1e-4, "weight_decay": 0.05},
        ],
        fused=False,
        foreach=False,
    )
    assert fused.defaults["fused"], "torch has it for all parameters on a CPU or a GPU"
    for _ in range(3):
        x = torch.randn(8, 3)
        losses = [model(x).square().mean() for model in (toy, plain)]
        torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-7)
        for loss, optimizer in zip(losses, (fused, expected), strict=True):
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    for ours, theirs in zip(toy.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)
