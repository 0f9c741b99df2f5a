"""Sets and a short run for the tests of one system."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from unified.data.synthetic.releases import RELEASES
from unified.data.vocabulary import write_vocabulary
from unified.engine.config import load_config
from unified.engine.run import train


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder of datasets with sentences and their vocabulary, which is found by all tests."""
    root = tmp_path_factory.mktemp("sets")
    RELEASES["refcoco"](root, 3, 0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DETECTRON2_DATASETS", str(root))
        write_vocabulary(["refcoco-unc-train"], root / "refcoco.txt")
        yield root


@pytest.fixture(scope="module")
def trained(
    request: pytest.FixtureRequest, sets: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The folder of a run of the configuration ``TINY`` of a module with its options ``RUN``."""
    folder = tmp_path_factory.mktemp("run")
    options = [*request.module.RUN, "OUTPUT_DIR", str(folder)]
    train(load_config(request.module.TINY, options), resume=False)
    return folder
