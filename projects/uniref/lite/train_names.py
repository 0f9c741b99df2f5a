"""Train the name head: which of a model's masks shows what a sentence is about.

    python -m projects.uniref.lite.train_names --config-file configs/lite/uniref_lite.yaml \\
        --weights a.safetensors --output b.safetensors \\
        --sets lite_det lite_ris_real --wordings lite_ris --val lite_det_val

For configs with MODEL.UNIREF.LITE.NAMES.NUM. A frozen copy of the pretrained backbone sees each
image a few times; then a small network learns in a minute to tell the names apart. Nothing else of
the model changes, so this comes after all other training, and before tools/calibrate.py.
"""

from __future__ import annotations

import argparse
import logging
import sys
from pathlib import Path

from projects.uniref.checkpoint import find_uniref_keys
from projects.uniref.config import build
from projects.uniref.lite.fit_names import (
    describe_all,
    describe_objects,
    fit,
    named_records,
    named_right,
    wordings,
)
from unified.checkpoint import read_weights, write_weights
from unified.commands import run_command
from unified.data.augmentation import Augmentation
from unified.devices import pick_device
from unified.engine.config import load_config
from unified.engine.models import load_checkpoint
from unified.errors import CheckpointError, ConfigError

HEAD = "name_head."
MAX_ASPECT = 1.6  # of a picture whose shorter side is as drawn
COLOUR = 0.3


def train(options: argparse.Namespace) -> None:
    """Describes objects, trains, writes and prints.

    Raises:
        ConfigError: the config has no names, or no pretrained backbone to learn them with.
        CheckpointError: the weights are in the official layout, or of another model.
        InputError: a set does not fit.
    """
    cfg = load_config(options.config_file, options.opts)
    node = cfg.MODEL.UNIREF
    num_names = node.LITE.NAMES.NUM
    if not num_names:
        raise ConfigError(f"{options.config_file} has no names: set MODEL.UNIREF.LITE.NAMES.NUM")
    given = read_weights(options.weights)
    table = find_uniref_keys(given)
    if table is not None and table.is_foreign(given):
        raise CheckpointError(
            f"{options.weights} is official: use tools/convert_checkpoint.py first"
        )
    if not node.BACKBONE_WEIGHTS and not any(key.startswith(HEAD) for key in given):
        raise ConfigError("names need a pretrained backbone: set MODEL.UNIREF.BACKBONE_WEIGHTS")
    named = named_records(options.sets)
    (val,) = named_records([options.val]) if options.val else [None]
    phrases = wordings(named, options.wordings, expected=num_names)
    model = build(cfg)
    load_checkpoint(model, cfg, options.weights, to_train=True)
    model.to(pick_device(options.device)).eval()
    augmentation = Augmentation(
        short_sides=tuple(options.sizes),
        max_size=int(max(options.sizes) * MAX_ASPECT),
        crop=0.0,
        colour=COLOUR,
    )
    objects = describe_objects(model, named, augmentation, options.pictures, options.seed)
    loss = fit(model, objects, phrases, options.seed)
    kept = {key: value for key, value in given.items() if not key.startswith(HEAD)}
    dtype = next(value.dtype for value in kept.values() if value.is_floating_point())
    for key, value in model.state_dict().items():
        if key.startswith(HEAD):
            kept[key] = value.cpu().to(dtype) if value.is_floating_point() else value.cpu()
    write_weights(options.output, kept)
    print(
        f"{len(phrases)} names from {len(objects.names)} views of objects in {options.pictures} "
        f"pictures, loss {loss:.3f}: {options.output}"
    )
    if val is not None:
        side = cfg.INFERENCE.IMAGE_SHORT_SIDE
        plain = Augmentation(short_sides=(side,), max_size=cfg.INFERENCE.MAX_SIZE, flip=0, crop=0)
        share, count = named_right(model, describe_all(model, val, plain), list(phrases))
        print(f"{share:.1%} of {count} objects of {options.val} are called by their name")


def positive(text: str) -> int:
    """A whole number above 0."""
    if not text.isdecimal() or not (value := int(text)):
        raise argparse.ArgumentTypeError(f"expected a whole number above 0, got {text}")
    return value


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--config-file", required=True, type=Path, metavar="YAML")
    parser.add_argument("--weights", required=True, type=Path, metavar="FILE")
    parser.add_argument("--opts", nargs="*", default=[], metavar="KEY VALUE", help="of the config")
    parser.add_argument("--sets", required=True, nargs="+", metavar="SET", help="named objects")
    parser.add_argument(
        "--wordings", nargs="*", default=[], metavar="SET", help="sentences about such objects"
    )
    parser.add_argument(
        "--val", metavar="SET", help="print how many of its objects are named right"
    )
    parser.add_argument(
        "--pictures", type=positive, default=4000, help="drawn from the sets (default 4000)"
    )
    parser.add_argument(
        "--sizes",
        type=positive,
        nargs="+",
        default=[256, 304, 352, 416],
        metavar="PIXELS",
        help="shorter sides, of which one is drawn for each picture (default 256 304 352 416)",
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--device", default="auto")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    return run_command(lambda: train(options))


if __name__ == "__main__":
    sys.exit(main())
