"""ReSTR's released code recorded, on weights made from the names of its keys."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from projects.restr.checkpoint import find_restr_keys, restr_keys
from projects.restr.parity import build_model, check, is_recording, read_notes
from unified.errors import InputError

DATA = Path(__file__).parents[2] / "data" / "restr"
COUNTS = {"backbone": 87_108_328 - 769_000, "text_encoder": 10_369_704, "fusion": 32_281_440}


def arrays(stem: str) -> dict[str, np.ndarray]:
    with np.load(DATA / f"{stem}.npz") as file:
        return {name: file[name] for name in file.files}


@pytest.mark.parametrize(
    ("stem", "kind", "outputs"),
    [
        ("restr_fusion_small", "fusion", 2),
        ("restr_fusion_small_shared4", "fusion", 2),
        ("restr_full_96", "full", 12),
    ],
)
def test_recordings_are_reproduced(stem: str, kind: str, outputs: int) -> None:
    path = DATA / f"{stem}.npz"
    assert is_recording(path, kind)
    results = check(path, arrays(stem), kind)
    assert len(results) == outputs
    assert [str(result) for result in results if not result.passed] == []


def test_a_wrong_number_is_found() -> None:
    changed = arrays("restr_fusion_small")
    changed["pixel_logits"][0, 0, 3, 3] += 1e-2
    results = check(DATA / "restr_fusion_small.npz", changed, "fusion")
    assert [result.name for result in results if not result.passed] == ["pixel_logits"]


def test_what_cannot_be_replayed_is_told(tmp_path: Path) -> None:
    file = tmp_path / "restr_fusion_x.npz"
    with pytest.raises(InputError, match=r"restr_fusion_x.json should lie beside restr_fusion_x"):
        check(file, arrays("restr_fusion_small"), "fusion")
    shutil.copy(DATA / "restr_fusion_small.json", tmp_path / "restr_fusion_x.json")
    more = arrays("restr_fusion_small") | {"attention": np.zeros(3)}
    with pytest.raises(InputError, match="no replay for the recorded arrays attention"):
        check(file, more, "fusion")


def test_published_numbers_of_parameters_and_keys() -> None:
    """At 480 pixels; the released ViT also has a classifier that nothing uses."""
    _, shapes = read_notes(DATA / "restr_full_96.npz")
    at_480 = dict(shapes) | {"encoder_v.pos_embed": (1, 901, 768)}
    with torch.device("meta"):
        model = build_model(at_480)
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    assert counts == COUNTS
    assert sum(counts.values()) + 769_000 == 129_759_472
    foreign = restr_keys().to_foreign(model.state_dict())
    unused = {"encoder_v.head.weight", "encoder_v.head.bias"}
    assert {k: tuple(v.shape) for k, v in foreign.items()} == {
        k: v for k, v in at_480.items() if k not in unused
    }


def test_both_layouts_are_recognised() -> None:
    official = json.loads((DATA / "restr_full_96.json").read_text())["manifest"]
    native, _ = restr_keys().to_native({key: torch.zeros(1) for key in official})
    for keys in (official, native):
        table = find_restr_keys(keys)
        assert table is not None and table.rules == restr_keys().rules
    assert find_restr_keys(["backbone.stem.conv1.weight", "head.seed"]) is None
