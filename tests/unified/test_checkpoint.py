from __future__ import annotations

import os
import pickle
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unified.checkpoint import (
    FOREIGN_PREFIX,
    KeyTable,
    load_weights,
    read_weights,
    write_weights,
)
from unified.errors import CheckpointError

TABLE = KeyTable(
    rules=[
        ("net.body.*.w", "body.*.weight"),
        ("net.body.*.b", "body.*.bias"),
        ("net.*", "rest.*"),
    ],
    aliases=[("net.copy.*", "net.body.*")],
    unused=["counter", "old.*"],
)


def foreign() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    weights = {
        f"net.body.{i}.{x}": torch.randn(3, 2, generator=generator) for i in (0, 1) for x in "wb"
    }
    weights |= {f"net.copy.{i}.{x}": weights[f"net.body.{i}.{x}"] for i in (0, 1) for x in "wb"}
    return {
        **weights,
        "net.head": torch.randn(4, generator=generator).to(torch.bfloat16),
        "counter": torch.tensor(7),
        "old.thing.x": torch.tensor([True, False]),
    }


def identical(ours: dict[str, Tensor], expected: dict[str, Tensor]) -> bool:
    return ours.keys() == expected.keys() and all(
        ours[key].dtype == tensor.dtype and torch.equal(ours[key], tensor)
        for key, tensor in expected.items()
    )


# ---------------------------------------------------------------- names


def test_the_first_rule_that_matches_wins_and_leftovers_are_listed() -> None:
    native, report = TABLE.to_native({**foreign(), "stranger": torch.ones(1)})
    assert set(native) == {
        "body.0.weight",
        "body.0.bias",
        "body.1.weight",
        "body.1.bias",
        "rest.head",
        "foreign.counter",
        "foreign.old.thing.x",
        "foreign.stranger",
    }
    assert torch.equal(native["body.1.bias"], foreign()["net.body.1.b"])
    assert report.aliases == [f"net.copy.{i}.{x}" for i in (0, 1) for x in "wb"]
    assert report.unused == ["counter", "old.thing.x"]
    assert report.unexpected == ["stranger"]


def test_there_and_back_gives_every_entry_bit_by_bit() -> None:
    given = {**foreign(), "stranger": torch.ones(1)}
    native, _ = TABLE.to_native(given)
    assert identical(TABLE.to_foreign(native), given)


def test_a_pattern_star_stands_for_dots_too_and_for_at_least_one_letter() -> None:
    table = KeyTable(rules=[("a.*.z", "b.*")])
    native, report = table.to_native({"a.x.y.z": torch.ones(1), "a..z": torch.ones(1)})
    assert "b.x.y" in native and report.unexpected == ["a..z"]


def test_convolutions_of_kernel_one_become_linear_layers_and_back() -> None:
    table = KeyTable(rules=[("theirs.*", "ours.*")], convolutions=["theirs.conv.weight"])
    foreign = {"theirs.conv.weight": torch.rand(4, 3, 1), "theirs.other.weight": torch.rand(4, 1)}
    native, _ = table.to_native(foreign)
    assert {key: tuple(value.shape) for key, value in native.items()} == {
        "ours.conv.weight": (4, 3),
        "ours.other.weight": (4, 1),
    }
    assert identical(table.to_foreign(native), foreign)


def test_an_alias_that_differs_is_refused() -> None:
    given = foreign()
    given["net.copy.0.w"] = given["net.copy.0.w"] + 1
    with pytest.raises(CheckpointError, match=r"net\.copy\.0\.w should be the same as net\.body"):
        TABLE.to_native(given)


def test_two_entries_of_one_name_are_refused() -> None:
    table = KeyTable(rules=[("a.*", "x.*"), ("b.*", "x.*")])
    with pytest.raises(CheckpointError, match=r"both become x\.w"):
        table.to_native({"a.w": torch.ones(1), "b.w": torch.ones(1)})


def test_what_has_no_foreign_name_cannot_be_exported() -> None:
    with pytest.raises(CheckpointError, match="novelty has no counterpart"):
        TABLE.to_foreign({"novelty": torch.ones(1)})


def test_the_layout_is_recognised() -> None:
    native, _ = TABLE.to_native(foreign())
    assert TABLE.is_foreign(foreign()) and not TABLE.is_foreign(native)
    assert not TABLE.is_foreign({})


# ---------------------------------------------------------------- files


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
def test_written_files_read_back_identically(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / "new" / f"weights{suffix}"
    weights = foreign()
    write_weights(path, weights)
    assert identical(read_weights(path), weights), "shared and strided tensors included"
    view = {"x": torch.arange(6.0).view(2, 3).t()}
    write_weights(path, view)
    assert identical(read_weights(path), view)
    assert [file.name for file in path.parent.iterdir()] == [path.name]


@contextmanager
def small_disk(limit: int) -> Iterator[None]:
    """No file of this process can grow beyond ``limit`` bytes."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_full_disk_is_a_clear_error_and_leaves_the_old_file(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"weights{suffix}"
    write_weights(path, {"x": torch.ones(2)})
    with (
        small_disk(50_000),
        pytest.raises(CheckpointError, match=r"weights\.\w+ cannot be written"),
    ):
        write_weights(path, {"x": torch.ones(100_000)})
    assert identical(read_weights(path), {"x": torch.ones(2)})
    assert [file.name for file in tmp_path.iterdir()] == [path.name]


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_a_folder_that_cannot_be_made(tmp_path: Path, suffix: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(CheckpointError, match="cannot be written"):
        write_weights(tmp_path / "file" / f"weights{suffix}", {"x": torch.ones(2)})


@pytest.mark.parametrize("key", ["model", "state_dict"])
def test_a_training_checkpoint_is_opened_to_its_model(tmp_path: Path, key: str) -> None:
    path = tmp_path / "model_0001.pth"
    torch.save(
        {
            key: {"x": torch.ones(2), "epoch": 3, "name": "abc"},
            "optimizer": {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"lr": 1.0}]},
            "iteration": 9,
        },
        path,
    )
    assert identical(read_weights(path), {"x": torch.ones(2)})


def test_detectron2_pickles_of_arrays(tmp_path: Path) -> None:
    path = tmp_path / "R-50.pkl"
    content = {"model": {"w": np.ones((2, 2), np.float32)}, "__author__": "someone"}
    path.write_bytes(pickle.dumps(content))
    assert identical(read_weights(path), {"w": torch.ones(2, 2)})


class Bomb:
    """Would make a file when unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("raw", [False, True])
@pytest.mark.parametrize("suffix", [".pth", ".pkl", ".bin"])
def test_a_pickle_that_runs_code_is_refused_and_does_not_run(
    tmp_path: Path, suffix: str, raw: bool
) -> None:
    path, target = tmp_path / f"bomb{suffix}", tmp_path / "boom"
    content = {"model": {"x": Bomb(target)}}
    if raw or suffix == ".pkl":
        path.write_bytes(pickle.dumps(content))
    else:
        torch.save(content, path)
    with pytest.raises(CheckpointError, match="could run code"):
        read_weights(path)
    assert not target.exists()


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl"])
@pytest.mark.parametrize("keep", [0.0, 0.02, 0.5, 0.99])
def test_a_truncated_file_is_named(tmp_path: Path, suffix: str, keep: float) -> None:
    path = tmp_path / f"weights{suffix}"
    weights = {f"layer{i}": torch.randn(40, 40) for i in range(5)}
    if suffix == ".pkl":
        path.write_bytes(pickle.dumps({key: x.numpy() for key, x in weights.items()}))
    else:
        write_weights(path, weights)
    path.write_bytes(path.read_bytes()[: int(keep * path.stat().st_size)])
    with pytest.raises(
        CheckpointError, match=r"weights\.\w+ (cannot be read|is damaged|is not|is empty)"
    ):
        read_weights(path)


@pytest.mark.parametrize("suffix", [".pth", ".safetensors", ".pkl", ".npz", ".bin"])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "version https://git-lfs.github.com/spec/v1\noid sha256:abc\n",
            "is a Git LFS pointer, not",
        ),
        ("\n<!DOCTYPE html><html>Google Drive - Quota exceeded", "is a web page, not weights"),
        ("hello world", "cannot be read|is not a plain pickle"),
        ("", "is empty"),
    ],
)
def test_what_was_downloaded_instead_of_weights_is_told(
    tmp_path: Path, suffix: str, content: str, message: str
) -> None:
    (tmp_path / f"w{suffix}").write_text(content)
    with pytest.raises(CheckpointError, match=rf"w\{suffix} ({message})") as caught:
        read_weights(tmp_path / f"w{suffix}")
    assert "weights_only" not in str(caught.value) and "\n" not in str(caught.value)


def test_pickles_are_refused_without_advice_to_run_them(tmp_path: Path) -> None:
    model, plain, arrays = (tmp_path / name for name in ("model.pth", "plain.pth", "a.npz"))
    torch.save(torch.nn.Linear(2, 2), model)
    plain.write_bytes(pickle.dumps({"a": 1}, protocol=4))
    np.savez(arrays, a=np.array([{}], dtype=object))
    for path, named in ((model, "torch.nn.modules.linear.Linear"), (plain, ""), (arrays, "")):
        with pytest.raises(CheckpointError, match="could run code and are not read") as caught:
            read_weights(path)
        message = str(caught.value)
        assert named in message and "\n" not in message
        assert not any(word in message for word in ("weights_only", "allow_pickle", "arbitrary"))


def test_text_under_the_name_of_weights(tmp_path: Path) -> None:
    for suffix in (".pth", ".safetensors", ".pkl"):
        path = tmp_path / f"page{suffix}"
        path.write_text("<html>404 not found</html>")
        with pytest.raises(CheckpointError, match="page"):
            read_weights(path)


@pytest.mark.parametrize(
    "content",
    [{}, {"model": {}}, [torch.ones(1)], torch.ones(3), {"a": 1, "b": "c"}, {0: torch.ones(1)}],
    ids=["empty", "empty model", "list", "tensor", "no tensors", "numbered"],
)
def test_files_without_named_tensors(tmp_path: Path, content: object) -> None:
    path = tmp_path / "odd.pth"
    torch.save(content, path)
    with pytest.raises(CheckpointError, match=r"odd\.pth holds no tensors"):
        read_weights(path)


def test_a_pickle_with_text_arrays_gives_its_numbers(tmp_path: Path) -> None:
    path = tmp_path / "odd.pkl"
    path.write_bytes(pickle.dumps({"w": np.ones(2, np.float32), "names": np.array(["a", "b"])}))
    assert identical(read_weights(path), {"w": torch.ones(2)})


def test_missing_files_and_folders(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pth", tmp_path):
        with pytest.raises(CheckpointError, match="does not exist"):
            read_weights(path)


# ---------------------------------------------------------------- loading


def model() -> nn.Module:
    torch.manual_seed(0)
    body = nn.ModuleList([nn.Linear(2, 3), nn.Linear(3, 2)])
    return nn.ModuleDict({"body": body, "norm": nn.BatchNorm1d(2)})


def filled(value: float = 0.5) -> dict[str, Tensor]:
    return {key: torch.full_like(x, value) for key, x in model().state_dict().items()}


def test_every_entry_is_loaded() -> None:
    net = model()
    report = load_weights(net, filled())
    assert identical(dict(net.state_dict()), filled())
    assert report.loaded == len(filled()) and not (report.missing or report.unexpected)


def test_the_foreign_layout_is_loaded_directly() -> None:
    rules = [(f"official.{part}.*", f"{part}.*") for part in ("body", "norm")]
    table = KeyTable(rules=rules, unused=["criterion.*"])
    net = model()
    load_weights(
        net,
        {**{f"official.{k}": x for k, x in filled().items()}, "criterion.n": torch.ones(1)},
        table=table,
    )
    assert identical(dict(net.state_dict()), filled())


def test_entries_kept_for_the_way_back_are_no_weights() -> None:
    net = model()
    load_weights(net, {**filled(), f"{FOREIGN_PREFIX}criterion.n": torch.ones(1)})
    assert identical(dict(net.state_dict()), filled())


def changed(case: str) -> dict[str, Tensor]:
    weights = filled()
    if case == "missing":
        del weights["body.0.bias"]
    elif case == "unexpected":
        weights["tail.weight"] = torch.ones(1)
    else:
        weights["body.1.weight"] = torch.ones(5, 3)
    return weights


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("missing", r"1 missing \(body\.0\.bias\)"),
        ("unexpected", r"1 unexpected \(tail\.weight\)"),
        ("shape", r"1 of another shape \(body\.1\.weight: expected \(2, 3\), got \(5, 3\)\)"),
    ],
)
def test_anything_else_is_refused_and_nothing_is_loaded(case: str, message: str) -> None:
    net = model()
    before = {key: x.clone() for key, x in net.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as caught:
        load_weights(net, changed(case), source="some.pth")
    assert str(caught.value).startswith("some.pth belong to another model")
    assert identical(dict(net.state_dict()), before)


def test_optional_and_reinitialised_parts_keep_their_values() -> None:
    net = model()
    before = net.state_dict()["body.1.weight"].clone()
    report = load_weights(net, changed("shape"), reinitialise=("body.1.",))
    assert report.mismatched == ("body.1.weight",)
    assert torch.equal(net.state_dict()["body.1.weight"], before)
    assert net.state_dict()["body.1.bias"].eq(0.5).all(), "what fits is loaded"
    report = load_weights(model(), changed("missing"), optional=("body.0.",))
    assert report.missing == ()


def test_weights_are_cast_to_the_dtype_of_the_model() -> None:
    net = model()
    load_weights(net, {key: x.double() for key, x in filled().items()})
    assert net.state_dict()["body.0.weight"].dtype == torch.float32
