"""Train or evaluate a model, with Detectron2's command line or under torchrun.

    python tools/train_net.py --config-file configs/ris_r50.yaml --num-gpus 8
    python tools/train_net.py --config-file configs/ris_r50.yaml --num-gpus 8 --resume
    python tools/train_net.py --config-file configs/ris_r50.yaml --eval-only MODEL.WEIGHTS FILE
    torchrun --nproc-per-node 8 tools/train_net.py --config-file configs/ris_r50.yaml

Keys and values at the end override the configuration. On a machine without a GPU, or with
MODEL.DEVICE cpu, --num-gpus is the number of processes.
"""

from __future__ import annotations

import os
import shlex
import sys
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from unified.threads import set_thread_defaults

set_thread_defaults()

from unified.commands import add_max_pixels, run_command
from unified.dependencies import require
from unified.devices import pick_device


def parse(arguments: Sequence[str] | None) -> Namespace:
    """The command line."""
    from detectron2.engine import default_argument_parser

    parser = default_argument_parser(epilog="")
    parser.description = __doc__
    add_max_pixels(parser)
    return parser.parse_args(arguments)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs; 2 for what a user can mend, 1 for a lost process, 130 or 143 for a stopped run."""
    return run_command(lambda: run(arguments), stopped=f"go on with {go_on(arguments)}")


def go_on(arguments: Sequence[str] | None) -> str:
    """The command that continues from the last checkpoint, with the data of this run.

    The option comes first: behind the keys of the configuration it would count as one of them.
    """
    data = os.environ.get("DETECTRON2_DATASETS")
    variable = "" if data is None else f"DETECTRON2_DATASETS={shlex.quote(data)} "
    given = sys.argv[1:] if arguments is None else arguments
    program = sys.argv[0] if sys.argv[0].startswith("unified ") else f"python {sys.argv[0]}"
    same = shlex.join(word for word in given if word != "--resume")
    return f"{variable}{program} --resume {same}"


def run(arguments: Sequence[str] | None) -> int:
    """Reads the configuration and starts the processes."""
    require("detectron2.engine")
    from unified.engine.config import load_config
    from unified.engine.launch import launch
    from unified.engine.run import run_process

    args = parse(arguments)
    cfg = load_config(args.config_file or None, args.opts)
    device = pick_device(cfg.MODEL.DEVICE).type
    return launch(run_process, args, device, cfg, args.resume, args.eval_only)


if __name__ == "__main__":
    sys.exit(main())
