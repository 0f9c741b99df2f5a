"""Half precision is for matrix products; what decides stays float32."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from projects.uniref.model import UniRef
from unified.inference.prepared import prepared
from unified.modeling.detr_head import Queries
from unified.modeling.precision import HALF
from unified.structures import Segmentation

dtypes = pytest.mark.parametrize("dtype", HALF, ids=str)


def images() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randint(0, 256, (3, 96, 128), generator=generator) for _ in range(2)]


def queries(model: UniRef) -> Queries:
    """Of two images and a sentence each."""
    features = model.encode_image(model.preprocess(images()))
    references = [model.encode_text(["the red dog", "a man"])]
    return model.head(model.fuse(features, references), features.padding_masks)


def segment(model: UniRef) -> Segmentation:
    batch = model.preprocess(images())
    features = model.encode_image(batch)
    masks = torch.zeros(2, *batch.padded_size, dtype=torch.bool)
    masks[:, 20:70, 30:90] = True
    return model.segment(features, [model.encode_mask(batch, features, masks)], top_k=3)


@dtypes
def test_autocast_leaves_what_decides_in_float32(uniref: UniRef, dtype: torch.dtype) -> None:
    with torch.no_grad():
        full = queries(uniref)
        with torch.autocast("cpu", dtype=dtype):
            half = queries(uniref)
    decisive = (*half.hidden, *half.references, *half.memory, half.proposals.logits)
    assert {x.dtype for x in (*decisive, half.proposals.features, half.proposals.anchors)} == {
        torch.float32
    }
    assert not torch.equal(half.memory[0], full.memory[0]), "nothing is half precision"
    # In bfloat16 itself many proposals tie: 256 numbers between one power of two and the next.
    for logits in half.proposals.logits[..., 0]:
        inside = logits[torch.isfinite(half.proposals.anchors[0]).all(dim=-1)]
        assert len(inside.unique()) > 0.99 * len(inside)


@dtypes
def test_stored_weights_compute_as_autocast_does(uniref: UniRef, dtype: torch.dtype) -> None:
    stored = copy.deepcopy(uniref).to(dtype)
    rounded = copy.deepcopy(stored).float()  # its weights, in float32
    with torch.no_grad():
        ours = segment(stored)
        with torch.autocast("cpu", dtype=dtype):
            expected = segment(rounded)
    for name in ("mask_logits", "scores", "boxes"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=0, atol=1e-4)


@dtypes
def test_predictors_store_weights_and_answer_as_autocast_does(
    uniref: UniRef, dtype: torch.dtype
) -> None:
    precision = str(dtype).removeprefix("torch.")
    kept = {name: value.clone() for name, value in uniref.state_dict().items()}
    stored = prepared(uniref, precision)
    assert {p.dtype for p in stored.mask_encoder.parameters() if p.ndim > 1} == {dtype}
    assert all(torch.equal(value, kept[name]) for name, value in uniref.state_dict().items())
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        ours, expected = segment(stored), segment(prepared(uniref))
    for name in ("mask_logits", "scores", "boxes"):
        torch.testing.assert_close(getattr(ours, name), getattr(expected, name), rtol=0, atol=2e-3)


@dtypes
def test_only_matrices_of_the_costly_parts_are_stored_in_half(
    uniref: UniRef, dtype: torch.dtype
) -> None:
    stored = copy.deepcopy(uniref).to(dtype)
    tensors = dict([*stored.named_parameters(), *stored.named_buffers()])
    halved = {name for name, value in tensors.items() if value.dtype == dtype}
    assert {name.split(".")[0] for name in halved} == {"backbone", "mask_encoder", "fusion"}
    assert all(tensors[name].ndim > 1 for name in halved)
    for name, value in uniref.state_dict().items():
        if name not in halved:
            assert torch.equal(stored.state_dict()[name], value), name
    assert {value.dtype for value in stored.double().parameters()} == {torch.float64}
