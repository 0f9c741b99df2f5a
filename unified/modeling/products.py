"""Matrix products of tokens and weights."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, *, relu: bool = False) -> Tensor:
    """``F.linear``, and ReLU after it if asked for.

    On CPUs oneDNN computes it, where nothing is learnt: it is about a tenth faster than the library
    that torch takes for products, and bias and ReLU cost no passes of their own.

    Args:
        x: (..., C).
        weight: (D, C), also a view.
        bias: (D,).

    Returns:
        (..., D).
    """
    if _ONEDNN and answers_on_cpu(x, weight):
        activation = "relu" if relu else "none"
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "")
        return product
    product = F.linear(x, weight, bias)
    return F.relu(product, inplace=True) if relu else product


def answers_on_cpu(*tensors: Tensor) -> bool:
    """Whether a CPU computes float32 as it is, not to learn, compiled or under autocast."""
    if torch.compiler.is_compiling() or torch.is_grad_enabled():
        return False
    on_cpu = all(x.device.type == "cpu" and x.dtype == torch.float32 for x in tensors)
    return on_cpu and not torch.is_autocast_enabled("cpu")


_ONEDNN = torch.backends.mkldnn.is_available()
