"""What UniRef tells the toolkit about itself."""

from __future__ import annotations

import json
from fnmatch import fnmatch
from pathlib import Path

import pytest
import torch

from projects.uniref.checkpoint import uniref_keys
from projects.uniref.system import parameter_group
from tests.projects.uniref.tiny import MakeUniRef
from unified.engine.config import load_config
from unified.engine.profiles import count_multiply_adds

MANIFESTS = Path(__file__).parents[2] / "data/uniref"
# The reference's rules on its own keys: first match wins.
REFERENCE = (
    ("*backbone*", 2e-5),
    ("*sampling_offsets*", 2e-5),
    ("*reference_points*", 2e-5),
    ("*text_encoder*", 1e-5),
    ("*", 2e-4),
)


@pytest.mark.parametrize(
    ("manifest", "backbone"), [("manifest_r50", "resnet50"), ("manifest_swinl", "swin_large")]
)
def test_every_official_key_has_the_rate_of_the_reference(manifest: str, backbone: str) -> None:
    cfg = load_config(None, ["SOLVER.BASE_LR", "2e-4"])
    table = uniref_keys(backbone)
    counts: dict[float, int] = {}
    for key in json.loads((MANIFESTS / f"{manifest}.json").read_text()):
        native, report = table.to_native({key: torch.zeros(1)})
        if report.unused or report.aliases:
            continue
        expected = next(rate for pattern, rate in REFERENCE if fnmatch(key, pattern))
        assert parameter_group(next(iter(native)), cfg).lr == pytest.approx(expected), key
        counts[expected] = counts.get(expected, 0) + 1
    assert all(counts[rate] > 50 for rate in (2e-5, 1e-5, 2e-4))


def test_multiply_adds_of_a_uniref_are_counted(build_uniref: MakeUniRef) -> None:
    """What is faster on processors cannot be traced, and is not."""
    images = torch.zeros(1, 3, 64, 64)
    one, two = (count_multiply_adds(build_uniref(num_layers=n), images) for n in (1, 2))
    assert 0 < one < two
