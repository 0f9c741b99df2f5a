"""The examples of docs/extend.md, written and run as they are printed."""

from __future__ import annotations

import contextlib
import json
import multiprocessing
import os
import re
import runpy
import shlex
import subprocess
import sys
import zlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from unified.checkpoint import read_weights

ROOT = Path(__file__).parents[1]
GUIDE = (ROOT / "docs/extend.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## \d\. A (.*?)\n(.*?)(?=^## |\Z)", GUIDE, re.M | re.S))
INTRODUCTION = GUIDE.partition("\n## ")[0]
# What the tools need of other projects is imported once; each command runs in a fork of that.
PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["torch", "detectron2.engine", "torchvision", "transformers"])


def blocks(text: str, *languages: str) -> Iterator[str]:
    for language, block in re.findall(r"^```(\w+)\n(.*?)^```$", text, re.M | re.S):
        if language in languages:
            yield block


def write_files(folder: Path, text: str) -> None:
    """Every block whose first line is a comment with the name of a file."""
    for block in blocks(text, "python", "yaml", "text"):
        first, _, content = block.partition("\n")
        path = folder / first.removeprefix("# ")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content if path.suffix == ".txt" else block)


def run_commands(folder: Path, text: str) -> str:
    """Runs the commands of a section in ``folder``; returns what they print."""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "DETECTRON2_DATASETS": "made"}
    env["PYTHONPATH"] = f"{folder}:{ROOT}"
    printed, output = [], folder / "printed.txt"
    for command in "".join(blocks(text, "console")).splitlines():
        words = shlex.split(command)
        if words[0] == "export":
            continue
        if words[0] != "python":
            subprocess.run(words, cwd=folder, check=True)
            continue
        output.write_text("")
        tool = PROCESSES.Process(target=run_tool, args=(words[1:], folder, env, output))
        tool.start()
        tool.join(240)
        tool.kill()  # where it hangs
        printed.append(output.read_text())
        assert tool.exitcode == 0, f"{command}\n{printed[-1][-5000:]}"
    return "\n".join(printed)


def run_tool(words: Sequence[str], folder: Path, env: Mapping[str, str], output: Path) -> None:
    """What ``python`` does with these words: a script and its arguments, run in ``folder``."""
    os.environ |= env
    os.chdir(folder)
    script = str(ROOT / words[0])
    sys.argv = [script, *words[1:]]
    sys.path[:0] = [str(Path(script).parent), *env["PYTHONPATH"].split(os.pathsep)]
    with (
        output.open("w") as file,
        contextlib.redirect_stdout(file),
        contextlib.redirect_stderr(file),
    ):
        runpy.run_path(script, run_name="__main__")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty folder with the made sets."""
    path = tmp_path_factory.mktemp("extend")
    run_commands(path, INTRODUCTION)
    return path


def test_the_guide_has_the_five_examples() -> None:
    assert list(SECTIONS) == ["fusion layer", "task", "dataset", "backbone", "system"]


@pytest.mark.timeout(600)
def test_a_fusion_layer_a_task_and_a_dataset(folder: Path) -> None:
    """The task and the dataset are judged with the model of the first example."""
    write_files(folder, SECTIONS["fusion layer"])
    run_commands(folder, SECTIONS["fusion layer"])
    assert "fusion.gate" in read_weights(folder / "out_fusion/model_final.pth")
    write_files(folder, SECTIONS["task"])
    run_commands(folder, SECTIONS["task"])
    assert (folder / "out_fusion/inference/my_parts/parts-p70").is_dir()
    write_pairs(folder / "made/pairs")
    write_files(folder, SECTIONS["dataset"])
    run_commands(folder, SECTIONS["dataset"])
    assert (folder / "out_fusion/inference/pairs-val/lavt").is_dir()


def write_pairs(folder: Path) -> None:
    folder.mkdir()
    image = np.full((64, 96, 3), 90, np.uint8)
    mask = np.zeros((64, 96), np.uint8)
    image[20:40, 30:60], mask[20:40, 30:60] = (20, 20, 220), 255
    cv2.imwrite(str(folder / "a.jpg"), image)
    cv2.imwrite(str(folder / "a.png"), mask)
    (folder / "a.txt").write_text("the red box\n")


@pytest.mark.timeout(600)
def test_a_backbone(folder: Path) -> None:
    write_files(folder, SECTIONS["backbone"])
    run_commands(folder, SECTIONS["backbone"])
    assert "backbone.net.res5.weight" in read_weights(folder / "out_backbone/model_final.pth")


def record_words(path: Path) -> None:
    """What an implementation of Words in numpy says of a sentence, with the weights it has."""
    table = np.random.default_rng(0).normal(size=(512, 16)).astype(np.float32)
    rows = [zlib.crc32(word) % 512 for word in (b"the", b"red", b"circle")]
    arrays: dict[str, Any] = {"in/table": table, "in/sentence": np.array("the RED circle")}
    arrays["out/summary"] = table[rows].mean(axis=0)[None]
    np.savez(path, **arrays)


@pytest.mark.timeout(900)
def test_a_system_found_by_its_entry_point(folder: Path) -> None:
    write_files(folder, SECTIONS["system"])
    record_words(folder / "recorded.npz")
    printed = run_commands(folder, SECTIONS["system"])
    assert "resumed at step 10" in printed
    assert (
        "recorded.npz: Words, words\n  pass  summary" in printed and "all arrays passed" in printed
    )
    assert sorted(read_weights(folder / "published.pth")) == [
        *("net.conv.0.bias", "net.conv.0.weight", "net.conv.2.bias", "net.conv.2.weight"),
        "net.table",
    ]
    scores = json.loads((folder / "out_words/evaluation.json").read_text().splitlines()[-1])
    assert re.search(rf"^oIoU .*\n *{scores['refcoco-unc-val/uniref/oIoU']:.2f} ", printed, re.M)
    timed = [json.loads(report) for report in re.findall(r"^\{\n.*?^\}$", printed, re.M | re.S)]
    assert [(row["model"], row["mode"]) for row in timed] == [
        ("words", "image"),
        ("words", "video"),
    ]
    assert all(row["ours"]["milliseconds"]["total"] > 0 for row in timed)
    ours = read_weights(folder / "words.safetensors")
    trained = read_weights(folder / "out_words/model_final.pth")
    assert ours.keys() == trained.keys()
    assert all(bool((ours[key] == trained[key]).all()) for key in ours)
    assert list((folder / "out_image/masks").glob("*.png"))
    assert (folder / "out_video/overlay.mp4").is_file()
