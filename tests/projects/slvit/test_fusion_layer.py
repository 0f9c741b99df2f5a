"""That GatedFusion keeps the contract of fusion layers is tested where all of them are."""

from __future__ import annotations

import torch

from projects.slvit.attention import GatedCrossAttention
from projects.slvit.fusion_layer import GatedFusion
from unified.engine.config import load_config
from unified.engine.system import system
from unified.modeling.fusion import FUSION_REGISTRY
from unified.structures import Reference


def test_it_adds_slvits_attention() -> None:
    torch.manual_seed(0)
    layer = GatedFusion(dim=8, num_heads=4, head_dim=16)
    torch.nn.init.normal_(layer.attention.gate[2].weight)
    plain = GatedCrossAttention(dim=8, context_dim=8)
    state = layer.attention.state_dict()
    biases = {f"{name}.bias": torch.zeros(8) for name in ("query", "key", "value", "out")}
    plain.load_state_dict({**state, **biases})
    tokens, words = torch.randn(2, 12, 8), torch.randn(2, 5, 8)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    padding[1, 3:] = True
    normal = layer.norm_key(words)
    fused = layer(tokens, [Reference(normal, normal, padding, words[:, 0])])
    again = layer.norm_key(normal)
    expected = plain(tokens, again, padding, values=normal).tokens
    torch.testing.assert_close(fused - tokens, expected, atol=1e-5, rtol=1e-5)


def test_uniref_takes_it_by_name() -> None:
    options = ["MODEL.UNIREF.FUSION.NAME", "GatedFusion"]
    cfg = load_config("configs/lite/uniref_lite.yaml", options)
    assert FUSION_REGISTRY["GatedFusion"] is GatedFusion
    assert isinstance(system("UniRef").build(cfg).fusion, GatedFusion)
