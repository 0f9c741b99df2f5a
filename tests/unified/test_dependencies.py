from __future__ import annotations

import sys
from pathlib import Path

import pytest

from unified.dependencies import require
from unified.errors import ConfigError


def test_a_module_is_returned() -> None:
    assert require("json.decoder").JSONDecoder().decode("[1]") == [1]


def test_what_is_missing_names_its_command(monkeypatch: pytest.MonkeyPatch) -> None:
    # What is right in the source tree and after the installation of a wheel.
    command = "`python -m pip install no_such_thing`"
    with pytest.raises(ConfigError, match=f"no_such_thing is not installed: run {command}"):
        require("no_such_thing.inside")
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ConfigError, match="`python -m pip install opencv-python-headless`"):
        require("cv2")


@pytest.mark.parametrize(
    "fault",
    ["raise RuntimeError('operator nms does not exist')", "import no_such_thing", "1 / 0"],
)
def test_what_is_broken_says_why(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    (tmp_path / "broken_package.py").write_text(fault)
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match=r"broken_package cannot be imported \(.+\): run `"):
        require("broken_package")
