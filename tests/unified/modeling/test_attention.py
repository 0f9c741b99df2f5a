from __future__ import annotations

import math
import sys
from importlib.util import find_spec
from types import ModuleType

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from unified.devices import pick_device
from unified.errors import ConfigError
from unified.modeling import attention
from unified.modeling.attention import Backend, _warn_without_flash, attend, attend_alike


def inputs(
    dtype: torch.dtype = torch.float32, *, rows: int = 37, keys: int = 29
) -> tuple[Tensor, Tensor, Tensor]:
    """query, key, value of 2 images, 3 heads, width 16."""
    generator = torch.Generator().manual_seed(0)
    return (
        torch.randn(2, 3, rows, 16, generator=generator).to(dtype),
        torch.randn(2, 3, keys, 16, generator=generator).to(dtype),
        torch.randn(2, 3, keys, 16, generator=generator).to(dtype),
    )


def uneven_padding(keys: int = 29) -> Tensor:
    mask = torch.zeros(2, keys, dtype=torch.bool)
    mask[0, 20:], mask[1, 3:] = True, True
    return mask


PADDINGS = {"none": None, "empty": torch.zeros(2, 29, dtype=torch.bool), "uneven": uneven_padding()}


def by_hand(query: Tensor, key: Tensor, value: Tensor, padding_mask: Tensor | None) -> Tensor:
    """softmax(q k^T / sqrt(D)) v in double precision, one image, head and row at a time."""
    output = torch.zeros(query.shape, dtype=torch.float64)
    for image in range(query.shape[0]):
        keep = slice(None) if padding_mask is None else ~padding_mask[image]
        for head in range(query.shape[1]):
            keys, values = key[image, head][keep].double(), value[image, head][keep].double()
            for row in range(query.shape[2]):
                scores = keys @ query[image, head, row].double() / math.sqrt(query.shape[3])
                output[image, head, row] = scores.softmax(dim=0) @ values
    return output


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize(
    ("dtype", "tolerance"),
    [(torch.float32, 1e-5), (torch.bfloat16, 2e-2), (torch.float16, 2e-2)],
    ids=str,
)
def test_backends_agree_with_the_formula(
    backend: Backend, padding: str, dtype: torch.dtype, tolerance: float
) -> None:
    query, key, value = inputs(dtype)
    expected = by_hand(query, key, value, PADDINGS[padding])
    ours = attend(query, key, value, PADDINGS[padding], backend=backend)
    assert ours.dtype == dtype
    torch.testing.assert_close(ours.double(), expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("padding", PADDINGS)
def test_bfloat16_by_blocks_of_rows(padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Many blocks, the last of them incomplete, and one block that holds all."""
    query, key, value = inputs(torch.bfloat16, rows=77)
    mask = PADDINGS[padding]
    expected = by_hand(query, key, value, mask)
    whole = attend(query, key, value, mask)
    monkeypatch.setattr(attention, "_CPU_BLOCK_ENTRIES", 1)
    blocks = attend(query, key, value, mask)
    for ours in (whole, blocks):
        torch.testing.assert_close(ours.double(), expected, atol=2e-2, rtol=0)


def test_shared_weights_are_those_of_float32_inside_autocast() -> None:
    """Objects that remember one frame, in a model whose weights are stored in half precision."""
    query, key, value = inputs()
    padding = uneven_padding()[:1].expand(2, -1)
    with torch.no_grad():
        expected = attend_alike(query[:1], key[:1], value, padding)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            found = attend_alike(query[:1], key[:1], value, padding)
    torch.testing.assert_close(found, expected)


def test_objects_that_share_weights_are_compiled_as_one_graph() -> None:
    query, key, value = inputs()
    given = query[:1], key[:1], value, uneven_padding()[:1].expand(2, -1)
    with torch.no_grad():
        compiled = torch.compile(attend_alike, backend="eager", fullgraph=True)(*given)
        torch.testing.assert_close(compiled, attend_alike(*given))


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_gradients_agree_with_the_formula(backend: Backend, dtype: torch.dtype) -> None:
    tensors = [x.requires_grad_() for x in inputs(dtype)]
    exact = [x.detach().double().requires_grad_() for x in inputs(dtype)]
    attend(*tensors, uneven_padding(), backend=backend).sum().backward()
    scores = exact[0] @ exact[1].transpose(-1, -2) / 4
    scores = scores.masked_fill(uneven_padding()[:, None, None], -math.inf)
    (scores.softmax(dim=-1) @ exact[2]).sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 0.1
    for ours, expected in zip(tensors, exact, strict=True):
        assert ours.grad is not None and expected.grad is not None
        torch.testing.assert_close(ours.grad.double(), expected.grad, atol=tolerance, rtol=0.02)


def test_gradients_of_keys_and_values_when_the_query_needs_none() -> None:
    query, key, value = inputs(torch.bfloat16)
    key.requires_grad_(), value.requires_grad_()
    attend(query, key, value).sum().backward()
    assert key.grad is not None and value.grad is not None and value.grad.any()


class Masks(TorchFunctionMode):
    """Keeps the masks that torch's attention is given."""

    def __init__(self) -> None:
        super().__init__()
        self.given: list[Tensor | None] = []

    def __torch_function__(self, func, types, args=(), kwargs=None):
        if func is F.scaled_dot_product_attention:
            self.given.append(kwargs["attn_mask"])
        return func(*args, **(kwargs or {}))


def test_training_on_a_processor_has_a_mask_only_where_a_key_is_padded() -> None:
    """And one row for each image, which all heads and queries read."""
    tensors = [x.requires_grad_() for x in inputs()]
    with Masks() as masks:
        for padding in PADDINGS.values():
            attend(*tensors, padding)
    none, empty, uneven = masks.given
    assert none is None and empty is None
    assert uneven is not None and uneven.shape == (2, 1, 1, 29)


@pytest.mark.parametrize("backend", ["sdpa", "eager", "flash"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_padded_keys_have_no_influence(backend: Backend, dtype: torch.dtype) -> None:
    if backend == "flash" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    query, key, value = inputs(dtype)
    mask = uneven_padding()
    changed = [x.masked_fill(mask[:, None, :, None], 100.0) for x in (key, value)]
    assert torch.equal(
        attend(query, *changed, mask, backend=backend),
        attend(query, key, value, mask, backend=backend),
    )


@pytest.mark.parametrize("backend", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_dropout_drops_and_keeps_the_mean(backend: Backend, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    query, key, value = inputs(dtype)
    full = attend(query, key, value, backend=backend).float()
    draws = torch.stack(
        [attend(query, key, value, backend=backend, dropout=0.5).float() for _ in range(300)]
    )
    assert draws.std(dim=0).mean() > 0.1
    torch.testing.assert_close(draws.mean(dim=0), full, atol=0.15, rtol=0)


def test_unknown_backend() -> None:
    with pytest.raises(ConfigError, match="'math' is unknown: choose one of"):
        attend(*inputs(), backend="math")  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("flash_attn") is not None, reason="flash-attn is installed")
def test_flash_without_the_package_says_how_to_get_it() -> None:
    with pytest.raises(ConfigError, match="pip install"):
        attend(*inputs(torch.bfloat16), backend="flash")


def test_flash_in_float32_is_sdpa_with_one_warning(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "flash_attn", ModuleType("flash_attn"))  # never called here
    _warn_without_flash.cache_clear()
    tensors = inputs(torch.float32)
    results = [attend(*tensors, backend=backend) for backend in ("flash", "sdpa", "flash")]
    assert all(torch.equal(result, results[0]) for result in results)
    (warning,) = caplog.messages
    assert 'backend "flash"' in warning and "float32 on cpu" in warning and "bfloat16" in warning


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("padding", PADDINGS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("backend", ["sdpa", "flash"])
def test_gpu_backends_agree_with_the_formula(
    padding: str, dtype: torch.dtype, backend: Backend
) -> None:
    if backend == "flash" and find_spec("flash_attn") is None:
        pytest.skip("flash-attn is not installed")
    device = pick_device()
    mask = PADDINGS[padding]
    tensors = inputs(dtype)
    expected = by_hand(*tensors, mask)
    moved = None if mask is None else mask.to(device)
    ours = attend(*(x.to(device) for x in tensors), moved, backend=backend)
    torch.testing.assert_close(ours.cpu().double(), expected, atol=2e-2, rtol=0)
