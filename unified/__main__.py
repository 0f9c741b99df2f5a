"""The command ``unified``: every file of ``tools/`` by a short name, such as ``unified image``."""

from __future__ import annotations

import ast
import sys
from collections.abc import Sequence
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType

from unified.commands import MISUSE
from unified.layout import ROOT


def command_name(path: Path) -> str:
    """``image`` for infer_image.py, ``train`` for train_net.py, ``train-stages``, ``data``, ..."""
    return path.stem.removeprefix("infer_").removesuffix("_net").replace("_", "-")


def find_commands() -> dict[str, Path]:
    """The file of every command, by name."""
    files = sorted((ROOT / "tools").glob("*.py"))
    return {command_name(path): path for path in files}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command and returns its exit code."""
    name, *rest = (sys.argv[1:] if arguments is None else arguments) or ["--help"]
    commands = find_commands()
    if name in ("-h", "--help"):
        sys.stdout.write(_overview(commands))
        return 0
    if name not in commands:
        choices = ", ".join(commands)
        sys.stderr.write(f"error: there is no command {name!r}: choose one of {choices}\n")
        return MISUSE
    sys.argv = [f"unified {name}", *rest]  # argparse takes the name of the program from here
    code: int = _load(commands[name]).main()
    return code


def _load(path: Path) -> ModuleType:
    """The module of a tool; by its path, since packages called ``tools`` are many."""
    spec = spec_from_file_location(f"unified.tools.{path.stem}", path)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _overview(commands: dict[str, Path]) -> str:
    width = max(map(len, commands))
    lines = ["usage: unified COMMAND ...", "", "unified COMMAND --help says more.", ""]
    for name, path in commands.items():
        about = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
        lines.append(f"  {name:{width}}  {about.partition(chr(10))[0]}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
