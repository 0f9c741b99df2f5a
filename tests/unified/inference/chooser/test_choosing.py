from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from tests.toy.model import Toy, make_toy
from tests.unified.inference.chooser.test_candidates import SETTINGS, photo
from unified import ImagePredictor
from unified.inference.chooser.batch import Choices
from unified.inference.chooser.choosing import (
    NETWORKS,
    Chooser,
    Rules,
    margin,
    pick,
    with_own_scores,
)
from unified.inference.chooser.fitting import Recipe, fit
from unified.inference.chooser.rules import Trial, fit_rules
from unified.inference.chooser.student import Referred, Student
from unified.inference.settings import InferenceSettings
from unified.structures import Prompt, References


@pytest.fixture
def chosen() -> Toy:
    """A segmenter of its own with a chooser of random weights."""
    segmenter = make_toy()
    torch.manual_seed(0)
    channels = segmenter.backbone.channels
    seen = sum(channels[stage] for stage in ("res3", "res4", "res5")) + 3 * 64
    segmenter.chooser = Chooser(
        networks=[kind(seen_dim=seen, text_dim=16, dim=32) for kind in NETWORKS.values()],
        rules=Rules(0.3, 5.0, 0.0, 0.0),
        model=segmenter,
        text=segmenter.text_encoder,
        backbone=segmenter.backbone,
        mean=torch.full((3,), 128.0),
        std=torch.full((3,), 128.0),
    )
    return segmenter


@pytest.mark.parametrize("mirror", [False, True])
def test_a_sentence_gets_what_the_chooser_says(chosen: Toy, mirror: bool) -> None:
    predictor = ImagePredictor(chosen, SETTINGS, mirror=mirror)
    predictor.set_image(photo())
    found = predictor.instance(Prompt(text="the red dog"))
    assert found.mask.any() and 0 < found.score < 1 and found.box is not None
    rows, columns = np.nonzero(found.mask)
    edges = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
    assert found.box == tuple(float(edge) for edge in edges)
    probability, score = predictor.predict_prob(Prompt(text="the red dog"))
    assert score == found.score and np.array_equal(probability > 0.5, found.mask)
    again = ImagePredictor(chosen, SETTINGS, mirror=mirror, score_threshold=0.999999)
    again.set_image(photo())
    assert not again.predict(Prompt(text="the red dog"))[0].any()


@pytest.mark.parametrize("mirror", [False, True])
def test_a_name_that_the_segmenter_learnt_is_answered_by_itself(chosen: Toy, mirror: bool) -> None:
    chooser, answers = chosen.chooser, []
    assert isinstance(chooser, Chooser)
    chooser.is_name = lambda text: text == "dog"
    for asked, text in ((chooser, "dog"), (None, "dog"), (chooser, "the dog")):
        chosen.chooser = asked
        predictor = ImagePredictor(chosen, SETTINGS, mirror=mirror)
        predictor.set_image(photo())
        answers.append(predictor.predict_prob(Prompt(text=text)))
    (own, score), (alone, score_alone), (_, other) = answers
    assert score == pytest.approx(score_alone, abs=1e-5) and score != pytest.approx(other, abs=1e-3)
    assert (own > 0.5).any() and ((own > 0.5) != (alone > 0.5)).mean() < 0.02


def test_names_of_the_segmenter_count_in_what_is_chosen(
    chosen: Toy, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whose names are asked about the frozen features of the candidates."""
    chooser = chosen.chooser
    assert isinstance(chooser, Chooser)
    seen: list[torch.Tensor] = []
    preferred: list[int] = []

    def evidence(features: torch.Tensor, _: References) -> torch.Tensor:
        seen.append(features)
        return 100.0 * (torch.arange(len(features)) == preferred[-1])

    monkeypatch.setattr(chosen, "name_evidence", evidence, raising=False)
    predictor = ImagePredictor(chosen, SETTINGS, score_threshold=0)
    masks = []
    for names, candidate in ((0.0, 0), (0.0, 1), (1.0, 0), (1.0, 1)):
        preferred.append(candidate)
        chooser.rules = replace(chooser.rules, names=names, several=np.inf)
        predictor.set_image(photo())
        masks.append(predictor.predict(Prompt(text="the red dog"))[0])
    assert np.array_equal(masks[0], masks[1]) and (masks[2] != masks[3]).any()
    channels = chosen.backbone.channels
    assert {part.shape[1] for part in seen} == {
        sum(channels[stage] for stage in ("res3", "res4", "res5"))
    }


def test_other_prompts_are_answered_as_without_it(chosen: Toy) -> None:
    mask = np.zeros((60, 80), bool)
    mask[10:30, 10:40] = True
    answers = []
    for chooser in (chosen.chooser, None):
        chosen.chooser = chooser
        predictor = ImagePredictor(chosen, SETTINGS)
        predictor.set_image(photo())
        answers.append([predictor.predict(Prompt(mask=mask, text=text)) for text in (None, "dog")])
    for (mask_a, score_a), (mask_b, score_b) in zip(*answers, strict=True):
        assert score_a == score_b and np.array_equal(mask_a, mask_b)


def test_nonsense_is_not_asked_and_said_so(chosen: Toy, caplog: pytest.LogCaptureFixture) -> None:
    predictor = ImagePredictor(chosen, SETTINGS)
    predictor.set_image(photo())
    with caplog.at_level(logging.WARNING):
        mask, score = predictor.predict(Prompt(text="кошка"))
    assert not mask.any() and score == 0
    assert "'кошка' is not looked for: it is not written in Latin letters" in caplog.text


def test_several_things_are_joined_where_several_are_meant() -> None:
    logits = torch.tensor([[2.0, 1.0, -3.0]])
    rules = Rules(own=0.0, shift=0.0, several=0.5, accepted=0.0)
    for many, wanted in ((1.0, [True, True, False]), (0.0, [True, False, False])):
        choices = Choices(logits, torch.zeros(1), torch.tensor([many]))
        own = with_own_scores(choices, torch.ones(3), torch.zeros(3), rules)
        assert pick(choices, own, rules).tolist() == wanted


@pytest.mark.parametrize("source", ["own", "names"])
def test_rules_follow_what_is_right(source: str) -> None:
    """The segmenter, or its names, are right where the network knows nothing."""
    masks = torch.eye(4, dtype=torch.bool)[:, None]  # (4, 1, 4)
    nothing = Choices(torch.zeros(1, 4), torch.zeros(1), torch.full((1,), -9.0))
    said = {"own": torch.full((4,), 0.5), "names": torch.zeros(4)}
    trials = [
        Trial(
            nothing,
            *(said | {source: torch.eye(4)[k] * 0.9}).values(),
            masks,
            masks[k] if k < 3 else None,
        )
        for k in (0, 1, 2, 3)
    ]
    rules = fit_rules(trials, threshold=0.3, keep=0.99)
    assert getattr(rules, source) > 0
    lowest = min(margin(trial.choices, rules) for trial in trials[:3])
    assert lowest == pytest.approx(float(np.log(0.3 / 0.7)), abs=0.05)


def test_a_student_describes_pictures_with_sentences(chosen: Toy) -> None:
    chosen.inference = InferenceSettings(image=SETTINGS)
    chosen.frozen_backbone = chosen.backbone
    student = Student(chosen)
    mask = np.zeros((2, 60, 80), bool)
    mask[0, 5:30, 10:40] = mask[1, 40:55, 50:70] = True
    referred = [
        Referred(mask[:1], ["dog"], ["the red dog", "dog on the left"]),
        Referred(mask, ["dog", "cat"], ["a dog a cat"]),
        Referred(mask[:0], [], ["a tree"]),
    ]
    lessons, naming = student.lessons([(photo(), referred)], seed=0)
    said = lessons[0].sentences
    assert [(s.absent, s.many) for s in said] == [(False, False)] * 2 + [
        (False, True),
        (True, False),
    ]
    assert not said[3].fits.any() and said[0].fits.any()
    assert torch.equal(said[0].mirrored, said[0].words)
    assert not torch.equal(said[1].mirrored, said[1].words)
    # The dog is said twice and shown once.
    assert naming is not None and naming.labels.tolist() == [1, 0]
    assert [s.names for s in said] == [{"dog"}, {"dog"}, {"dog", "cat"}, frozenset()]
    lesson = lessons[0]
    assert lesson.found < len(lesson.described) == len(said[0].fits)
    # What no candidate is gets shown as it is.
    assert said[0].fits[lesson.found :].max() == 1 and lesson.described.places[-1, 2:6].any()
    for network in chosen.chooser.networks:
        curve = fit(network, lessons, naming, Recipe(epochs=1, shown=1.0), seed=0)
        assert np.isfinite(curve).all()
    trials = student.trials(chosen.chooser.networks, [(photo(), referred)])
    assert [trial.truth is None for trial in trials] == [False, False, False, True]
