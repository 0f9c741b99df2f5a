"""A wheel, built and installed into an environment of its own, is whole: it runs from any folder.

Nothing is downloaded: the environment sees the packages of the running one, without this project.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
import sysconfig
import venv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import unified
from unified import ImagePredictor
from unified.inference.frames import resize_image
from unified.inference.image_io import read_image, write_image
from unified.label_maps import write_label_map
from unified.samples import sample_path
from unified.structures import Prompt

ROOT = Path(__file__).parents[1]
TEXTS = {".py", ".md", ".yaml"}
SOURCES = ("unified", "projects", "configs", "tools", "datasets")
PHOTO = resize_image(read_image(sample_path("cat")), (150, 226))
CAT = np.s_[30:120, 60:160]
WITHOUT_DETECTRON2 = """
import sys

class Absent:
    def find_spec(name, *_):
        if name.partition(".")[0] == "detectron2":
            raise ModuleNotFoundError(f"No module named {name!r}", name="detectron2")

sys.meta_path.insert(0, Absent)
from unified.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    """Runs ``command`` in ``folder`` without any trace of the source tree."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "PIP_"))}
    environment |= {"PIP_NO_INDEX": "1", "PIP_DISABLE_PIP_VERSION_CHECK": "1"}
    return subprocess.run(
        command, cwd=folder, env=environment, capture_output=True, text=True, check=False
    )


def succeed(command: list[str], folder: Path) -> str:
    """What a command printed that has to succeed."""
    done = run(command, folder)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``bin`` of an environment with the wheel in it; the sources it was built from are gone."""
    folder = tmp_path_factory.mktemp("wheel")
    source = folder / "source"
    for name in SOURCES:
        ignore = shutil.ignore_patterns("__pycache__", "*.egg-info")
        shutil.copytree(ROOT / name, source / name, ignore=ignore)
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE", "MANIFEST.in"):
        shutil.copy(ROOT / name, source)
    pip = [sys.executable, "-m", "pip"]
    succeed([*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", ".", "./source"], folder)
    shutil.rmtree(source)
    venv.create(folder / "venv", with_pip=False)
    python = folder / "venv/bin/python"
    (wheel,) = folder.glob("unified-*.whl")
    succeed([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], folder)
    (site_packages,) = (folder / "venv/lib").glob("python*/site-packages")
    # A line of a .pth file adds a folder, but not what the .pth files in there say.
    here = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    (site_packages / "running.pth").write_text("\n".join(here))
    return folder / "venv/bin"


def packages(bin_folder: Path) -> Path:
    """The site-packages of the environment."""
    (folder,) = (bin_folder.parent / "lib").glob("python*/site-packages")
    return folder


def test_one_name_lands_in_site_packages(installed: Path) -> None:
    tops = {path.name for path in packages(installed).iterdir() if path.suffix != ".dist-info"}
    assert tops == {"unified", "running.pth"}


def test_nothing_in_it_imports_from_the_source_tree(installed: Path) -> None:
    paths = list(packages(installed).rglob("unified/**/*.py"))
    assert len(paths) > 100
    for path in paths:
        code = path.read_text(encoding="utf-8")
        names = [
            name
            for node in ast.walk(ast.parse(code))
            if isinstance(node, (ast.Import, ast.ImportFrom))
            for name in ([node.module] if isinstance(node, ast.ImportFrom) else [])
            + [alias.name for alias in node.names]
        ]
        tops = {str(name).partition(".")[0] for name in names}
        assert not tops & {"projects", "tools", "tests"}, path
        assert "sys.path.insert" not in code or path.name == "__main__.py", path
        assert "python tools/" not in code, path


def wrong_commands(text: str, commands: set[str]) -> list[str]:
    """What looks like a command of the toolkit and is none, among ``COMMAND`` of a usage line."""
    named = re.findall(r"(?<=[`\n ]unified )[a-z][\w-]*", f" {text}")
    wrong = [f"unified {name}" for name in named if name not in commands]
    return wrong + re.findall(r"python unified \S*", text)


def test_every_text_names_commands_that_are_there(installed: Path, tmp_path: Path) -> None:
    assert wrong_commands("`python unified data make`", {"data"}) == ["python unified data"]
    assert wrong_commands("run `unified eval-mevis`", {"data"}) == ["unified eval-mevis"]
    overview = succeed([str(installed / "unified"), "--help"], tmp_path)
    commands = {line.split()[0] for line in overview.splitlines() if line.startswith("  ")}
    package, texts = packages(installed) / "unified", {}
    for path in package.rglob("*"):
        content = path.read_text(encoding="utf-8") if path.suffix in TEXTS else ""
        if path.suffix == ".py":  # adjacent literals are one constant
            nodes = [
                node for node in ast.walk(ast.parse(content)) if isinstance(node, ast.Constant)
            ]
            content = "\n".join(node.value for node in nodes if isinstance(node.value, str))
        texts[path.relative_to(package)] = content
    named = "\n".join(texts.values())
    assert len(re.findall(r"\bunified (?:data|train|image) ", named)) > 20
    missing = texts[Path("engine/missing.py")]
    assert "`unified data make " in missing and " unified train --config-file " in missing
    assert "tools/eval_mevis.py" in texts[Path("metrics/video.py")]  # of others
    for path, text in texts.items():
        assert not wrong_commands(text, commands), path
        assert "python tools/" not in text, path


def test_the_rounding_of_recordings_is_in_it(installed: Path, tmp_path: Path) -> None:
    code = (
        "from unified.projects.uniref.parity.recorded import RECORDED_NOISE\n"
        "print(RECORDED_NOISE.read_text())"
    )
    noise = json.loads(succeed([str(installed / "python"), "-c", code], tmp_path))
    assert noise["golden_text"]


def test_every_file_beside_the_modules_is_in_it(installed: Path) -> None:
    beside = {
        path.relative_to(ROOT)
        for path in (ROOT / "unified").rglob("*")
        if path.is_file() and path.suffix not in {".py", ".pyc"}
    }
    assert beside
    assert not [path for path in beside if not (packages(installed) / path).is_file()]


def labels(path: Path) -> np.ndarray:
    """Object ids (H, W)."""
    with Image.open(path) as image:
        return np.asarray(image)


def test_image(installed: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", PHOTO)
    command = [str(installed / "unified"), "image", "--input", "a.png", "--text", "the cat"]
    assert "done: see out/" in succeed([*command, "--output", "out"], tmp_path)
    assert labels(tmp_path / "out/masks/a.png")[CAT].mean() > 0.5
    results = (tmp_path / "out/results.json").read_text()
    assert "unified/configs/lite/uniref_lite.yaml" in results
    # With all its parts: what of a system may be deleted is found by name.
    predictor = ImagePredictor(unified.load())
    predictor.set_image(PHOTO)
    _, score = predictor.predict(Prompt(text="the cat"))
    assert json.loads(results)["images"][0]["objects"][0]["score"] == pytest.approx(score, abs=1e-3)


def test_video(installed: Path, tmp_path: Path) -> None:
    for number in range(2):
        write_image(tmp_path / f"frames/{number:05}.png", PHOTO)
    mask = np.zeros(PHOTO.shape[:2], np.uint8)
    mask[CAT] = 1
    write_label_map(tmp_path / "first.png", mask)
    command = [str(installed / "unified"), "video", "--input", "frames", "--mask", "first.png"]
    succeed([*command, "--output", "out"], tmp_path)
    assert labels(tmp_path / "out/masks/00001.png")[CAT].mean() > 0.5


def test_every_command_answers(installed: Path, tmp_path: Path) -> None:
    overview = succeed([str(installed / "unified"), "--help"], tmp_path)
    names = [line.split()[0] for line in overview.splitlines() if line.startswith("  ")]
    assert {"image", "video", "train", "evaluate", "data", "train-stages"} <= set(names)
    assert "check-metrics" not in names
    shown = succeed([str(installed / "unified"), "data", "--help"], tmp_path)
    assert shown.startswith("usage: unified data") and "\nunified data list\n" in shown


def test_a_missing_detectron2_is_asked_for_in_one_line(installed: Path, tmp_path: Path) -> None:
    write_image(tmp_path / "a.png", PHOTO)
    image = ["image", "--input", "a.png", "--text", "the cat", "--output", "out"]
    for command in (image, ["train"]):
        done = run([str(installed / "python"), "-c", WITHOUT_DETECTRON2, *command], tmp_path)
        assert done.returncode == 2, done.stderr
        assert done.stderr == (
            "error: detectron2 is not installed: run `unified install-detectron2`\n"
        )
    for command in (["data", "list"], ["evaluate", "--list"]):
        done = run([str(installed / "python"), "-c", WITHOUT_DETECTRON2, *command], tmp_path)
        assert done.returncode == 0, done.stderr


def test_an_unknown_command_names_the_others(installed: Path, tmp_path: Path) -> None:
    done = run([str(installed / "unified"), "segment"], tmp_path)
    assert done.returncode == 2 and "choose one of benchmark, " in done.stderr


def test_a_shipped_config_is_found_from_any_folder(installed: Path, tmp_path: Path) -> None:
    train = [str(installed / "unified"), "train", "--config-file", "configs/ris_r50.yaml"]
    done = run([*train, "MODEL.DEVICE", "cpu", "OUTPUT_DIR", "out"], tmp_path)
    assert done.returncode == 2 and "does not exist" not in done.stderr, done.stderr
