"""The REFER reader against what the official readers returned for the same small files."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from unified.data.formats.refer import read_refer
from unified.errors import InputError

DATA = Path(__file__).parents[3] / "data"
EXPECTED = json.loads((DATA / "refer_mini_expected.json").read_text())
SETS = [name for name in EXPECTED if name != "note"]


@pytest.mark.parametrize("name", SETS)
def test_agrees_with_official_reader(name: str) -> None:
    dataset, split_by = name[:-1].split("(")
    expected = EXPECTED[name]
    data = read_refer(DATA / "refer_mini" / dataset, split_by)
    assert len(data.refs) == expected["n_refs"]
    for split, ref_ids in expected["splits"].items():
        assert [ref.ref_id for ref in data.select(split)] == ref_ids
        if "n_expressions_per_split" in expected:
            total = sum(len(ref.sentences) for ref in data.select(split))
            assert total == expected["n_expressions_per_split"][split]
    masks = np.load(DATA / "refer_mini_masks.npz")
    prefix = dataset if dataset == "grefcoco" else f"{dataset}_{split_by}"
    for ref_id, entry in expected["refs"].items():
        ref = data.refs[int(ref_id)]
        official = masks[f"{prefix}_{ref_id}"]
        np.testing.assert_array_equal(data.mask(ref, parts="sum"), official)
        np.testing.assert_array_equal(data.mask(ref), official > 0)
        if dataset == "grefcoco":
            assert list(ref.ann_ids or (-1,)) == entry["ann_id"]
            assert (not ref.ann_ids) == entry["no_target"]
        else:
            assert data.box(ref) == tuple(entry["box_xywh"])
            assert list(ref.sentences) == entry["sents"]


class _Harmful:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('code in a pickle was run')",)


def test_pickle_that_runs_code_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "refcoco"
    shutil.copytree(DATA / "refer_mini" / "refcoco", folder)
    (folder / "refs(unc).p").write_bytes(pickle.dumps([_Harmful()], protocol=2))
    with pytest.raises(InputError, match=r"refs\(unc\)\.p.*refers to .*exec"):
        read_refer(folder, "unc")


def test_truncated_pickle_is_named(tmp_path: Path) -> None:
    folder = tmp_path / "refcoco"
    shutil.copytree(DATA / "refer_mini" / "refcoco", folder)
    path = folder / "refs(unc).p"
    path.write_bytes(path.read_bytes()[:200])
    with pytest.raises(InputError, match=r"refs\(unc\)\.p is not a readable pickle"):
        read_refer(folder, "unc")


def test_missing_file_and_foreign_ids_are_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"refs\(umd\)\.p is missing"):
        read_refer(tmp_path, "umd")
    folder = tmp_path / "mixed"
    shutil.copytree(DATA / "refer_mini" / "refcoco", folder)
    instances = json.loads((folder / "instances.json").read_text())
    instances["annotations"] = instances["annotations"][1:]
    (folder / "instances.json").write_text(json.dumps(instances))
    with pytest.raises(InputError, match=r"names annotation 1000.*different releases"):
        read_refer(folder, "unc")


@pytest.mark.parametrize("protocol", [0, 1, 2])
def test_every_python_2_protocol_is_read(tmp_path: Path, protocol: int) -> None:
    folder = tmp_path / "refcoco"
    shutil.copytree(DATA / "refer_mini" / "refcoco", folder)
    path = folder / "refs(unc).p"
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()), protocol=protocol))
    assert len(read_refer(folder, "unc").refs) == 14
