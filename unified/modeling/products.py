"""Matrix products of tokens and weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def project(layer: nn.Linear, x: Tensor, *, relu: bool = False) -> Tensor:
    """``layer(x)`` of a linear layer, and ReLU after it if asked for.

    On CPUs oneDNN computes it, where nothing is learnt: it is about a tenth faster than the library
    that torch takes for products, and bias and ReLU cost no passes of their own. Its ReLU makes
    zeros of numbers that are none. A layer of another class, as a quantised one, or with hooks is
    called.

    Args:
        x: (..., C).

    Returns:
        (..., D).
    """
    if _ONEDNN and reads_weights(x, layer):
        return _by_onednn(x, layer.weight, layer.bias, "relu" if relu else "none")
    product: Tensor = layer(x)
    return F.relu(product, inplace=True) if relu else product


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """``F.linear`` of a weight (D, C) that no layer holds, as fast as ``project``."""
    given = (x, weight) if bias is None else (x, weight, bias)
    if _ONEDNN and answers_on_cpu(*given):
        return _by_onednn(x, weight, bias, "none")
    return F.linear(x, weight, bias)


def reads_weights(x: Tensor, *layers: nn.Module) -> bool:
    """Whether a CPU may take the weights of layers for inputs as x, in place of calling them."""
    return all(
        type(layer) is nn.Linear
        and not (layer._forward_hooks or layer._forward_pre_hooks or "forward" in vars(layer))
        and answers_on_cpu(x, *layer.parameters())
        for layer in layers
    )


def answers_on_cpu(*tensors: Tensor) -> bool:
    """Whether a CPU computes float32 as it is, not to learn, compiled, traced or under autocast."""
    if torch.compiler.is_compiling() or torch.jit.is_tracing() or torch.is_grad_enabled():
        return False
    on_cpu = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return on_cpu and not torch.is_autocast_enabled("cpu")


def _by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """It takes strided inputs and weights, but reads a bias as if it were contiguous."""
    bias = None if bias is None else bias.contiguous()
    product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
    return product


# torch's own compiler calls it; no version promises it.
_ONEDNN = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
