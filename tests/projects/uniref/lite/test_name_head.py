from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from projects.uniref.lite.name_head import STAGES, NameHead
from unified.modeling.backbones import Backbone, build_backbone

DIM = 6
WEIGHT, NEUTRAL, KNOWN = 0.7, -2.0, (0.3, 0.6)


def make_head(backbone: Backbone) -> NameHead:
    """Of three names."""
    return NameHead(
        backbone,
        text_dim=DIM,
        num_names=3,
        hidden_dim=8,
        weight=WEIGHT,
        neutral=NEUTRAL,
        known=KNOWN,
    ).eval()


@pytest.fixture
def head() -> NameHead:
    """With three names that are far apart, and random weights."""
    torch.manual_seed(0)
    head = make_head(build_backbone("efficientnet_lite0", freeze_at=5))
    head.centre += 0.1 * torch.randn(DIM)
    head.names += head.directions(torch.eye(DIM)[:3])
    return head


def described(head: NameHead, *shape: int) -> Tensor:
    return torch.randn(*shape, head.norm.num_features)


def by_hand(head: NameHead, features: Tensor, phrase: Tensor) -> float:
    """One mask and one phrase."""
    vector = head.vectors(features[None])[0].tolist()
    unit = (phrase / phrase.norm() - head.centre).tolist()
    unit = [x / math.sqrt(sum(y * y for y in unit)) for x in unit]

    def dot(a: list[float], b: list[float]) -> float:
        return sum(x * y for x, y in zip(a, b, strict=True))

    names = head.names.tolist()
    total = sum(math.exp(dot(vector, name)) for name in names)
    log_probability = math.log(math.exp(dot(vector, unit)) / total)
    nearest = max(dot(unit, name) for name in names)
    known = min(max((nearest - KNOWN[0]) / (KNOWN[1] - KNOWN[0]), 0), 1)
    return WEIGHT * known * (log_probability - NEUTRAL)


def test_evidence_equals_its_definition(head: NameHead) -> None:
    features = described(head, 2, 4)
    # The second phrase is near a name, but not so near that it counts fully.
    phrases = torch.eye(DIM)[:2] + torch.tensor([[0.0], [1.0]]) * torch.eye(DIM)[4]
    found = head(features, phrases)
    nearest = (head.directions(phrases) @ head.names.t()).amax(dim=-1)
    assert nearest[0] > KNOWN[1]
    assert KNOWN[0] < nearest[1] < KNOWN[1] + 0.2
    assert found.shape == (2, 4)
    for image in range(2):
        for mask in range(4):
            wanted = by_hand(head, features[image, mask], phrases[image])
            assert found[image, mask].item() == pytest.approx(wanted, abs=1e-4)


def test_the_right_name_is_worth_more(head: NameHead) -> None:
    features = described(head, 1, 5)
    both = torch.stack([head(features, torch.eye(DIM)[name : name + 1])[0] for name in range(3)])
    logits = head.vectors(features[0]) @ head.names.t()
    assert torch.equal(both.argmax(dim=0), logits.argmax(dim=1))


def test_a_phrase_far_from_all_names_and_a_head_without_names_change_nothing(
    head: NameHead,
) -> None:
    features = described(head, 1, 3)
    assert not head(features, -torch.eye(DIM)[:3].sum(dim=0, keepdim=True)).any()
    fresh = make_head(head.backbone)
    assert not fresh.trained and head.trained
    assert not fresh(features, torch.eye(DIM)[:1]).any()


def test_what_is_not_seen_is_no_evidence(head: NameHead) -> None:
    features = described(head, 1, 3)
    features[0, 1] = 0
    found = head(features, torch.eye(DIM)[:1])
    assert found[0, 1] == 0 and found[0, [0, 2]].all()


def test_features_are_averaged_within_masks_and_not_on_padding(head: NameHead) -> None:
    sizes = ((8, 8), (4, 4), (2, 2))
    stages = [
        torch.randn(1, head.backbone.channels[name], *size)
        for name, size in zip(STAGES, sizes, strict=True)
    ]
    padding = torch.zeros(1, 64, 64, dtype=torch.bool)
    padding[:, :, 32:] = True
    mask = torch.zeros(1, 2, 16, 16)
    mask[0, 0, :8] = 1  # the upper half; its right part is padding
    found = head.describe(stages, mask, padding)
    wanted = [
        stage[0, :, : size[0] // 2, : size[1] // 2].mean(dim=(1, 2))
        for stage, size in zip(stages, sizes, strict=True)
    ]
    torch.testing.assert_close(found[0, 0], torch.cat(wanted))
    assert not found[0, 1].any(), "an empty mask"


def test_nothing_of_it_is_trained_with_the_rest(head: NameHead) -> None:
    assert not any(parameter.requires_grad for parameter in head.parameters())
    images = torch.randn(1, 3, 64, 64)
    assert [tuple(x.shape[-2:]) for x in head.features(images)] == [(8, 8), (4, 4), (2, 2)]
