"""The two tools that fetch things, run as a user runs them; neither reaches the network here."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def run(tool: str, *arguments: str, path: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a tool with ``path`` in front of everything else on the path and no index to ask."""
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(path), str(ROOT)]),
        "PIP_NO_INDEX": "1",
        "XDG_CACHE_HOME": str(path / "cache"),
    }
    command = [sys.executable, str(ROOT / "tools" / tool), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def test_weights_are_listed_and_found() -> None:
    done = run("download_weights.py", "--list", "minilm")
    assert done.returncode == 0, done.stderr
    assert "efficientnet_lite0" in done.stdout and "Apache-2.0" in done.stdout
    assert Path(done.stdout.splitlines()[-1].partition(": ")[2]).is_dir()


def test_unknown_weights_give_one_clear_line() -> None:
    done = run("download_weights.py", "nothing")
    assert done.returncode == 2
    assert done.stderr.startswith("error: no weights are called 'nothing': choose from minilm, ")
    assert "uniref_lite" in done.stderr
    assert done.stderr.count("\n") == 1


def test_a_stock_detectron2_is_left_alone(tmp_path: Path) -> None:
    info = tmp_path / "detectron2-0.6.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: detectron2\nVersion: 0.6\n")
    done = run("install_detectron2.py", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("detectron2 is here already")


def test_a_source_checkout_of_detectron2_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "detectron2").mkdir()
    (tmp_path / "detectron2/__init__.py").touch()
    done = run("install_detectron2.py", path=tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"detectron2 is here already and stays as it is: {tmp_path}/detectron2\n"


@pytest.mark.parametrize("damage", ["nothing", "emptied", "deleted", "version"])
def test_only_a_whole_detectron2_counts_as_installed(tmp_path: Path, damage: str) -> None:
    try:
        ours = distribution("sal-detectron2")
    except PackageNotFoundError:
        pytest.skip("this environment has a Detectron2 of its own")
    files = [file for file in ours.files or () if file.suffix != ".pyc"]
    for file in files:  # a copy in front of the real one
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(file.locate(), tmp_path / file)
    victim = tmp_path / "detectron2/engine/train_loop.py"
    if damage == "emptied":
        victim.write_text("")
    if damage == "deleted":
        victim.unlink()
    if damage == "version":
        metadata = next(tmp_path.glob("sal_detectron2-*.dist-info/METADATA"))
        metadata.write_text(metadata.read_text().replace("Version: 0.7.2", "Version: 0.7.1"))
    probe = "import sys; sys.path.insert(0, 'tools'); import install_detectron2 as i;"
    probe += " sys.exit(0 if i.is_complete() else 1)"
    done = subprocess.run(
        [sys.executable, "-c", probe],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        check=False,
    )
    assert done.returncode == (0 if damage == "nothing" else 1)
