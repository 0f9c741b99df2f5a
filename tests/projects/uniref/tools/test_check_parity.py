"""The tool on recorded files, with exit codes and lines; the numbers are in test_parity."""

from __future__ import annotations

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from projects.uniref.parity.check import choose_config
from unified.engine.system import Recording

ROOT = Path(__file__).parents[4]
DATA = ROOT / "tests" / "data" / "uniref"
NOISE = ROOT / "projects/uniref/parity/noise.json"
# Deformable attention alone: a small model has the same module under the same key names.
SMALL = [
    "--opts",
    *("MODEL.UNIREF.TEXT_ENCODER.NAME", ""),
    *("MODEL.UNIREF.MASK_ENCODER.ENABLED", "False"),
    *("MODEL.UNIREF.ENCODER_LAYERS", "1"),
    *("MODEL.UNIREF.DECODER_LAYERS", "1"),
]
Tool = Callable[..., int]


@pytest.fixture(scope="module")
def module() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "check_parity", ROOT / "tools" / "check_parity.py"
    )
    assert spec is not None and spec.loader is not None
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


@pytest.fixture
def check(module: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Tool:
    """The tool, called with its command line."""

    def run(*arguments: object) -> int:
        monkeypatch.setattr(sys, "argv", ["check_parity.py", *map(str, arguments)])
        return module.main()

    return run


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    """A copy that tests may change, with the noise beside it."""
    shutil.copy(NOISE, tmp_path)
    return Path(shutil.copy(DATA / "golden_msdeform.npz", tmp_path))


def change(path: Path, name: str, array: np.ndarray | None) -> None:
    with np.load(path) as file:
        arrays = {key: file[key] for key in file.files}
    if array is None:
        arrays[name].reshape(-1)[0] += 1e-3
    else:
        arrays[name] = array
    np.savez(path, **arrays)


def test_one_line_per_array_and_exit_code_0(
    check: Tool, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(recording, *SMALL) == 0
    first, *lines, last = capsys.readouterr().out.splitlines()
    assert first == "golden_msdeform.npz: UniRef, msdeform"
    assert [line.split()[:2] for line in lines] == [
        ["pass", name] for name in ("ref2", "ref4", "ref2_nopad", "core")
    ]
    assert all("error" in line and "allowed" in line for line in lines)
    assert last == "all arrays passed"


def test_one_wrong_number_fails_its_line_and_the_run(
    check: Tool, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recording, "out/ref4", None)
    assert check(recording, *SMALL) == 1
    told = capsys.readouterr().out
    assert [line.split()[1] for line in told.splitlines() if "FAIL" in line] == ["ref4"]
    assert "1 arrays failed" in told and "all arrays passed" not in told


def test_the_allowance_comes_from_the_noise_beside_the_file(
    check: Tool, recording: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(recording, "out/ref4", None)
    noise = {"golden_msdeform": {"ref4": [1e-3, 1.0]}}
    (recording.parent / "noise.json").write_text(json.dumps(noise))
    assert check(recording, *SMALL) == 0
    assert "allowed 1.000e-02" in capsys.readouterr().out


@pytest.mark.parametrize("case", ["unknown array", "no kind", "missing", "text", "manifest"])
def test_errors_are_one_sentence_and_exit_code_2(
    check: Tool, recording: Path, case: str, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [recording, *SMALL]
    message = "golden_msdeform"
    if case == "unknown array":
        change(recording, "out/surprise", np.zeros(2))
        message = "no replay for the recorded arrays surprise"
    elif case == "no kind":
        np.savez(recording, a=np.zeros(2))
        message = "UniRef: msdeform, unifusion, features, "
    elif case == "missing":
        recording.unlink()
    elif case == "text":
        recording.write_text("nothing recorded")
    else:
        manifest = recording.with_name("manifest.json")
        manifest.write_text("[1, 2]")
        arguments = [recording, "--manifest", manifest, *SMALL]
        message = "is not of the form {key: [shape, dtype]}"
    assert check(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.err.startswith("error: ") and message in captured.err
    assert captured.err.count("\n") == 1


def test_the_model_follows_from_manifest_and_file() -> None:
    def config(stem: str, manifest: str | None = None, **arrays: np.ndarray) -> str:
        keys = None
        if manifest is not None:
            keys = json.loads((DATA / f"manifest_{manifest}.json").read_text())
        given = {name.replace("__", "/"): array for name, array in arrays.items()}
        return choose_config(Recording(Path(f"{stem}.npz"), given, keys)).stem

    assert config("golden_det") == "video_joint_r50"
    assert config("golden_det", "r50") == "video_joint_r50"
    assert config("golden_det", "swinl") == "video_joint_swin_l"
    assert config("hidden_swinl_vos") == "video_joint_swin_l"
    assert config("golden_det", "pretrain_r50") == "pretrain_objects365_r50"
    boxes = np.zeros((1, 4))
    assert config("golden_train_boxinst", in__boxes0=boxes) == "pretrain_objects365_r50"
