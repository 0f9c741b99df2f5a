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
from unified.checkpoint import write_weights
from unified.commands import run_command
from unified.devices import pick_device
from unified.engine.config import load_config

logger = logging.getLogger(__name__)

RATE, DECODER_RATE, DECAY, CLIP, WARMUP, EMA = 4e-4, 1.5e-4, 0.05, 1.0, 150, 0.998
SAVE_EVERY, LOG_EVERY = 45.0, 25


def train(options: argparse.Namespace) -> None:
    """Trains for the given time and writes the averaged weights of what was trained.

    Raises:
        CheckpointError: weights that the configuration names are not there.
        InputError: the file of pictures is missing, damaged or another one.
    """
    torch.manual_seed(options.seed)
    torch.set_float32_matmul_precision("high")
    begin = time.monotonic()
    cfg = load_config(options.config_file, options.opts)
    model = build(cfg)
    load_parts(model, cfg, ())
    device = pick_device(options.device)
    model.to(device).train()
    maker = SceneMaker(load(options.pictures), device, seed=options.seed, side=model.sam.image_size)
    sizes = Sizes(options.bank, options.scenes, *options.batches)
    bank = SceneBank(model, maker, sizes)
    asker = Asker(model, bank)
    logger.info("prepared in %.0f s", time.monotonic() - begin)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    logger.info(
        "%.2f million parameters are trained", sum(map(Tensor.numel, trained.values())) / 1e6
    )
    groups = [
        {"params": [p for n, p in trained.items() if n.startswith("decoder.") == own], "top": rate}
        for own, rate in ((False, RATE), (True, DECODER_RATE))
    ]
    optimizer = torch.optim.AdamW(
        groups, lr=RATE, weight_decay=DECAY, betas=(0.9, 0.98), fused=device.type != "cpu"
    )
    average = {name: p.detach().clone() for name, p in trained.items()}
    log = options.output.with_suffix(".jsonl").open("w")
    start = saved = time.monotonic()
    length = options.seconds - (start - begin)
    sums: dict[str, Tensor] = {}
    step = 0
    while True:
        spent = (time.monotonic() - start) / length
        if spent >= 1 or step == options.steps:
            break
        warm = min(1.0, (step + 1) / WARMUP)
        for group in optimizer.param_groups:
            group["lr"] = group["top"] * warm * 0.5 * (1 + math.cos(math.pi * spent))
        bank.refresh()
        losses = asker.losses(step)
        sum(losses.values()).backward()
        for parameter in trained.values():
            if parameter.grad is not None:  # asking whether one is infinite would wait for the GPU
                parameter.grad.nan_to_num_(0.0, 0.0, 0.0)
        norm = nn.utils.clip_grad_norm_(trained.values(), CLIP)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        _blend(average, trained, min(EMA, step / (step + 10)))
        for name, value in {**losses, "norm": norm}.items():
            sums[name] = sums.get(name, torch.zeros((), device=device)) + value.detach()
        if step % LOG_EVERY == 0 or step == 1:
            _report(log, step, time.monotonic() - start, sums, asker.count(sums), bank.made)
            sums.clear()
        if time.monotonic() - saved > SAVE_EVERY:
            _save(average, options.output)
            saved = time.monotonic()
    _save(average, options.output)
    logger.info("%d steps in %.0f s, %d scenes", step, time.monotonic() - start, bank.made)


@torch.no_grad()
def _blend(average: Mapping[str, Tensor], latest: Mapping[str, Tensor], keep: float) -> None:
    torch._foreach_lerp_(list(average.values()), [p.detach() for p in latest.values()], 1 - keep)


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


def _save(average: Mapping[str, Tensor], path: Path) -> None:
    write_weights(path, {name: value.half().cpu().contiguous() for name, value in average.items()})


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
