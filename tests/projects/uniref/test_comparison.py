"""The comparison of fusion layers in the small model is complete."""

from __future__ import annotations

from pathlib import Path

from unified.engine.comparison import read_comparison
from unified.engine.config import default_config
from unified.modeling.fusion import FUSION_REGISTRY

ROOT = Path(__file__).parents[3]


def test_all_fusion_layers_are_compared_with_equal_budgets() -> None:
    default_config()  # imports the layers that systems bring
    comparison = read_comparison(ROOT / "configs/fusions_tiny.yaml")
    mine = {name for name, layer in FUSION_REGISTRY.items() if "tests" not in layer.__module__}
    assert set(comparison.values) == mine
