"""What a command leaves on stderr, and its exit code."""

from __future__ import annotations

import argparse
import ast
from pathlib import Path

import pytest

from unified.commands import Terminated, add_max_pixels, run_command
from unified.errors import ConfigError
from unified.image_files import max_pixels

ROOT = Path(__file__).parents[2]
COMMANDS = sorted({*(ROOT / "tools").glob("*.py"), *(ROOT / "datasets").glob("*.py")})
# It runs before the toolkit is installed, and imports nothing of it.
COMMANDS.remove(ROOT / "tools/install_detectron2.py")


def fail(error: BaseException) -> None:
    raise error


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (ConfigError("no key A: say B"), 2, "error: no key A: say B\n"),
        (FileNotFoundError(2, "No such file", "a.png"), 2, "error: a.png: No such file\n"),
        (OSError("the pipe is closed"), 2, "error: the pipe is closed\n"),
        (KeyboardInterrupt(), 130, "stopped: go on with --resume\n"),
        (Terminated(), 143, "stopped: go on with --resume\n"),
    ],
)
def test_what_a_user_can_mend_is_one_line(
    error: BaseException, code: int, message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run_command(lambda: fail(error), stopped="go on with --resume") == code
    assert capsys.readouterr() == ("", message)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        run_command(lambda: 1 // 0)


def test_the_code_of_the_work_is_that_of_the_command() -> None:
    assert run_command(lambda: None) == 0
    assert run_command(lambda: 1) == 1


@pytest.mark.parametrize("path", COMMANDS, ids=lambda path: path.name)
def test_every_command_ends_through_it(path: Path) -> None:
    (main,) = (
        node
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef) and node.name == "main"
    )
    called = {getattr(node.func, "id", "") for node in ast.walk(main) if isinstance(node, ast.Call)}
    assert "run_command" in called


def test_the_limit_of_pixels_is_that_of_all_processes(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("UNIFIED_MAX_PIXELS", "1")
    parser = argparse.ArgumentParser()
    add_max_pixels(parser)
    parser.parse_args([])
    assert max_pixels() == 1
    parser.parse_args(["--max-pixels", "300000000"])
    assert max_pixels() == 300_000_000
    with pytest.raises(SystemExit):
        parser.parse_args(["--max-pixels", "0"])
    assert "--max-pixels is 0: expected a number of pixels" in capsys.readouterr().err


READERS = ("infer_image", "infer_video", "evaluate", "submit", "train_net", "calibrate")


@pytest.mark.parametrize("tool", [*READERS, "train_stages", "benchmark", "data"])
def test_every_tool_that_reads_images_has_the_limit(tool: str) -> None:
    source = (ROOT / f"tools/{tool}.py").read_text()
    assert "add_max_pixels(" in source or "cli.add_model_arguments(" in source
