from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from tests.unified.inference.chooser.scenes import TEXT, make_network, random_described
from unified.errors import CheckpointError
from unified.inference.chooser.batch import Candidates
from unified.inference.chooser.choosing import (
    NETWORKS,
    Network,
    Rules,
    made_for,
    networks_of,
    weights_of,
)
from unified.inference.chooser.fitting import Lesson, Naming, Recipe, Sentence, fit, padded

BOTH = pytest.mark.parametrize("kind", NETWORKS.values(), ids=list(NETWORKS))
IMAGES = (random_described(5, 1), random_described(3, 2))


def words(*lengths: int) -> list[torch.Tensor]:
    torch.manual_seed(0)
    return [torch.randn(length, TEXT) for length in lengths]


@BOTH
def test_sentences_of_a_batch_are_answered_as_alone(kind: type[Network]) -> None:
    network, said = make_network(kind), words(4, 7, 2)
    image = torch.tensor([0, 1, 0])
    together = network(Candidates.stack(IMAGES), image, *padded(said))
    for row, index in enumerate(image.tolist()):
        only = Candidates.stack([IMAGES[index]])
        alone = network(only, torch.zeros(1, dtype=torch.int64), *padded([said[row]]))
        num = len(IMAGES[index])
        torch.testing.assert_close(together.logits[row, :num], alone.logits[0])
        torch.testing.assert_close(together.none[row], alone.none[0])
        torch.testing.assert_close(together.many[row], alone.many[0])
        assert (together.logits[row, num:] < -1000).all()


@BOTH
def test_the_order_of_candidates_is_irrelevant(kind: type[Network]) -> None:
    network, one = make_network(kind), IMAGES[0]
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = {name: value[order] for name, value in vars(one).items()}
    turned |= {name: turned[name][:, order] for name in ("iou", "within")}
    first = torch.zeros(1, dtype=torch.int64)
    a = network(Candidates.stack([one]), first, *padded(words(4)))
    b = network(Candidates.stack([replace(one, **turned)]), first, *padded(words(4)))
    torch.testing.assert_close(a.logits[0, order], b.logits[0])


@BOTH
def test_gradients_reach_every_parameter(kind: type[Network]) -> None:
    network = make_network(kind).train()
    choices = network(Candidates.stack(IMAGES), torch.tensor([0, 1]), *padded(words(4, 3)))
    names = network.names(IMAGES[0].seen)
    known = choices.logits[choices.logits > -1000].square().sum()
    (known + choices.none.sum() + choices.many.sum() + names[:, 0].sum()).backward()
    unused = [name for name, p in network.named_parameters() if p.grad is None or not p.grad.any()]
    assert unused == []


@BOTH
def test_learns_which_candidate_a_word_means(kind: type[Network]) -> None:
    torch.manual_seed(0)
    vectors = torch.randn(4, TEXT)
    lessons = []
    for number in range(24):
        described = random_described(4, number)
        kinds = torch.randperm(4)
        seen = torch.zeros_like(described.seen)
        seen[torch.arange(4), kinds] = 3.0
        sentences = [
            Sentence(vectors[kind][None], vectors[kind][None], (kinds == kind).float())
            for kind in range(4)
        ]
        lessons.append(Lesson(replace(described, seen=seen), sentences, 4))
    naming = Naming(lessons[0].described.seen, torch.arange(4), vectors)
    network = make_network(kind)
    curve = fit(network, lessons, naming, Recipe(epochs=25, images=6, sentences=4, rate=3e-3), 0)
    assert curve[-1] < 0.6 * curve[0]
    right = 0
    for lesson in lessons:
        said = padded([sentence.words for sentence in lesson.sentences])
        choices = network(
            Candidates.stack([lesson.described]), torch.zeros(4, dtype=torch.int64), *said
        )
        best = [int(sentence.fits.argmax()) for sentence in lesson.sentences]
        right += int((choices.logits.argmax(dim=1) == torch.tensor(best)).sum())
    assert right > 0.9 * 4 * len(lessons)


@BOTH
def test_learns_from_sentences_of_other_images_that_nothing_is_meant(kind: type[Network]) -> None:
    torch.manual_seed(0)
    vectors, lessons = torch.randn(4, TEXT), []
    for number in range(24):
        kinds = torch.tensor([0, 1, 0, 1]) + 2 * (number % 2)
        described = random_described(4, number)
        seen = torch.zeros_like(described.seen)
        seen[torch.arange(4), kinds] = 3.0
        sentences = [
            Sentence(
                *(vectors[said][None],) * 2,
                (kinds == said).float(),
                names=frozenset({str(said)}),
            )
            for said in kinds[:2].tolist()
        ]
        lessons.append(Lesson(replace(described, seen=seen), sentences, 4))
    network = make_network(kind)
    recipe = Recipe(epochs=30, images=6, borrowed=2, candidates=3, rate=3e-3)
    fit(network, lessons, None, recipe, 0)
    right = 0
    for number, lesson in enumerate(lessons):
        choices = network(
            Candidates.stack([lesson.described]),
            torch.zeros(4, dtype=torch.int64),
            *padded([vector[None] for vector in vectors]),
        )
        none = choices.none > choices.logits.logsumexp(dim=1)
        lacks = torch.arange(4) // 2 != number % 2
        right += int((none == lacks).sum())
    assert right > 0.9 * 4 * len(lessons)


def test_weights_come_back() -> None:
    networks = [make_network(kind, seed) for seed, kind in enumerate(NETWORKS.values())]
    rules, digest = Rules(0.3, -1.0, 0.0, 0.5), "ab" * 32
    file = weights_of(networks, rules, digest)
    again, own = networks_of(file)
    assert own == Rules(*torch.tensor([0.3, -1.0, 0.0, 0.5]).tolist())
    assert made_for(file, digest) and not made_for(file, "cd" * 32)
    for before, after in zip(networks, again, strict=True):
        assert type(after) is type(before)
        for name, value in before.state_dict().items():
            torch.testing.assert_close(after.state_dict()[name], value.half().float())


def test_a_file_with_rules_alone_is_no_chooser() -> None:
    file = weights_of([], Rules(0.3, -1.0, 0.0, 0.5), "ab" * 32)
    with pytest.raises(CheckpointError, match="no chooser: expected network"):
        networks_of(file)
