"""One configuration trained for several values of a key, and the table of what came of it."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from tests.toy.system import CONFIG
from unified.engine.comparison import read_comparison, table
from unified.errors import ConfigError

ROOT = Path(__file__).parents[3]
METRIC = "fss-1000-test/hsnet/mIoU"


def load_tool() -> Callable[[list[str]], int]:
    spec = importlib.util.spec_from_file_location("compare", ROOT / "tools/compare.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def write_runs(folder: Path, **changes: object) -> Path:
    """Two fusion layers of the toy."""
    content = {
        "OUTPUT_DIR": str(folder / "runs"),
        "CONFIG": str(CONFIG),
        "KEY": "MODEL.TOY.FUSION",
        "VALUES": ["UniFusion", "NoFusion"],
        "OPTIONS": {"SOLVER.MAX_ITER": 3, "DATASETS.TEST": ["fss-1000-test"]},
        "METRICS": {"FSS mIoU": METRIC},
    }
    path = folder / "runs.yaml"
    path.write_text(yaml.safe_dump(content | changes))
    return path


def test_every_value_is_trained_alike_and_the_table_shows_the_best_first(
    options: list[str], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    path = write_runs(tmp_path)
    assert load_tool()(["--runs", str(path), "SOLVER.MAX_ITER", "1"]) == 0
    printed = capfd.readouterr().out.splitlines()[-4:]
    runs, found = tmp_path / "runs", []
    for value in ("UniFusion", "NoFusion"):
        assert yaml.safe_load((runs / value / "config.yaml").read_text())["MODEL"]["TOY"][
            "FUSION"
        ] == (value)
        (line,) = (runs / value / "evaluation.json").read_text().splitlines()
        found.append((json.loads(line)[METRIC], value))
        assert json.loads(line)["iteration"] == 0
    assert printed[:2] == ["|  | FSS mIoU |", "|---|---|"]
    best, other = sorted(found, reverse=True)
    assert printed[2:] == [f"| `{name}` | {score:.1f} |" for score, name in (best, other)]
    (runs / "UniFusion/config.yaml").unlink()  # nothing writes it again: the run is done
    assert load_tool()(["--runs", str(path), "SOLVER.MAX_ITER", "1"]) == 0
    assert not (runs / "UniFusion/config.yaml").exists()


@pytest.mark.timeout(600)  # processes that start others, on a machine that may be busy
def test_a_stopped_comparison_stops_its_training_which_saves_its_steps(
    options: list[str], tmp_path: Path
) -> None:
    steps = {"SOLVER.MAX_ITER": 100000, "DATASETS.TEST": ["fss-1000-test"]}
    path = write_runs(tmp_path, VALUES=["NoFusion"], OPTIONS=steps)
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "tools/compare.py"), "--runs", str(path)],
        stderr=subprocess.PIPE,
        text=True,
    )
    metrics = tmp_path / "runs/NoFusion/metrics.json"
    while not metrics.exists() and process.poll() is None:
        time.sleep(0.2)
    process.terminate()
    _, messages = process.communicate(timeout=300)
    assert process.returncode == 143 and "stopped: run the same command to go on" in messages
    saved = (metrics.parent / "last_checkpoint").read_text()
    assert saved == f"model_{len(metrics.read_text().splitlines()) - 1:07d}.pth"


def test_mistakes_are_found_before_anything_runs(options: list[str], tmp_path: Path) -> None:
    def error(**changes: object) -> str:
        with pytest.raises(ConfigError) as caught:
            read_comparison(write_runs(tmp_path, **changes))
        return str(caught.value)

    assert "one or more entries as VALUES" in error(VALUES=[])
    assert "expected the keys" in error(BUDGET=3)
    assert "expected keys and values as OPTIONS" in error(OPTIONS=None)
    assert "two VALUES are the same" in error(VALUES=["NoFusion", "NoFusion"])
    metrics = {"oIoU": "refcoco-unc-val/uniref/oIoU"}
    assert "no dataset of DATASETS.TEST, which has fss-1000-test" in error(METRICS=metrics)
    assert "MODEL.TOY.FUSIONS" in error(KEY="MODEL.TOY.FUSIONS")
    assert "does not exist" in error(CONFIG="none.yaml")
    with pytest.raises(ConfigError, match="does not exist"):
        read_comparison(tmp_path / "none.yaml")


def test_a_metric_that_no_run_has_is_named(tmp_path: Path) -> None:
    comparison = read_comparison(write_runs(tmp_path, VALUES=["NoFusion"]))
    (folder := tmp_path / "runs/NoFusion").mkdir(parents=True)
    (folder / "evaluation.json").write_text(json.dumps({"a/b/c": 1.0}) + "\n")
    with pytest.raises(ConfigError, match=f"{METRIC} is not among the results"):
        list(table(comparison))
