"""A machine without anything is told all that is missing at once, and what runs on it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from projects.uniref.system import SYSTEM
from unified.data.catalog import find_dataset
from unified.data.synthetic.releases import RELEASES
from unified.engine.config import load_config
from unified.engine.missing import check_all_there, tiny_run
from unified.engine.run import train
from unified.errors import InputError

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def fresh_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("XDG_CACHE_HOME", "HF_HOME", "DETECTRON2_DATASETS"):
        monkeypatch.setenv(name, str(tmp_path / name))


def test_all_that_is_missing_is_named_at_once(tmp_path: Path) -> None:
    cfg = load_config(ROOT / "configs/ris_r50.yaml", ["OUTPUT_DIR", str(tmp_path / "out")])
    with pytest.raises(InputError) as caught:
        train(cfg, resume=False)
    message = str(caught.value)
    assert "MODEL.WEIGHTS uniref_objects365_r50" in message
    assert "TEXT_ENCODER.WEIGHTS bert-base-uncased" in message
    assert "tools/download_weights.py bert-base-uncased" in message
    for name in ("refcoco-mixed", "refcoco-unc-val", "refcocoplus-unc-val", "refcocog-umd-val"):
        for file in find_dataset(name).files:
            assert str(tmp_path / "DETECTRON2_DATASETS" / file) in message
        assert f"tools/data.py check {name}" in message
    assert message.splitlines()[-1] == tiny_run(str(SYSTEM.tiny_config))


def test_a_resumed_run_needs_its_data_alone(tmp_path: Path) -> None:
    options = ["DATASETS.TRAIN", "('fss-1000-train',)", "DATASETS.TEST", "()"]
    cfg = load_config(ROOT / "configs/ris_r50.yaml", options)
    with pytest.raises(InputError) as caught:
        check_all_there(cfg, resume=True)
    assert "fss-1000-train" in str(caught.value) and "bert-base" not in str(caught.value)
    RELEASES["fss1000"](tmp_path / "DETECTRON2_DATASETS", 2, 0)
    check_all_there(cfg, resume=True)


@pytest.mark.timeout(600)  # it makes four sets and trains
def test_the_last_line_runs(tmp_path: Path) -> None:
    for folder in ("tools", "configs"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    command = tiny_run(str(SYSTEM.tiny_config))
    short = command.replace("MAX_ITER 20", "MAX_ITER 2").replace("--size 20", "--size 4")
    done = subprocess.run(
        short.replace("python tools", f"{sys.executable} -W ignore tools"),
        shell=True,
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert (tmp_path / "output/tiny/model_final.pth").is_file()
