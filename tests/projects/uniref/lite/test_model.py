"""UniRef with a head of names: which mask it chooses, and when."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from projects.uniref.lite.model import NamedPyramid, NamedReference, NamedUniRef
from projects.uniref.model import UniRef
from tests.projects.uniref.lite.tiny import NUM_CANDIDATES, make_named
from tests.projects.uniref.test_model import SENTENCES, SIZES, close, encode, segment
from unified.expressions import clean_expression
from unified.structures import FeaturePyramid, References, Segmentation, stack_levels


@pytest.fixture
def named() -> NamedUniRef:
    """A model with a name head that knows the sentences' opening phrases as names."""
    model = make_named(2)
    phrases = model.encode_phrases(SENTENCES)
    with torch.no_grad():
        model.name_head.centre += torch.nn.functional.normalize(phrases, dim=-1).mean(dim=0)
        model.name_head.names += model.name_head.directions(phrases)
        # Random features differ little; this sign makes names disagree with the best logit.
        model.name_head.embed[-1].weight *= -400
    return model


def joint_logits(
    named: NamedUniRef, features: FeaturePyramid, references: Sequence[References]
) -> tuple[Segmentation, Tensor]:
    """All candidates of UniRef, and their logits with the evidence of names."""
    head, text = named.name_head, references[0][0]
    assert isinstance(text, NamedReference) and isinstance(features, NamedPyramid)
    with torch.no_grad():
        candidates = UniRef.segment(named, features, references, top_k=NUM_CANDIDATES)
    inside = (candidates.mask_logits > 0).float()
    described = head.describe(features.frozen_stages(), inside, features.padding_masks[0])
    evidence = head(described, text.phrase)
    unseen = (candidates.scores == 0) | ~inside.any(dim=-1).any(dim=-1)
    return candidates, (candidates.scores.logit() + evidence).masked_fill(unseen, -torch.inf)


def test_names_choose_among_the_masks_and_count_in_the_score(named: NamedUniRef) -> None:
    features, references = encode(named, "text")
    with torch.no_grad():
        found = named.segment(features, references)
    candidates, joint = joint_logits(named, features, references)
    best = joint.argmax(dim=1)
    assert (best > 0).any(), "nothing was chosen by its name: the test shows nothing"
    for image, row in enumerate(best):
        score = joint[image, row]
        assert -4 < score < 4, "saturated: the comparison shows nothing"
        torch.testing.assert_close(found.scores[image, 0].logit(), score, atol=1e-3, rtol=1e-3)
        torch.testing.assert_close(found.boxes[image, 0], candidates.boxes[image, row])
        torch.testing.assert_close(
            found.mask_logits[image, 0], candidates.mask_logits[image, row], atol=1e-4, rtol=1e-4
        )


def test_what_names_say_of_things_is_what_chooses_among_masks(named: NamedUniRef) -> None:
    features, references = encode(named, "text")
    assert isinstance(features, NamedPyramid)
    candidates, joint = joint_logits(named, features, references)
    inside = (candidates.mask_logits > 0).float()
    seen = named.name_head.describe(features.frozen_stages(), inside, features.padding_masks[0])
    alone = tuple(level[:1] for level in references[0])
    evidence = named.name_evidence(seen[0], alone)
    known = joint[0].isfinite()
    wanted = (joint - candidates.scores.logit())[0]
    torch.testing.assert_close(evidence[known], wanted[known], atol=1e-3, rtol=1e-3)
    assert evidence[known].std() > 0.1
    wordless = encode(named, "mask")[1][0]
    assert not named.name_evidence(seen[0], tuple(level[:1] for level in wordless)).any()


def test_an_empty_mask_is_not_chosen(named: NamedUniRef) -> None:
    features, references = encode(named, "text")
    candidates, _ = joint_logits(named, features, references)
    empty = ~(candidates.mask_logits > 0).flatten(2).any(dim=-1)
    assert empty.any(), "no candidate is empty: the test shows nothing"
    with torch.no_grad():  # any evidence about an empty mask would now be the best by far
        named.name_head.embed[-1].weight *= 100
        found = named.segment(features, references)
    assert (found.mask_logits > 0).flatten(2).any(dim=-1).all()


def test_beside_a_mask_names_count_in_the_score_alone(named: NamedUniRef) -> None:
    """Otherwise one threshold would mean two things, before and after a clip has a memory."""
    features, (text, mask) = encode(named, "both")
    assert isinstance(features, NamedPyramid) and isinstance(text[0], NamedReference)
    with torch.no_grad():
        found = named.segment(features, [text, mask])
        plain = UniRef.segment(named, features, [text, mask])
    inside = (plain.mask_logits > 0).float()
    described = named.name_head.describe(
        features.frozen_stages(), inside, features.padding_masks[0]
    )
    evidence = named.name_head(described, text[0].phrase)
    assert evidence.abs().min() > 0.01, "names say nothing: the test shows nothing"
    torch.testing.assert_close(
        found.scores.logit(), plain.scores.logit() + evidence, atol=1e-4, rtol=1e-4
    )
    for name in ("mask_logits", "boxes", "classes"):
        assert torch.equal(getattr(found, name), getattr(plain, name))


@pytest.mark.parametrize("kind", ("none", "mask"))
def test_without_a_sentence_names_do_not_count(named: NamedUniRef, kind: str) -> None:
    with_names = segment(named, kind)
    named.name_head.names.zero_()
    close(with_names, segment(named, kind))


def test_a_head_without_names_changes_nothing_and_costs_nothing(named: NamedUniRef) -> None:
    named.name_head.names.zero_()
    features, (text,) = encode(named, "text")
    assert not isinstance(text[0], NamedReference)
    with torch.no_grad():
        plain = UniRef.segment(named, features, [text])
    close(segment(named, "text"), plain)


def test_training_encodes_sentences_once(named: NamedUniRef) -> None:
    assert named.text_encoder is not None
    calls: list[int] = []
    hook = named.text_encoder.bert.register_forward_hook(lambda *_: calls.append(1))
    named.train()
    assert not isinstance(named.encode_text(SENTENCES)[0], NamedReference)
    assert len(calls) == 1
    named.eval()
    text = named.encode_text(SENTENCES)[0]
    assert isinstance(text, NamedReference)
    assert text.phrase.shape == (2, 16) and not text.phrase.requires_grad
    hook.remove()


def test_frozen_stages_are_computed_once_and_only_if_asked(named: NamedUniRef) -> None:
    calls: list[int] = []
    named.name_head.backbone.register_forward_hook(lambda *_: calls.append(1))
    features, mask = encode(named, "mask", SIZES[:1])
    with torch.no_grad():
        named.segment(features, mask)
        assert not calls
        for _ in range(2):
            named.segment(features.expand(2), [named.encode_text(SENTENCES)])
    assert len(calls) == 1


def test_names_see_each_object_of_a_batch_with_its_own_phrase(named: NamedUniRef) -> None:
    features, _ = encode(named, "text", SIZES[:1])
    texts = [named.encode_text([sentence]) for sentence in SENTENCES]
    with torch.no_grad():
        alone = [named.segment(features, [text]) for text in texts]
        both = named.segment(features.expand(2), [stack_levels(texts)])
    for name in ("mask_logits", "scores", "boxes", "classes"):
        joined = torch.cat([getattr(one, name) for one in alone])
        torch.testing.assert_close(getattr(both, name), joined, atol=1e-4, rtol=1e-4)


def test_phrases_stay_with_their_sentences(named: NamedUniRef) -> None:
    both = named.encode_text(SENTENCES)[0]
    assert isinstance(both, NamedReference)
    for row in range(2):
        one = both[[row]]
        assert isinstance(one, NamedReference)
        assert torch.equal(one.phrase, both.phrase[row : row + 1])
        assert torch.equal(one.keys, both.keys[row : row + 1])


def test_names_work_in_half_precision(named: NamedUniRef) -> None:
    features, references = encode(named, "text")
    with torch.no_grad():
        wanted = named.segment(features, references)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            features, references = encode(named, "text")
            found = named.segment(features, references)
    assert found.scores.dtype == torch.float32
    # Weights are random here, so that rounding may let another candidate win; what half precision
    # does to the trained model is in test_half_precision.py.
    torch.testing.assert_close(found.scores, wanted.scores, atol=0.2, rtol=0.1)


def test_tokens_say_what_sentences_say(named: NamedUniRef) -> None:
    """As exported models read them."""
    texts = ["The woman with the umbrella", "a cat."]
    rows = []
    for end in named.sentence_ends:
        cleaned = [f"{clean_expression(text).strip()} " for text in texts]
        parts = [re.split(end, text, maxsplit=1)[0] if end else text for text in cleaned]
        rows.append(named.text_encoder.tokenize(parts))
    for ours, theirs in zip(named.encode_tokens(rows), named.encode_text(texts), strict=True):
        assert type(ours) is type(theirs)
        for name, value in vars(theirs).items():
            assert value is None or torch.equal(getattr(ours, name), value)


def test_a_bare_name_is_told_from_what_is_said_of_it(named: NamedUniRef) -> None:
    learnt = ["dog", "red cup"]
    with torch.no_grad():
        named.name_head.names.zero_()
        assert not named.is_name("dog"), "a head without names holds none"
        named.name_head.names[:2] = named.name_head.directions(named.encode_phrases(learnt))
    assert all(named.is_name(text) for text in ("dog", "The dog.", "a red cup"))
    assert not any(named.is_name(text) for text in ("black dog", "cup", "dog on the left", "dogs"))
