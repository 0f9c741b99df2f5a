"""Made sets for the tests that train ``tests/data/tiny_training.yaml``."""

from __future__ import annotations

from pathlib import Path

import pytest

from unified.data.synthetic.releases import RELEASES


@pytest.fixture(scope="session")
def training_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder with the sets; tests must not change it."""
    root = tmp_path_factory.mktemp("training_sets")
    for release in ("fss1000", "ytbvos19", "coco"):
        RELEASES[release](root, 4, 0)
    return root


@pytest.fixture
def options(training_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Options for the config; the output goes to a folder of the test."""
    monkeypatch.setenv("DETECTRON2_DATASETS", str(training_root))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return ["OUTPUT_DIR", str(tmp_path / "out")]
