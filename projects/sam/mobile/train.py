"""Trains sam-unifusion-mobile against the clock, on one GPU and without other processes.

    python -m projects.sam.mobile.train --config-file configs/lite/sam_mobile.yaml \\
        --pictures pictures.npz --output sam_mobile.safetensors --seconds 440

Image encoder, prompt encoder, classifier and language model are frozen: what they say of a scene or
a sentence is computed once (``scenes.py``). The rate follows the time that is left.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TextIO

import torch
from torch import Tensor, nn

from projects.sam.config import build, load_parts
from projects.sam.mobile.asking import Asker
from projects.sam.mobile.bank import SceneBank, Sizes
from projects.sam.mobile.pictures import load
from projects.sam.mobile.scenes import SceneMaker
from projects.sam.model import SamUniFusion
from unified.checkpoint import write_weights
from unified.commands import run_command
from unified.devices import pick_device
from unified.engine.config import load_config

logger = logging.getLogger(__name__)

RATE, DECODER_RATE, DECAY, CLIP, WARMUP, EMA = 4e-4, 1.5e-4, 0.05, 1.0, 150, 0.998
SAVE_EVERY, LOG_EVERY = 45.0, 25


class Learner:
    """What is trained of a model, with its optimiser and the mean of its weights over steps."""

    def __init__(self, model: nn.Module) -> None:
        self.trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
        count = sum(map(Tensor.numel, self.trained.values()))
        logger.info("%.2f million parameters are trained", count / 1e6)
        groups = [
            {
                "params": [p for n, p in self.trained.items() if n.startswith("decoder.") == own],
                "top": rate,
            }
            for own, rate in ((False, RATE), (True, DECODER_RATE))
        ]
        fused = next(iter(self.trained.values())).device.type != "cpu"
        self.optimizer = torch.optim.AdamW(
            groups, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98), fused=fused
        )
        self.average = {name: p.detach().clone() for name, p in self.trained.items()}
        self.step = 0

    def learn(self, losses: Mapping[str, Tensor], spent: float) -> Tensor:
        """One step; returns the norm of the gradients.

        Args:
            spent: share of the time that is over, which the rate follows.
        """
        warm = min(1.0, (self.step + 1) / WARMUP)
        for group in self.optimizer.param_groups:
            group["lr"] = group["top"] * warm * 0.5 * (1 + math.cos(math.pi * spent))
        torch.stack(list(losses.values())).sum().backward()
        for parameter in self.trained.values():
            if parameter.grad is not None:  # asking whether one is infinite would wait for the GPU
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        norm = nn.utils.clip_grad_norm_(self.trained.values(), CLIP)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.step += 1
        self._blend(min(EMA, self.step / (self.step + 10)))
        return norm

    @torch.no_grad()
    def _blend(self, keep: float) -> None:
        latest = [p.detach() for p in self.trained.values()]
        torch._foreach_lerp_(list(self.average.values()), latest, 1 - keep)

    def save(self, path: Path) -> None:
        """Writes the mean weights in half precision."""
        write_weights(
            path, {n: value.half().cpu().contiguous() for n, value in self.average.items()}
        )


def train(options: argparse.Namespace) -> None:
    """Trains for the given time and writes the averaged weights of what was trained.

    Raises:
        CheckpointError: weights that the configuration names are not there.
        InputError: the file of pictures is missing, damaged or another one.
    """
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    begin = time.monotonic()
    model, bank = _prepare(options)
    asker, learner = Asker(model, bank), Learner(model)
    start = saved = time.monotonic()
    logger.info("prepared in %.0f s", start - begin)
    length = options.seconds - (start - begin)
    sums: dict[str, Tensor] = {}
    with options.output.with_suffix(".jsonl").open("w") as log:
        while learner.step != options.steps and (now := time.monotonic()) - start < length:
            bank.refresh()
            losses = asker.losses(learner.step)
            norm = learner.learn(losses, (now - start) / length)
            for name, value in {**losses, "norm": norm}.items():
                sums[name] = sums.get(name, 0) + value.detach()
            if learner.step % LOG_EVERY == 0 or learner.step == 1:
                seconds = time.monotonic() - start
                _report(log, learner.step, seconds, sums, asker.count(sums), bank.made)
                sums.clear()
            if time.monotonic() - saved > SAVE_EVERY:
                learner.save(options.output)
                saved = time.monotonic()
    learner.save(options.output)
    seconds = time.monotonic() - start
    logger.info("%d steps in %.0f s, %d scenes", learner.step, seconds, bank.made)


def _prepare(options: argparse.Namespace) -> tuple[SamUniFusion, SceneBank]:
    """The model in train mode, and its first scenes."""
    cfg = load_config(options.config_file, options.opts)
    model = build(cfg)
    load_parts(model, cfg, ())
    device = pick_device(options.device)
    model.to(device).train()
    maker = SceneMaker(load(options.pictures), device, seed=options.seed, side=model.sam.image_size)
    sizes = Sizes(options.bank, options.scenes, *options.batches)
    return model, SceneBank(model, maker, sizes)


def _report(
    log: TextIO,
    step: int,
    seconds: float,
    sums: Mapping[str, Tensor],
    steps: Mapping[str, int],
    scenes: int,
) -> None:
    means = {name: round(float(value) / max(1, steps[name]), 4) for name, value in sums.items()}
    line = {"step": step, "seconds": round(seconds, 1), "scenes": scenes, **means}
    print(json.dumps(line), file=log, flush=True)
    logger.info("%s", " ".join(f"{key} {value}" for key, value in line.items()))


def parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", type=Path, required=True)
    parser.add_argument(
        "--pictures", type=Path, required=True, help="of projects.sam.mobile.pictures"
    )
    parser.add_argument("--output", type=Path, required=True, help="a .safetensors file")
    parser.add_argument(
        "--seconds", type=float, default=440, help="until the end, with preparation"
    )
    parser.add_argument("--steps", type=int, default=-1, help="stop earlier, after so many")
    parser.add_argument("--bank", type=int, default=2000, help="scenes that are kept encoded")
    parser.add_argument("--scenes", type=int, default=6, help="made in each step")
    parser.add_argument(
        "--batches", type=int, nargs=3, default=[64, 48, 32], metavar=("TEXT", "MASK", "BOTH")
    )
    parser.add_argument("--device", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("opts", nargs="*", default=[], help="KEY VALUE of the configuration")
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Trains and writes."""
    train(parse(arguments))
    return 0


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    sys.exit(run_command(main))
