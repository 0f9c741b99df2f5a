"""The table of all systems: what is counted is right, and every system has a row."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.engine.profiles import count_multiply_adds, profiled
from unified.engine.system import find_systems
from unified.structures import FeaturePyramid, ImageBatch, Reference, Segmentation

ROOT = Path(__file__).parents[3]


class Counted(nn.Module):
    """As little as a model can do: one projection of pixels and one attention to three words."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 8, bias=False)

    def preprocess(self, images: list[Tensor]) -> ImageBatch:
        return ImageBatch.from_images(images, mean=torch.zeros(3), std=torch.ones(3), divisor=1)

    def encode_image(self, images: ImageBatch) -> FeaturePyramid:
        level = self.linear(images.tensor.movedim(1, -1)).movedim(-1, 1)
        return FeaturePyramid(
            levels=(level,),
            padding_masks=(images.padding_mask,),
            image_sizes=images.image_sizes,
            padded_size=images.padded_size,
        )

    def encode_text(self, texts: list[str]) -> tuple[Reference, ...]:
        words = torch.ones(len(texts), 3, 8)
        return (Reference(words, words, torch.zeros(len(texts), 3, dtype=bool), words[:, 0]),)

    def segment(
        self, features: FeaturePyramid, references: list[tuple[Reference, ...]]
    ) -> Segmentation:
        words = references[0][0].keys[:, None]
        query = features.levels[0].flatten(2).transpose(1, 2)[:, None]  # (B, 1, H*W, 8)
        attended = F.scaled_dot_product_attention(query, words, words)
        logits = attended.mean(dim=-1).unflatten(2, features.levels[0].shape[-2:])
        return Segmentation.of_masks(logits, features)


def test_projections_and_both_products_of_attention_are_counted() -> None:
    pixels = 6 * 5
    counted = count_multiply_adds(Counted(), torch.zeros(1, 3, 6, 5))
    assert counted == pixels * 3 * 8 + 2 * pixels * 3 * 8


def test_every_system_of_the_toolkit_has_a_row() -> None:
    systems = {
        name for name, found in find_systems().items() if found.build.__module__[:4] == "proj"
    }
    rows = profiled()
    with_rows = {
        name
        for name, found in find_systems().items()
        if any(model in rows for model in found.models)
    }
    assert systems and systems <= with_rows


def test_the_tool_prints_a_row_of_a_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools/benchmark.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    file = tmp_path / "rows.json"
    arguments = ["systems", "--model", "uniref-lite", "--threads", "1", "--frames", "1"]
    assert tool.main([*arguments, "--json", str(file)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == row.count("|")
    measured = json.loads(file.read_text())["uniref-lite"]
    assert measured["multiply_adds"] > 1e9 and measured["parameters"] > 1e7
    assert 0.3 < measured["ratio"] < 3  # of itself
    assert 200 < measured["peak_mb"] < 4000
    assert tool.main(["systems", "--model", "uniref-swin-l"]) == 2
    assert "has no row in the table: choose among" in capsys.readouterr().err
