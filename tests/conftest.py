"""The toy system, installed for the whole run, tiny models of it, and made sets to train on."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unified.threads import set_thread_defaults

set_thread_defaults()  # before torch is imported: threads that wait sleep

import torch

from tests.toy.model import MakeToy, Toy, make_toy
from tests.toy.system import INSTALLED, PATH
from unified.data.synthetic.releases import RELEASES

# As in ``make test``; what is shared out among threads asks for more.
torch.set_num_threads(1)

# Before anything asks for the systems: an entry point is found in the folders of the path.
sys.path.append(str(INSTALLED))


@pytest.fixture(scope="session")
def build_segmenter() -> MakeToy:
    """The function that makes a new toy; see ``make_toy``."""
    return make_toy


@pytest.fixture(scope="session")
def segmenter() -> Toy:
    """One toy for the whole run; tests must not change it."""
    return make_toy()


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
    monkeypatch.setenv("PYTHONPATH", PATH)
    return ["OUTPUT_DIR", str(tmp_path / "out")]
