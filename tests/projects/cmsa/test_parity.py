"""CMSA's graph recorded in float64, and the layout of the released variables."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from projects.cmsa.checkpoint import CMSA_KEYS, find_cmsa_keys
from projects.cmsa.deeplab import build_deeplab
from projects.cmsa.model import Cmsa
from projects.cmsa.parity import WEIGHTS, build, check, is_recording
from unified.checkpoint import read_weights
from unified.errors import InputError
from unified.modeling.vocabulary import Vocabulary, WordTable

FILE = Path(__file__).parents[2] / "data" / "cmsa" / "cmsa_derived_small.npz"


def arrays() -> dict[str, np.ndarray]:
    with np.load(FILE) as file:
        return {name: file[name] for name in file.files}


def test_the_recording_is_reproduced() -> None:
    assert is_recording(arrays())
    results = check(arrays())
    assert len(results) == 29
    assert max(result.error for result in results) < 1e-12


def test_a_wrong_number_is_found() -> None:
    changed = arrays()
    changed["w5_score"] = changed["w5_score"] + 1e-3
    assert [result.name for result in check(changed) if not result.passed] == ["w5_score"]


def test_an_unknown_output_is_told() -> None:
    with pytest.raises(InputError, match="no replay for the recorded arrays w5_crf"):
        check(arrays() | {"w5_crf": np.zeros(3)})


def test_released_variables_come_back(tmp_path: Path) -> None:
    """The recorded ones, read from a file, through our layout and back: the same numbers."""
    released = {k.removeprefix(WEIGHTS): v for k, v in arrays().items() if k.startswith(WEIGHTS)}
    np.savez(tmp_path / "model.npz", **released)
    weights = read_weights(tmp_path / "model.npz")
    assert find_cmsa_keys(weights) is CMSA_KEYS and CMSA_KEYS.is_foreign(weights)
    native, report = CMSA_KEYS.to_native(weights)
    assert not report.unexpected and not report.unused
    back = CMSA_KEYS.to_foreign(native | {"text_encoder.words": torch.zeros(3)})
    assert set(back) == set(released)
    for name, value in released.items():
        assert np.array_equal(back[name].numpy(), value), name


def test_published_numbers_of_parameters() -> None:
    """Those of the head, and every entry of the trunk has a name of DeepLab's."""
    with torch.device("meta"):
        model = Cmsa(
            backbone=build_deeplab(),
            text_encoder=WordTable(Vocabulary(), dim=1000, context_length=20, size=12112),
        )
    counts = {
        name: sum(parameter.numel() for parameter in part.parameters())
        for name, part in model.named_children()
    }
    attention = [
        sum(p.numel() for n, p in part.named_parameters() if n.split(".")[0] in _ATTENTION)
        for part in model.attentions
    ]
    reduce = [sum(p.numel() for p in part.reduce.parameters()) for part in model.attentions[:2]]
    project = [sum(p.numel() for p in part.project.parameters()) for part in model.attentions]
    assert counts["text_encoder"] == 12_112_000
    assert counts["reduce"] == 2_049_000
    assert attention == [33_088, 131_712, 4_115_928]
    assert reduce == [194_688, 520_448]
    assert project == [64_500, 128_500, 1_004_500]
    assert counts["fusion"] == 20_254_503
    assert sum(counts.values()) - counts["backbone"] == 40_613_368
    foreign = CMSA_KEYS.to_foreign(model.state_dict())
    assert foreign["res4b22_branch2c/weights"].shape == (1, 1, 256, 1024)
    assert foreign["bn5c_branch2b/moving_variance"].shape == (512,)
    assert len(foreign) == len(model.state_dict()) - 1


_ATTENTION = ("query", "key", "value", "output")


def test_the_model_of_a_recording_is_the_published_one_in_small() -> None:
    model = build(arrays())
    assert model.text_encoder.table.weight.shape == (50, 20)
    assert [part.query.out_features for part in model.attentions] == [4, 6, 8]
