"""Score masks made by anyone, under a named protocol.

    python tools/evaluate.py --task vos --protocol davis17-semi \\
        --gt DAVIS/Annotations/480p --pred out --split DAVIS/ImageSets/2017/val.txt --out scores
    python tools/evaluate.py --list  # every protocol and what it counts
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from unified.commands import add_max_pixels, run_command
from unified.errors import InputError
from unified.evaluation.protocols import PROTOCOLS, TASKS, default_protocol, evaluate
from unified.evaluation.reading import read_split
from unified.evaluation.report import Request


def parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--list", action="store_true", help="print the protocols and stop")
    add("--task", choices=TASKS, help="picks the protocols to choose from")
    add("--protocol", help="name from --list; default: the first of the task")
    add("--gt", type=Path, help="ground truth: folder of masks, or annotation JSON")
    add("--pred", type=Path, help="predictions: folder of masks, or results JSON")
    add("--split", type=Path, help="list of sequences, classes or samples: text, or JSON videos")
    add("--exclude", type=Path, help="list of those that do not, taken out of --split")
    add("--meta", type=Path, help="meta.json, valid_meta.json or meta_expressions.json")
    add("--unseen", type=Path, help="unseen videos or classes, or train meta.json (seen classes)")
    add("--classes", type=int, help="number of classes (semantic)")
    add("--ignore", type=int, help="label that does not count (semantic); default: 255")
    add("--class-agnostic", action="store_true", help="merge all categories (COCO)")
    add("--weights", type=Path, help="checkpoint that made the masks; its sha256 is on the card")
    add("--allow-missing", action="store_true", help="count faults of the files, do not stop")
    add("--out", type=Path, help="write summary.json, per_sequence.csv and per_item.csv here")
    add("--plots", type=Path, help="write bar chart, histogram and worst cases here")
    add("--images", type=Path, help="folder to draw the worst cases on, named like the masks")
    add("--workers", type=int, default=_cores(), help="clips scored at the same time")
    add_max_pixels(parser)
    return parser


def main(arguments: list[str] | None = None) -> int:
    """Prints table, warnings and card; returns 0, or 2 on bad input."""
    command = parser()
    options = command.parse_args(arguments)
    if options.list:
        width = max(map(len, PROTOCOLS))
        for name, protocol in PROTOCOLS.items():
            print(f"{protocol.task:9}  {name:{width}}  {protocol.benchmark}: {protocol.rule}")
        return 0
    if options.gt is None or options.pred is None or not (options.task or options.protocol):
        command.error("give --gt, --pred and --task or --protocol (see --list)")
    return run_command(lambda: run(options))


def run(options: argparse.Namespace) -> None:
    """Scores and writes what was asked for."""
    if options.images is not None and not (options.plots and options.images.is_dir()):
        raise InputError(f"--images {options.images} needs --plots, and must be a folder")
    request = Request(
        truth=options.gt,
        prediction=options.pred,
        split=read_split(options.split, options.exclude),
        meta=options.meta,
        unseen=options.unseen,
        num_classes=options.classes,
        ignore=options.ignore,
        class_agnostic=options.class_agnostic,
        allow_missing=options.allow_missing,
        num_workers=max(options.workers, 1),
        progress=True,
    )
    name = options.protocol or default_protocol(options.task)
    report = evaluate(name, request, task=options.task, weights=options.weights)
    print(report.table())
    for example in report.scores.problems.examples:
        print(f"warning: {example}")
    print(report.card.line())
    if options.out:
        report.write(options.out)
    if options.plots:
        from unified.evaluation.plots import write_plots

        for path in write_plots(report, options.plots, options.images):
            print(path)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


if __name__ == "__main__":
    sys.exit(main())
