from __future__ import annotations

import pytest
import torch
from torch import Tensor

from unified.modeling.detr_head import DetrHead
from unified.modeling.layers import inverse_sigmoid
from unified.modeling.transformer import DeformableTransformer

DIM = 32
SIZES = ((8, 12), (4, 6), (2, 3), (1, 2))


def head(num_queries: int = 10, num_classes: int = 2) -> DetrHead:
    torch.manual_seed(0)
    transformer = DeformableTransformer(
        dim=DIM, num_heads=4, encoder_layers=1, decoder_layers=3, feedforward_dim=64, num_points=2
    )
    module = DetrHead(transformer, num_queries=num_queries, num_classes=num_classes).eval()
    with torch.no_grad():
        for parameter in module.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return module


def inputs(batch: int = 2) -> tuple[list[Tensor], list[Tensor]]:
    """Levels, and masks of which the second image is padded on the right."""
    generator = torch.Generator().manual_seed(1)
    levels = [torch.randn(batch, DIM, h, w, generator=generator) for h, w in SIZES]
    masks = [torch.zeros(batch, h, w, dtype=torch.bool) for h, w in SIZES]
    for mask in masks:
        mask[1:, :, mask.shape[2] // 2 :] = True
    return levels, masks


def test_shapes() -> None:
    module = head()
    queries = module(*inputs())
    tokens = sum(h * w for h, w in SIZES)
    assert [x.shape for x in queries.hidden] == [(2, 10, DIM)] * 3
    assert [x.shape for x in queries.references] == [(2, 10, 4)] * 4
    assert [x.shape for x in queries.memory] == [(2, DIM, h, w) for h, w in SIZES]
    assert queries.proposals.logits.shape == (2, tokens, 2)
    assert module.proposal_boxes(queries.proposals).shape == (2, tokens, 4)
    assert queries.selected.shape == (2, 10)


def test_selects_the_best_tokens_by_the_first_class() -> None:
    module = head()
    queries = module(*inputs())
    first = queries.proposals.logits[..., 0]
    for image in range(2):
        best = sorted(range(first.shape[1]), key=lambda i: -first[image, i].item())[:10]
        assert first[image, queries.selected[image]].tolist() == first[image, best].tolist()
        chosen = module.proposal_boxes(queries.proposals)[image, queries.selected[image]]
        torch.testing.assert_close(queries.references[0][image], chosen)


def test_queries_start_from_learned_content_by_rank() -> None:
    """Mixed selection: the content is the learned one, the token gives only the place."""
    module = head()
    seen: list[Tensor] = []
    first = module.transformer.decoder.layers[0]
    hook = first.register_forward_pre_hook(lambda _, args: seen.extend(args))
    queries = module(*inputs())
    hook.remove()
    content, position, reference, memory, layout = seen
    assert torch.equal(content, module.query_embed.weight.expand(2, -1, -1))
    logits = queries.references[0].logit()
    torch.testing.assert_close(
        position, module.transformer.query_position(logits), atol=1e-4, rtol=1e-4
    )
    ratios = layout.valid_ratios
    for level in range(4):
        width, height = ratios[1, level].tolist()
        scale = torch.tensor([width, height, width, height])
        torch.testing.assert_close(reference[1, :, level], queries.references[0][1] * scale)
    assert memory.shape == (2, sum(h * w for h, w in SIZES), DIM)


def test_boxes_are_refined_layer_by_layer() -> None:
    module = head()
    queries = module(*inputs())
    for layer in range(3):
        delta = module.bbox_embed[layer](queries.hidden[layer])
        expected = (delta + inverse_sigmoid(queries.references[layer])).sigmoid()
        torch.testing.assert_close(queries.references[layer + 1], expected)
        torch.testing.assert_close(module.boxes(queries, layer), expected)
        logits = module.class_embed[layer](queries.hidden[layer])
        assert torch.equal(module.logits(queries, layer), logits)


def test_gradient_looks_forward_twice_but_not_thrice() -> None:
    """The box of a layer trains its own regressor and that of the layer before, no earlier one."""
    module = head()
    queries = module(*inputs())
    regressors = [regressor.layers[-1].bias for regressor in module.bbox_embed]
    gradients = torch.autograd.grad(module.boxes(queries, 2).sum(), regressors, allow_unused=True)
    assert [gradient is not None for gradient in gradients] == [False, True, True, False]


def test_proposals_are_not_trained_through_the_decoder() -> None:
    module = head()
    queries = module(*inputs())
    loss = queries.hidden[-1].sum() + queries.references[-1].sum()
    proposal = (*module.class_embed[-1].parameters(), *module.bbox_embed[-1].parameters())
    assert torch.autograd.grad(loss, proposal, allow_unused=True) == (None,) * len(proposal)


def test_fewer_tokens_than_queries() -> None:
    queries = head(num_queries=500)(*inputs())
    tokens = sum(h * w for h, w in SIZES)
    assert queries.selected.shape == (2, tokens)
    for image in queries.selected:
        assert sorted(image.tolist()) == list(range(tokens))
    assert all(x.isfinite().all() for x in (*queries.references, *queries.hidden))


def test_batch_equals_loop() -> None:
    module, (levels, masks) = head(), inputs()
    together = module(levels, masks)
    for image in range(2):
        row = slice(image, image + 1)
        alone = module([x[row] for x in levels], [x[row] for x in masks])
        assert torch.equal(together.selected[row], alone.selected)
        for ours, expected in zip(together.references, alone.references, strict=True):
            torch.testing.assert_close(ours[row], expected, atol=1e-5, rtol=1e-5)


def test_gradient_reaches_every_parameter() -> None:
    module = head().train()
    queries = module(*inputs())
    boxes = module.proposal_boxes(queries.proposals)
    terms = [queries.proposals.logits, boxes, *queries.memory]
    for layer in range(module.num_layers):
        terms += [module.logits(queries, layer), module.boxes(queries, layer)]
    sum((term * torch.randn(term.shape)).sum() for term in terms).backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_starts_with_rare_objects_and_boxes_where_the_proposals_are() -> None:
    transformer = DeformableTransformer(
        dim=DIM, num_heads=4, encoder_layers=1, decoder_layers=2, feedforward_dim=64
    )
    module = DetrHead(transformer, num_queries=5, num_classes=3)
    for classifier in module.class_embed:
        assert classifier.bias.sigmoid().tolist() == pytest.approx([0.01] * 3)
    queries = module(*inputs())
    valid = queries.references[0].lt(1).all(dim=-1)
    assert valid.any()
    torch.testing.assert_close(queries.references[2][valid], queries.references[0][valid])
    assert len(module.class_embed) == len(module.bbox_embed) == 3
    assert queries.proposals.anchors.isinf().any()
