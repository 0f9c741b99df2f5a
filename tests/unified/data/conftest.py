"""One folder with a tiny set in every released format, made once per test run."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from unified.data.synthetic.releases import RELEASES, write_releases

SIZE = 3


@pytest.fixture(scope="session")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder; tests must not change it."""
    root = tmp_path_factory.mktemp("datasets")
    for _ in write_releases(RELEASES, root, SIZE, 0):
        pass
    return root


@pytest.fixture
def data_root(made_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The same folder as the root of all datasets."""
    monkeypatch.setitem(os.environ, "DETECTRON2_DATASETS", str(made_root))
    yield made_root
