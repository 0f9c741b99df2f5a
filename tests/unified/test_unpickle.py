"""Pickles of arrays are read; anything that could run code is refused before it does."""

from __future__ import annotations

import codecs
import os
import pickle
from collections import OrderedDict
from pathlib import Path

import numpy as np
import pytest

from unified.checkpoint import read_weights
from unified.errors import CheckpointError
from unified.unpickle import safe_load_pkl

CONTENT = {
    "model": OrderedDict(
        weight=np.arange(6, dtype=np.float32).reshape(2, 3),
        half=np.ones(3, dtype=np.float16),
        fortran=np.asfortranarray(np.arange(6.0).reshape(2, 3)),
        count=np.int64(3),
        flags=np.array([True, False]),
        names=np.array(["a", "bc"]),
    ),
    "text": "torchvision",
    "list": [1, 2.5, None, (True, b"bytes")],
}


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_arrays_and_containers_are_read(tmp_path: Path, protocol: int) -> None:
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps(CONTENT, protocol=protocol))
    content = safe_load_pkl(path)
    assert content["text"] == "torchvision" and content["list"] == CONTENT["list"]
    assert list(content["model"]) == list(CONTENT["model"])
    for key, expected in CONTENT["model"].items():
        assert content["model"][key].dtype == expected.dtype
        np.testing.assert_array_equal(content["model"][key], expected)


def test_names_of_both_numpy_generations_are_known(tmp_path: Path) -> None:
    written = pickle.dumps(CONTENT, protocol=2)
    for old, new in ((b"numpy._core.", b"numpy.core."), (b"numpy.core.", b"numpy._core.")):
        path = tmp_path / "weights.pkl"
        path.write_bytes(written.replace(old, new))
        np.testing.assert_array_equal(
            safe_load_pkl(path)["model"]["weight"], CONTENT["model"]["weight"]
        )


class _Call:
    """Pickles as a call of ``function``."""

    def __init__(self, function: object, *args: object) -> None:
        self.call = (function, args)

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        return self.call  # type: ignore[return-value]


@pytest.mark.parametrize("protocol", [0, 2, 4])
@pytest.mark.parametrize("reader", [safe_load_pkl, read_weights])
def test_malicious_pickles_run_nothing(tmp_path: Path, protocol: int, reader: object) -> None:
    victim = tmp_path / "victim"
    path = tmp_path / "evil.pkl"
    attacks = (
        _Call(os.mkdir, str(victim)),
        _Call(eval, f"__import__('os').mkdir({str(victim)!r})"),
        _Call(np.fromfile, os.devnull),
        _Call(codecs.encode, "text", "rot13"),
        np.array([_Call(os.mkdir, str(victim))], dtype=object),
    )
    for attack in attacks:
        path.write_bytes(pickle.dumps({"model": {"weight": attack}}, protocol=protocol))
        with pytest.raises(CheckpointError, match=r"evil\.pkl"):
            reader(path)  # type: ignore[operator]
        assert not victim.exists()


def test_damaged_and_missing_files_are_named(tmp_path: Path) -> None:
    path = tmp_path / "weights.pkl"
    written = pickle.dumps(CONTENT)
    for content in (b"", b"no pickle at all", written[: len(written) // 2]):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match=r"weights\.pkl"):
            safe_load_pkl(path)
    with pytest.raises(CheckpointError, match="cannot be read"):
        safe_load_pkl(tmp_path / "none.pkl")
