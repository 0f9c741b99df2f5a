"""AdamW with a learning rate per part, clipping over the whole model, and averaged weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

import torch
from detectron2.config import CfgNode
from detectron2.solver import LRMultiplier, WarmupParamScheduler, build_lr_scheduler
from fvcore.common.param_scheduler import ParamScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import LRScheduler
from torch.optim.swa_utils import AveragedModel

from unified.engine.system import ParameterGroup
from unified.errors import ConfigError

Tensors = tuple[Tensor, ...] | list[Tensor]
SCHEDULERS = ("WarmupMultiStepLR", "WarmupCosineLR", "WarmupPolyLR")


def build_optimizer(
    cfg: CfgNode, model: nn.Module, group_of: Callable[[str, CfgNode], ParameterGroup]
) -> torch.optim.AdamW:
    """AdamW over all trainable parameters, one group per learning rate and weight decay.

    Args:
        group_of: key of a parameter -> its group, as a ``System`` says it.
    """
    groups: dict[ParameterGroup, list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            groups.setdefault(group_of(name, cfg), []).append(parameter)
    fusible = all(p.is_cpu or p.is_cuda for group in groups.values() for p in group)
    return torch.optim.AdamW(
        [
            {"params": parameters, "lr": group.lr, "weight_decay": group.weight_decay}
            for group, parameters in groups.items()
        ],
        lr=cfg.SOLVER.BASE_LR,
        weight_decay=cfg.SOLVER.WEIGHT_DECAY,
        fused=fusible or None,  # elsewhere torch chooses well by itself
    )


def build_scheduler(cfg: CfgNode, optimizer: torch.optim.Optimizer) -> LRScheduler:
    """Detectron2's schedule by name, or the polynomial one; it multiplies all rates alike.

    Raises:
        ConfigError: the name is unknown.
    """
    if cfg.SOLVER.LR_SCHEDULER_NAME not in SCHEDULERS:
        raise ConfigError(
            f"SOLVER.LR_SCHEDULER_NAME is {cfg.SOLVER.LR_SCHEDULER_NAME!r}: choose one of "
            f"{SCHEDULERS}"
        )
    if cfg.SOLVER.LR_SCHEDULER_NAME != "WarmupPolyLR":
        return build_lr_scheduler(cfg, optimizer)
    solver = cfg.SOLVER
    end = solver.BASE_LR_END / solver.BASE_LR
    multiplier = WarmupParamScheduler(
        _Polynomial(solver.POLY_LR_POWER, end),
        solver.WARMUP_FACTOR,
        min(solver.WARMUP_ITERS / solver.MAX_ITER, 1.0),
        solver.WARMUP_METHOD,
        solver.RESCALE_INTERVAL,
    )
    return LRMultiplier(optimizer, multiplier=multiplier, max_iter=solver.MAX_ITER)


class _Polynomial(ParamScheduler):
    """From 1 down to ``end``, as a power of the share of the run that is left."""

    def __init__(self, power: float, end: float) -> None:
        self.power, self.end = power, end

    def __call__(self, where: float) -> float:
        left: float = (1 - where) ** self.power
        return self.end + (1 - self.end) * left


def check_clipping(cfg: CfgNode) -> None:
    """Raises ConfigError unless gradients are clipped over the full model or not at all."""
    clip = cfg.SOLVER.CLIP_GRADIENTS
    if clip.ENABLED and clip.CLIP_TYPE != "full_model":
        raise ConfigError(
            f"SOLVER.CLIP_GRADIENTS.CLIP_TYPE is {clip.CLIP_TYPE!r}: only full_model is known"
        )


def clip_gradients(cfg: CfgNode, model: nn.Module) -> None:
    """Scales all gradients so that their common norm is at most ``CLIP_VALUE``."""
    if cfg.SOLVER.CLIP_GRADIENTS.ENABLED:
        nn.utils.clip_grad_norm_(model.parameters(), cfg.SOLVER.CLIP_GRADIENTS.CLIP_VALUE)


def drop_zero_gradients(model: nn.Module) -> None:
    """Takes away the gradients that are zero throughout, so that the optimiser passes them over.

    Mostly they belong to parts that no sample of the step used, such as the text encoder where no
    sample has a sentence: their weights and moments stay as they are. After an exchange between
    processes they are zero, in a single process they do not exist; this makes the two alike.

    Source: UniRef, whose image and video stages search for unused parameters. Difference: what a
    zero-initialised gate hides in the first step is passed over too, there it decays once.
    """
    given = [p for p in model.parameters() if p.grad is not None]
    if not given:
        return
    largest = torch._foreach_norm([p.grad for p in given if p.grad is not None], float("inf"))
    for parameter, size in zip(given, torch.stack(largest).tolist(), strict=True):
        if not size:
            parameter.grad = None


def average_weights(model: nn.Module, decay: float) -> AveragedModel:
    """A copy of the model that is updated to the exponential moving average of its weights.

    The decay grows to its final value over the first steps, so that the initial weights are soon
    forgotten. Buffers are those of the model.
    """

    @torch.no_grad()
    def update(averages: Tensors, latest: Tensors, num_averaged: Tensor | int) -> None:
        steps = int(num_averaged)
        torch._foreach_lerp_(averages, latest, 1 - min(decay, (1 + steps) / (10 + steps)))

    return AveragedModel(model, multi_avg_fn=update)


@contextmanager
def holding(model: nn.Module, weights: Mapping[str, Tensor]) -> Iterator[None]:
    """The model holds other weights within the block, its own again after it."""
    own = {name: value.clone() for name, value in model.state_dict().items()}
    model.load_state_dict(weights)
    try:
        yield
    finally:
        model.load_state_dict(own)
