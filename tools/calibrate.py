"""Shift a model's scores so that a threshold keeps a wanted share of the sentences that are true.

    python tools/calibrate.py --config-file model.yaml --weights a.safetensors \\
        --true lite_ris_val --absent lite_ris_absent_val --keep 0.9 --output b.safetensors

Detectors are trained to rank: what score a true sentence gets depends on how much is background.
The bias of the last class predictor is moved; which query wins, and its mask, stay the same. Prints
what share of the sentences without a referent then falls below the threshold. Sets are names of
referring sets as in DATASETS.TEST.
"""

from __future__ import annotations

import argparse
import math
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

import numpy as np
from tqdm import tqdm

import unified
from unified import ImagePredictor
from unified.checkpoint import read_weights, write_weights
from unified.commands import add_max_pixels, run_command, share
from unified.data.catalog import load_records
from unified.engine.system import system
from unified.errors import InputError
from unified.inference.image_io import read_image
from unified.structures import Prompt


def logits(predictor: ImagePredictor, name: str) -> np.ndarray:
    """Logit of the best query for every sentence of a set.

    Raises:
        InputError: the set has no sentences.
    """
    scores: list[float] = []
    file = None
    for record in tqdm(load_records(name), desc=name, disable=None):
        if "expressions" not in record:
            raise InputError(f"{name} has no sentences: give a set for referring segmentation")
        if record["file_name"] != file:
            file = record["file_name"]
            predictor.set_image(read_image(file))
        scores += [predictor.predict(Prompt(text=text))[1] for text in record["expressions"]]
    probability = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.asarray(np.log(probability / (1 - probability)))


def calibrate(options: argparse.Namespace) -> None:
    """Measures, shifts, writes and prints."""
    weights = read_weights(options.weights)
    model: Any = unified.load(options.config_file, weights=options.weights, device=options.device)
    bias_of = system(model.info.system).score_bias
    if bias_of is None:
        raise InputError(f"{model.info.system} has no bias that shifts all scores")
    predictor = ImagePredictor(model)
    true, absent = logits(predictor, options.true), logits(predictor, options.absent)
    wanted = float(np.log(options.threshold / (1 - options.threshold)))
    # In the middle between the lowest that is kept and the next: rounding the bias changes neither.
    kept_number = math.ceil(options.keep * len(true))
    order = np.sort(true)[::-1]
    shift = wanted - float(order[kept_number - 1 : kept_number + 1].mean())
    key = bias_of(model)
    weights[key] = (weights[key].float() + shift).to(weights[key].dtype)
    write_weights(options.output, weights)
    kept, refused = (true + shift >= wanted).mean(), (absent + shift < wanted).mean()
    better = (true[:, None] > absent).mean() + (true[:, None] == absent).mean() / 2
    print(
        f"scores shifted by {shift:+.3f} (logits): at {options.threshold} {kept:.1%} of "
        f"{len(true)} true sentences of {options.true} are kept, {refused:.1%} of {len(absent)} of "
        f"{options.absent} are refused; area under the curve {better:.3f}; {options.output}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, type=Path, metavar="YAML")
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE")
    parser.add_argument("--true", required=True, metavar="SET", help="each sentence has a referent")
    parser.add_argument("--absent", required=True, metavar="SET", help="no sentence has one")
    parser.add_argument("--keep", type=share, default=0.9, help="share of true sentences")
    parser.add_argument("--threshold", type=share, default=0.3, help="score that decides")
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--device", default="auto")
    add_max_pixels(parser)
    options = parser.parse_args(arguments)
    return run_command(lambda: calibrate(options))


if __name__ == "__main__":
    sys.exit(main())
