"""What the predictors make of a model."""

from __future__ import annotations

from typing import ClassVar

import pytest
import torch
from torch import nn

from unified.errors import InputError
from unified.inference.prepared import Preparation, compiler_works, is_compiled, prepared
from unified.modeling.backbones import build_backbone


def test_a_model_without_norms_is_run_as_it_is() -> None:
    plain = nn.Conv2d(1, 1, 1).eval()
    assert prepared(plain) is plain


def test_norms_are_folded_once_and_the_twin_can_be_used_anywhere() -> None:
    backbone = build_backbone("efficientnet_lite0").eval()
    with torch.inference_mode():
        ready = prepared(backbone)
    assert ready is not backbone and prepared(ready) is ready
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    ready(images)["res5"].sum().backward()  # no tensor of inference mode is in the way
    assert images.grad is not None


def test_folded_weights_follow_a_model_that_is_moved_or_changed() -> None:
    backbone = build_backbone("efficientnet_lite0").eval()
    preparation = Preparation(backbone, "float32", compile=False)
    assert not preparation.follow()
    images = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        next(backbone.parameters()).mul_(1.5)
    assert preparation.follow()
    statistics = next(x for name, x in backbone.named_buffers() if name.endswith("running_mean"))
    statistics.add_(0.5)
    assert preparation.follow() and not preparation.follow()
    with torch.inference_mode():
        ours, expected = preparation.ready(images), backbone(images)
    torch.testing.assert_close(ours["res5"], expected["res5"], atol=1e-4, rtol=1e-4)
    for place in (torch.float64, torch.device("meta")):
        backbone.to(place)
        assert preparation.follow() and not preparation.follow()
        tensors = [*preparation.ready.parameters(), *preparation.ready.buffers()]
        found = {x for each in tensors for x in (each.dtype, each.device) if type(x) is type(place)}
        assert found - {torch.int64} == {place}


class Doubling(nn.Module):
    """A model of one part that can be compiled, and of one that stays as it is."""

    compiled_parts: ClassVar[tuple[str, ...]] = ("part", "absent")

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(nn.Linear(4, 4), nn.ReLU())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * self.part(x)


def test_compiled_parts_answer_alike_and_a_changed_size_compiles_once() -> None:
    if not compiler_works(torch.device("cpu")):
        pytest.skip("torch.compile finds no compiler here")
    model = Doubling().eval()
    ready = prepared(model, compile=True)
    counters = torch._dynamo.utils.counters
    counters.clear()
    graphs = []
    for num in (1, 1, 3, 3, 5, 7):
        x = torch.randn(num, 4)
        with torch.inference_mode():
            torch.testing.assert_close(ready(x), model(x))
        graphs.append(counters["stats"]["unique_graphs"])
    assert graphs[0] == graphs[1] == 1 and 1 < graphs[2] <= 3
    assert graphs[2] == graphs[3] == graphs[4] == graphs[5]
    assert prepared(ready, compile=True) is ready and is_compiled(ready)


def test_without_a_compiler_one_line_says_so(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: object) -> object:
        raise RuntimeError("no g++\nand more")

    monkeypatch.setattr(torch, "compile", fail)
    model = Doubling().eval()
    compiler_works.cache_clear()
    assert prepared(model, compile=True) is model and prepared(model, compile=True) is model
    assert not is_compiled(prepared(model, compile=True)), "progress lines would say that it is"
    compiler_works.cache_clear()
    assert caplog.messages == ["not compiled, as there is no compiler that works: no g++"]


def test_a_model_without_parts_to_compile_is_refused() -> None:
    with pytest.raises(InputError, match="no part that is compiled: leave out compile"):
        prepared(nn.Linear(2, 2).eval(), compile=True)
