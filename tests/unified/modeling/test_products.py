"""Products by oneDNN are those of torch, and layers that others changed are called."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.products import linear, project
from unified.modeling.transformer import EncoderLayer, TokenLayout

DIM = 16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def test_products_are_those_of_torch() -> None:
    """Of views, too, in each of the three places."""
    x, weight, bias = torch.randn(2, 9, 24), torch.randn(24, 16), torch.randn(32)[::2]
    expected = F.linear(x, weight.t(), bias)
    with torch.no_grad():
        torch.testing.assert_close(linear(x, weight.t(), bias), expected)
        turned = linear(x.transpose(0, 1), weight.t(), bias)
        torch.testing.assert_close(linear(x, weight.t()), F.linear(x, weight.t()))
    torch.testing.assert_close(turned.transpose(0, 1), expected)
    assert linear(x, weight.requires_grad_().t(), bias).requires_grad


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("bias", [False, True])
def test_layers_give_what_they_give_to_learn(relu: bool, bias: bool) -> None:
    layer, x = nn.Linear(DIM, 24, bias=bias), torch.randn(2, 9, DIM)
    expected = layer(x).relu() if relu else layer(x)
    with torch.no_grad():
        torch.testing.assert_close(project(layer, x, relu=relu), expected)
    learnt = project(layer, x, relu=relu)
    torch.testing.assert_close(learnt, expected)
    assert learnt.requires_grad


def test_what_does_not_match_is_left_to_torch() -> None:
    with torch.no_grad(), pytest.raises(RuntimeError, match="same dtype"):
        linear(torch.randn(3, DIM), torch.randn(DIM, DIM), torch.randn(DIM).half())


class Twice(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 2 * super().forward(x)


def test_layers_with_hooks_and_those_of_other_classes_are_called() -> None:
    x = torch.randn(3, DIM)
    with torch.no_grad():
        other = Twice(DIM, DIM)
        assert torch.equal(project(other, x), other(x))
        for register in ("register_forward_hook", "register_forward_pre_hook"):
            hooked, calls = nn.Linear(DIM, DIM), []
            getattr(hooked, register)(lambda *given, calls=calls: calls.append(given))
            project(hooked, x, relu=True)
            assert len(calls) == 1
        renewed = nn.Linear(DIM, DIM)
        renewed.forward = lambda x: x  # as ``recompute`` replaces it
        assert project(renewed, x) is x


def layer_and_inputs() -> tuple[EncoderLayer, tuple[object, ...]]:
    layer = EncoderLayer(
        dim=DIM, feedforward_dim=64, num_heads=4, num_levels=1, num_points=2, dropout=0.0
    )
    layout = TokenLayout.from_masks([torch.zeros(2, 6, 7, dtype=torch.bool)])
    return layer.eval(), (
        torch.randn(2, 42, DIM),
        torch.randn(2, 42, DIM),
        torch.rand(2, 42, 1, 2),
        layout,
    )


def test_every_layer_of_attention_is_called_where_it_has_a_hook() -> None:
    layer, given = layer_and_inputs()
    layers = {name: part for name, part in layer.named_modules() if isinstance(part, nn.Linear)}
    called: set[str] = set()
    for name, part in layers.items():
        part.register_forward_hook(lambda *_, name=name: called.add(name))
    with torch.no_grad():
        layer(*given)
    assert called == set(layers) and len(called) == 6


class WithoutWeight(nn.Module):
    """A layer as quantisation makes them: its ``weight`` is no tensor."""

    def __init__(self, layer: nn.Linear) -> None:
        super().__init__()
        self.inner = layer

    def weight(self) -> Tensor:
        return self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        product: Tensor = self.inner(x)
        return product


def test_layers_that_others_put_in_their_place_are_called() -> None:
    layer, given = layer_and_inputs()
    with torch.no_grad():
        expected = layer(*given)
        for owner in (layer, layer.self_attn):
            for name, part in list(owner.named_children()):
                if isinstance(part, nn.Linear):
                    setattr(owner, name, WithoutWeight(part))
        torch.testing.assert_close(layer(*given), expected)
