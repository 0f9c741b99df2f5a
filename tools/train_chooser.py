"""Train what chooses among the masks of a model for a sentence.

    python datasets/prepare_chooser.py --coco images instances.json --out chooser_data
    DETECTRON2_DATASETS=chooser_data python tools/train_chooser.py --sets my_written my_short \\
        --choose my_choose --output chooser.safetensors

The first line makes the sets of the small model, see docs/runs.md.
The candidates of every image are described once; then two small networks are trained on them, in
minutes on a CPU, which answer with the mean of their scores. How much the model's own scores count,
and which score is refused, is chosen on --choose. Sets are own data with sentences, see
docs/own_data.md; those of --sets are for training.
The result belongs to the weights of the model: with others it is left out.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from tqdm import tqdm

import unified
from unified.checkpoint import write_weights
from unified.commands import add_max_pixels, run_command, share
from unified.data.catalog import load_records
from unified.data.samples import view_of
from unified.errors import InputError
from unified.inference.chooser.choosing import NETWORKS, margin, weights_of
from unified.inference.chooser.fitting import RECIPES, fit
from unified.inference.chooser.rules import fit_rules, right
from unified.inference.chooser.student import Picture, Referred, Student
from unified.inference.image_io import read_image

Groups = Mapping[str, Sequence[Any]]
"""Image file -> its records."""


def grouped(names: Sequence[str]) -> Groups:
    """The records of some sets by image.

    Raises:
        InputError: a set has no sentences, or all are about nothing that is there.
    """
    groups: dict[str, list[Any]] = defaultdict(list)
    for name in names:
        records: Sequence[Any] = load_records(name)
        if not all("expressions" in record for record in records):
            raise InputError(f"{name} has no sentences: give a set for referring segmentation")
        if not any(record["annotations"] for record in records):
            raise InputError(f"no sentence of {name} means an object: give a set with objects")
        for record in records:
            groups[record["file_name"]].append(record)
    return groups


def pictures(groups: Groups, title: str) -> Iterator[Picture]:
    """Every picture once, with what is said of it, behind a progress bar."""
    for file, records in tqdm(groups.items(), desc=title, disable=None):
        image = read_image(file)
        referred = []
        for record in records:
            kept = [entry for entry in record["annotations"] if not entry.get("iscrowd")]
            called = [entry.get("category_name", "") for entry in kept]
            referred.append(
                Referred(view_of(record, image)[0].masks, called, record["expressions"])
            )
        yield image, referred


def train(options: argparse.Namespace) -> None:
    """Describes, trains, chooses the rules, writes and prints."""
    start = time.monotonic()
    taught, tried = grouped(options.sets), grouped([options.choose])
    model: Any = unified.load(
        options.model, options.weights, options.device, ["INFERENCE.CHOOSER", ""]
    )
    if model.info.sha256 is None:
        raise InputError("the model has no weights: give --weights, or a model that has some")
    student = Student(model)
    lessons, naming = student.lessons(pictures(taught, "describe"), options.seed)
    if not lessons:
        raise InputError(f"no candidate was found in {' '.join(options.sets)}")
    first = lessons[0]
    seen, words = first.described.seen.shape[1], first.sentences[0].words.shape[1]
    described = time.monotonic()
    networks, curves = [], []
    for name, kind in NETWORKS.items():
        torch.manual_seed(options.seed)
        networks.append(kind(seen_dim=seen, text_dim=words).to(student.device))
        recipe = replace(RECIPES[name], epochs=options.epochs)
        curves.append(fit(networks[-1], lessons, naming, recipe, options.seed))
    trained = time.monotonic()
    trials = student.trials(networks, pictures(tried, "choose rules"))
    present = [trial for trial in trials if trial.truth is not None]
    if not present:
        raise InputError(f"no sentence of {options.choose} is understood: give English ones")
    threshold = model.inference.image.score_threshold
    rules = fit_rules(trials, threshold=threshold, keep=options.keep)
    write_weights(options.output, weights_of(networks, rules, model.info.sha256))
    absent = [trial for trial in trials if trial.truth is None]
    limit = -float(torch.tensor(1 / threshold - 1).log())
    refused = sum(margin(trial.choices, rules) < limit for trial in absent)
    print(
        f"{sum(len(lesson.sentences) for lesson in lessons)} sentences about {len(lessons)} "
        f"pictures: described in {described - start:.0f} s, trained in {trained - described:.0f} "
        f"s, loss {' and '.join(f'{curve[0]:.2f} to {curve[-1]:.2f}' for curve in curves)}; of "
        f"{len(present)} sentences of {options.choose} {right(present, rules):.1%} right before "
        f"refusal, {refused} of {len(absent)} about nothing refused; {rules}; {options.output}"
    )


def main(arguments: list[str] | None = None) -> int:
    """Returns 0, or 2 after bad input."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", metavar="NAME|YAML", help="default: the small one")
    parser.add_argument("--weights", metavar="FILE", help="of the model, instead of its own")
    parser.add_argument("--sets", required=True, nargs="+", metavar="SET", help="to train on")
    parser.add_argument("--choose", required=True, metavar="SET", help="to choose the rules on")
    parser.add_argument(
        "--keep", type=share, default=0.9, help="share of true sentences that are not refused"
    )
    parser.add_argument("--epochs", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", required=True, type=Path, metavar="FILE")
    parser.add_argument("--device", default="auto")
    add_max_pixels(parser)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    options = parser.parse_args(arguments)
    return run_command(lambda: train(options))


if __name__ == "__main__":
    sys.exit(main())
