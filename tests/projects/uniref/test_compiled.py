"""How often a compiled model compiles while objects come and go."""

from __future__ import annotations

from functools import partialmethod

import numpy as np
import pytest
import torch
from torch import nn

from tests.projects.uniref.tiny import make_uniref
from unified import VideoPredictor
from unified.inference.prepared import compiler_works
from unified.structures import Prompt


def test_a_number_of_objects_compiles_nothing_once_two_numbers_were_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One object has graphs of its own; those of several leave their number free."""
    if not compiler_works(torch.device("cpu")):
        pytest.skip("torch.compile finds no compiler here")
    # What is compiled is counted; what the compiler makes of it is not run here.
    monkeypatch.setattr(nn.Module, "compile", partialmethod(nn.Module.compile, backend="eager"))
    torch._dynamo.reset()
    counters = torch._dynamo.utils.counters
    counters.clear()
    given = {"short_side": 64, "max_size": 64, "score_threshold": 0.0}
    predictor = VideoPredictor(make_uniref(num_layers=1), compile=True, **given)
    plain = VideoPredictor(make_uniref(num_layers=1), **given)
    rng = np.random.default_rng(0)
    graphs = []
    for num in (1, 3, 2, 9, 1):
        for each in (predictor, plain):
            each.reset()
        for step in range(2):
            frame = rng.integers(0, 256, (64, 64, 3), dtype=np.uint8)
            masks = {i: Prompt(mask=rng.random((64, 64)) > 0.5) for i in range(1, num + 1)}
            ours, expected = (x.step(frame, {} if step else masks) for x in (predictor, plain))
            assert (ours.label_map != expected.label_map).mean() < 0.002
        graphs.append(counters["stats"]["unique_graphs"])
    torch._dynamo.reset()
    assert 0 < graphs[0] < graphs[1], "what is counted is not what is compiled"
    assert graphs[1:] == [graphs[1]] * 4
