"""What is missing is named, for a system that has no recipe to suggest instead."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.toy.system import CONFIG, SYSTEM
from unified.engine.config import load_config
from unified.engine.missing import check_all_there
from unified.errors import InputError


def test_a_system_without_a_tiny_recipe_suggests_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    assert SYSTEM.tiny_config is None
    with pytest.raises(InputError) as caught:
        check_all_there(load_config(CONFIG), resume=False)
    message = str(caught.value)
    assert "dataset fss-1000-train" in message and "tools/data.py make fss-1000-train" in message
    assert "right now" not in message and "train_net" not in message
