"""The examples run and print a mask."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from examples import transformers_sam
from unified.errors import CheckpointError
from unified.inference.video_io import FrameReader
from unified.samples import sample_path
from unified.weights import resolve

EXAMPLES = Path(__file__).parents[1] / "examples"


def needs(*names: str) -> None:
    for name in names:
        try:
            resolve(name)
        except (CheckpointError, KeyError) as error:
            pytest.skip(f"needs the weights: {error}")


def printed(example: str, *arguments: str) -> str:
    command = [sys.executable, "-W", "ignore", str(EXAMPLES / example), *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_sam_of_transformers_follows_a_sentence() -> None:
    needs("minilm")
    lines = printed("transformers_sam.py", str(sample_path("cat")), "the cat").splitlines()
    assert len(lines) == 22 and all(re.fullmatch("[#.]{64}", line) for line in lines[:-1])
    assert re.fullmatch(r"score [01]\.\d\d, \d+ of 135300 pixels", lines[-1])


def test_the_first_lines_of_the_readme_run() -> None:
    needs("minilm", "efficientnet_lite0")
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    with FrameReader(str(sample_path("carphone")), end=2) as reader:
        names = {"frames": [frame.image for frame in reader]}
    exec(re.findall(r"```python\n(.+?)```", text, re.DOTALL)[0], names)
    result, mask = names["result"], names["mask"]
    assert mask.shape == result.label_map.shape and sorted(result.scores) == [1, 2]
    assert result.areas[1] > 0.5 * mask.sum() > 0


def test_the_lines_that_plug_into_a_sam_run() -> None:
    """As they are pasted; three of them beside imports."""
    needs("minilm")
    text = (EXAMPLES.parent / "README.md").read_text(encoding="utf-8")
    (lines,) = re.findall(r"```python\n([^`]+Sam\.of\(sam\)[^`]+)```", text)
    names = {"sam": transformers_sam.tiny_sam()}
    exec(lines, names)
    assert names["model"].reference_kinds == {"text", "mask", "point", "box"}
    assert sum(not line.startswith("from ") for line in lines.splitlines() if line) == 3


def test_mobile_sam_finds_the_cat() -> None:
    from unified.engine.system import find_systems

    assert "SamUniFusion" in find_systems()  # registers the weights
    needs("sam_unifusion_mobile", "mobile_sam", "minilm", "efficientnet_lite0")
    *_, last = printed("mobile_sam.py", str(sample_path("cat")), "the cat").splitlines()
    score, area = re.fullmatch(r"score (.+), (\d+) of 135300 pixels", last).groups()
    assert float(score) > 0.8 and 90_000 < int(area) < 125_000
