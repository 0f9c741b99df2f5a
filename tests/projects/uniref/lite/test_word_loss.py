from __future__ import annotations

import math
from collections.abc import Sequence

import pytest
import torch
from detectron2.structures import BitMasks, Boxes, Instances
from torch import Tensor

from projects.uniref.auxiliary import FeatureStages
from projects.uniref.lite.word_loss import NamedTarget, WordLoss, with_class_names
from projects.uniref.model import UniRef
from tests.projects.uniref.test_losses import SIZES as IMAGE_SIZES
from tests.projects.uniref.test_losses import make_images, make_target, step
from tests.projects.uniref.tiny import make_uniref
from unified.engine.meta_arch import SegmenterShell
from unified.engine.system import Supervision
from unified.structures import Reference, Target

LEVELS, BACKGROUND, WEIGHT = 3, 0.2, 3.0
SIZES = ((4, 6), (2, 3), (1, 2), (1, 1))
NAMES = ["cat", "dog", "hat"]


class Words(UniRef):
    """Gives names, which come sorted, the vectors (N, C) that it was made with."""

    def __init__(self, words: Tensor) -> None:
        parts = make_uniref(kinds=())
        super().__init__(
            backbone=parts.backbone, neck=parts.neck, head=parts.head, mask_head=parts.mask_head
        )
        self.words = words

    def encode_text(self, texts: Sequence[str]) -> tuple[Reference, ...]:
        assert list(texts) == NAMES[: len(self.words)]
        tokens = self.words[:, None]
        return (Reference(tokens, tokens, tokens[..., 0] > 9, self.words),)


def make_loss(dim: int) -> WordLoss:
    return WordLoss(dim=dim, num_levels=LEVELS, weight=WEIGHT, background=BACKGROUND)


def loss_of(
    loss: WordLoss, levels: list[Tensor], targets: Sequence[Target], words: Tensor
) -> Tensor:
    return loss(Words(words), FeatureStages(levels, (), ()), [], targets)["loss_word"]


def rectangle(top: int, left: int, bottom: int, right: int) -> Tensor:
    mask = torch.zeros(32, 48, dtype=torch.bool)
    mask[top:bottom, left:right] = True
    return mask


def target(**objects: list[Tensor]) -> NamedTarget:
    masks = [mask for group in objects.values() for mask in group]
    names = tuple(name for name, group in objects.items() for _ in group)
    stacked = torch.stack(masks) if masks else torch.zeros(0, 32, 48, dtype=torch.bool)
    labels, boxes = torch.zeros(len(masks), dtype=torch.int64), torch.full((len(masks), 4), 0.5)
    return NamedTarget(labels, boxes, stacked, class_names=names)


TARGETS = [
    target(
        dog=[rectangle(0, 0, 8, 8), rectangle(0, 0, 16, 16)],
        hat=[rectangle(10, 20, 32, 40)],
        cat=[rectangle(20, 2, 30, 14)],
    ),
    target(),
]


def by_hand(head: WordLoss, level: Tensor, words: Tensor) -> float:
    """Sum over cells of share * surprise, over the sum of shares."""
    total, weight = 0.0, 0.0
    rows, columns = level.shape[-2:]
    for image, wanted in enumerate(TARGETS):
        for y in range(rows):
            for x in range(columns):
                top, bottom = y * 32 // rows, -(-(y + 1) * 32 // rows)
                left, right = x * 48 // columns, -(-(x + 1) * 48 // columns)
                shares = dict.fromkeys(NAMES, 0.0)
                for name, mask in zip(wanted.class_names or (), wanted.masks, strict=True):
                    shares[name] += mask[top:bottom, left:right].float().mean().item()
                shares = {name: min(share, 1.0) for name, share in shares.items()}
                rest = max(1 - sum(shares.values()), 0) * BACKGROUND
                cell = level[image, :, y, x]
                logits = [(head.cells(cell) @ word).item() / math.sqrt(5) for word in words]
                logits.append(head.nothing(cell).item())
                norm = math.log(sum(math.exp(logit) for logit in logits))
                for share, logit in zip((*shares.values(), rest), logits, strict=True):
                    total -= share * (logit - norm)
                    weight += share
    return total / weight


def test_loss_equals_its_definition() -> None:
    torch.manual_seed(0)
    head, words = make_loss(5), torch.randn(3, 5)
    levels = [torch.randn(2, 5, *size) for size in SIZES]
    loss = loss_of(head, levels, TARGETS, words).item()
    expected = sum(by_hand(head, level, words) for level in levels[:LEVELS]) / LEVELS
    assert loss == pytest.approx(WEIGHT * expected, rel=1e-5)


def test_features_learn_the_words() -> None:
    """Two cells, two names: gradients reach features, words and head, and the loss can vanish."""
    torch.manual_seed(0)
    head = make_loss(8)
    words = torch.randn(2, 8, requires_grad=True)
    level = torch.randn(1, 8, 1, 2, requires_grad=True)
    both = [target(cat=[rectangle(0, 0, 32, 24)], dog=[rectangle(0, 24, 32, 48)])]
    optimizer = torch.optim.Adam([level, words, *head.parameters()], lr=0.05)
    first = None
    for _ in range(60):
        loss = loss_of(head, [level], both, words)
        first = loss.item() if first is None else first
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert loss.item() < 0.1 * first


@pytest.fixture
def model() -> UniRef:
    """A tiny model that is trained with words."""
    model = make_uniref(kinds=("text",)).train()
    model.auxiliary_losses["word"] = make_loss(model.neck.input_proj[0][0].out_channels)
    return model


def test_names_are_learnt_where_every_object_has_one(model: UniRef) -> None:
    named = [
        NamedTarget(**vars(make_target(num, num)), class_names=names)
        for num, names in ((2, ("dog", "man")), (1, ("dog",)), (0, ()))
    ]
    step(model, (), named[:2])["loss_word"].backward()
    assert model.text_encoder is not None
    for part in (model.neck.input_proj[0], model.text_encoder.project, model.auxiliary_losses):
        assert all(p.grad is not None and p.grad.any() for p in part.parameters())
    assert step(model, (), named[1:])["loss_word"] > 0
    assert "loss_word" not in step(model, (), [named[2], named[2]])
    assert "loss_word" not in step(model, (), [named[0], make_target(1, 1)])


def test_names_of_samples_reach_the_loss(model: UniRef) -> None:
    supervision = Supervision(class_agnostic=True, complete_target=with_class_names)
    shell = SegmenterShell(model, supervision).train()
    image, target = make_images(1)[0], make_target(1, 0)
    truth = Instances(IMAGE_SIZES[0])
    truth.gt_boxes = Boxes(torch.tensor([[8.0, 8.0, 60.0, 70.0]]))
    truth.gt_classes, truth.gt_masks = torch.tensor([4]), BitMasks(target.masks)
    sample = {"task": "detection", "image": image, "instances": truth}
    assert "loss_word" in shell([{**sample, "class_names": ("dog",)}])
    assert "loss_word" not in shell([sample])
