"""The whole of ReSTR: verbs, losses, variants, sizes."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from projects.restr.fusion import GATES, CoarseToFine, Fusion
from projects.restr.language import LanguageEncoder
from projects.restr.model import Restr
from projects.restr.vision import PLACES, ConvolutionalEncoder, VisualEncoder, resize_positions
from unified.checkpoint import write_weights
from unified.errors import CheckpointError, InputError
from unified.modeling.backbones import build_backbone
from unified.modeling.vocabulary import SPECIAL, Vocabulary, WordTable
from unified.structures import Target, stack_levels

WORDS = ("the", "red", "left", "dog", "ball")
DIM, SIZE = 32, 64


def make_restr(
    gate: str = "logit", patch_label: str = "any", prior: float = 0.5, **fusion: object
) -> Restr:
    torch.manual_seed(0)
    words = WordTable(Vocabulary([*SPECIAL, *WORDS]), dim=12, context_length=6)
    model = Restr(
        backbone=VisualEncoder(image_size=SIZE, patch_size=16, dim=DIM, num_blocks=2, num_heads=4),
        text_encoder=LanguageEncoder(words, out_dim=DIM, num_blocks=2, num_heads=3),
        fusion=GATES[gate](DIM, num_heads=4, **fusion),
        image_size=SIZE,
        patch_label=patch_label,
        prior=prior,
    )
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)  # initial weights are so small that nothing depends on much
    return model.eval()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


def target() -> Target:
    mask = torch.zeros(1, SIZE, SIZE, dtype=torch.bool)
    mask[:, 4:40, 16:50] = True
    return Target(torch.zeros(1, dtype=torch.int64), torch.tensor([[0.5, 0.4, 0.5, 0.5]]), mask)


def test_it_speaks_the_verbs() -> None:
    model = make_restr()
    assert model.reference_kinds == {"text"}
    features = model.encode_image(model.preprocess(images((64, 40))))
    answer = model.segment(features, [model.encode_text(["the red dog"])])
    assert answer.mask_logits.shape == (1, 1, 16, 16)
    fine = model.segment(features, [model.encode_text(["the red dog"])], mask_stride=1)
    assert fine.mask_logits.shape == (1, 1, SIZE, SIZE)
    torch.testing.assert_close(F.avg_pool2d(fine.mask_logits, 4), answer.mask_logits)


def test_batch_equals_loop_for_sentences_of_all_lengths() -> None:
    model = make_restr()
    pictures, texts = images((64, 64), (64, 40), (20, 64)), ["dog", "the red dog", "left ball"]
    together = model.answer(
        model.encode_image(model.preprocess(pictures)), [model.encode_text(texts)]
    ).pixel_logits
    for row, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        features = model.encode_image(model.preprocess([picture]))
        alone = model.answer(features, [model.encode_text([text])]).pixel_logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)


def test_objects_of_one_picture_are_a_batch() -> None:
    model = make_restr()
    features = model.encode_image(model.preprocess(images((64, 64))))
    references = [model.encode_text([text]) for text in ("dog", "the red ball")]
    together = model.answer(features.expand(2), [stack_levels(references)]).pixel_logits
    for row, reference in enumerate(references):
        alone = model.answer(features, [reference]).pixel_logits
        torch.testing.assert_close(together[row], alone[0], atol=1e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 1e-2


def test_losses_reach_every_parameter() -> None:
    model = make_restr().train()
    features = model.encode_image(model.preprocess(images((64, 64), (64, 64))))
    references = [model.encode_text(["the red dog", "left ball"])]
    losses = model.losses(features, references, [target(), target()])
    assert set(losses) == {"loss_pixel", "loss_patch"}
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert not model.text_encoder.table.table.weight.grad[0].any()  # padding stays zero


def test_losses_are_those_of_pixels_and_patches() -> None:
    model = make_restr()
    features = model.encode_image(model.preprocess(images((64, 64))))
    references = [model.encode_text(["the red dog"])]
    losses, answer = (
        model.losses(features, references, [target()]),
        model.answer(features, references),
    )
    masks = target().masks.float()[None]
    pixel = F.binary_cross_entropy_with_logits(answer.pixel_logits, masks)
    patch = F.binary_cross_entropy_with_logits(answer.patch_logits, model.patch_labels(masks))
    torch.testing.assert_close(losses["loss_pixel"], pixel)
    torch.testing.assert_close(losses["loss_patch"], 0.1 * patch)


def test_scores_of_zero_stand_for_the_prior() -> None:
    released, rare = make_restr(), make_restr(prior=0.05)
    features = released.encode_image(released.preprocess(images((64, 64))))
    references = [released.encode_text(["the red dog"])]
    answer, masks = released.answer(features, references), target().masks.float()[None]
    shift = torch.tensor(0.05).logit()
    losses = rare.losses(features, references, [target()])
    pixel = F.binary_cross_entropy_with_logits(answer.pixel_logits + shift, masks)
    labels = released.patch_labels(masks)
    patch = F.binary_cross_entropy_with_logits(answer.patch_logits + shift, labels)
    torch.testing.assert_close(losses["loss_pixel"], pixel)
    torch.testing.assert_close(losses["loss_patch"], 0.1 * patch)
    before, after = (
        model.segment(features, references, mask_stride=1).mask_logits for model in (released, rare)
    )
    torch.testing.assert_close(after, before + shift)


def test_words_and_patches_enter_as_large_as_asked() -> None:
    fusion = Fusion(512, num_heads=4, num_blocks=1, initial_std=(0.1, 1.0))
    assert fusion.project_visual.weight.std().item() == pytest.approx(0.1, rel=0.02)
    assert fusion.project_words.weight.std().item() == pytest.approx(1.0, rel=0.02)


def test_labels_of_patches_as_released_and_as_printed() -> None:
    masks = torch.zeros(1, 1, SIZE, SIZE)
    masks[..., :16, :14] = masks[..., 16:32, :8] = masks[..., 63, 63] = 1  # 7/8, 1/2, one pixel
    released = make_restr().patch_labels(masks)[0, 0]
    printed = make_restr(patch_label="mean").patch_labels(masks)[0, 0]
    assert released.nonzero().tolist() == [[0, 0], [1, 0], [3, 3]]
    assert printed.nonzero().tolist() == [[0, 0]]


def test_the_printed_gate_differs_and_is_its_formula() -> None:
    code, paper = make_restr(), make_restr("sigmoid_scaled")
    state = {k: v for k, v in code.state_dict().items() if not k.endswith("_matrix")}
    paper.load_state_dict(state)
    features = code.encode_image(code.preprocess(images((64, 64))))
    references = [code.encode_text(["the red dog"])]
    ours, printed = (model.answer(features, references) for model in (code, paper))
    assert (ours.pixel_logits - printed.pixel_logits).abs().max() > 1e-2
    patches, classifier = torch.randn(1, 5, DIM), torch.randn(1, 1, DIM)
    logits, gated = paper.fusion.gate(patches, classifier)
    expected = (patches * classifier).sum(dim=2, keepdim=True) / DIM**0.5
    torch.testing.assert_close(logits, expected)
    torch.testing.assert_close(gated, expected.sigmoid() * patches)


def test_a_shared_block_is_repeated() -> None:
    torch.manual_seed(0)
    shared = Fusion(DIM, num_heads=4, num_blocks=3, shared=True).eval()
    apart = Fusion(DIM, num_heads=4, num_blocks=3).eval()
    state = shared.state_dict()
    for name in ("joint", "classifier"):
        for key in [key for key in state if key.startswith(f"{name}.0.")]:
            for number in (1, 2):
                state[key.replace(".0.", f".{number}.", 1)] = state[key]
    apart.load_state_dict(state)
    patches, words = torch.randn(1, 4, DIM), torch.randn(1, 3, DIM)
    torch.testing.assert_close(
        shared(patches, words, (2, 2)).pixel_logits, apart(patches, words, (2, 2)).pixel_logits
    )


def test_projecting_before_interpolating_is_the_same() -> None:
    torch.manual_seed(0)
    decoder, x = CoarseToFine(16, 2).double(), torch.randn(1, 16, 3, 4, dtype=torch.double)
    expected = x
    for conv in decoder.steps:
        larger = F.interpolate(expected, scale_factor=2, mode="bilinear", align_corners=True)
        expected = F.leaky_relu(conv(larger), 0.01)
    torch.testing.assert_close(decoder(x), decoder.score(expected), atol=1e-12, rtol=0)


def test_half_precision_stays_close() -> None:
    model = make_restr()
    features = model.encode_image(model.preprocess(images((64, 64))))
    expected = model.answer(features, [model.encode_text(["the red dog"])]).pixel_logits
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.encode_image(model.preprocess(images((64, 64))))
        ours = model.answer(features, [model.encode_text(["the red dog"])]).pixel_logits
    assert (ours.float() - expected).abs().max() < 0.05 * expected.abs().max()


def test_larger_images_are_refused() -> None:
    with pytest.raises(InputError, match="a side of 65 pixels, this model has positions for 64"):
        make_restr().preprocess(images((65, 40)))


def test_other_references_are_refused() -> None:
    model = make_restr()
    batch = model.preprocess(images((64, 64)))
    features = model.encode_image(batch)
    with pytest.raises(InputError, match="one sentence about each picture, got 0 ref"):
        model.segment(features, [])


def test_pretrained_vits_of_another_size_fit(tmp_path: Path) -> None:
    options = {"patch_size": 16, "dim": DIM, "num_blocks": 1, "num_heads": 4}
    torch.manual_seed(0)
    source, encoder = (VisualEncoder(image_size=size, **options) for size in (48, 64))
    weights = source.vit.state_dict() | {"head.weight": torch.zeros(5, DIM)}
    write_weights(tmp_path / "vit.safetensors", weights)
    encoder.load(tmp_path / "vit.safetensors")
    assert torch.equal(encoder.vit.patch_embed.proj.weight, source.vit.patch_embed.proj.weight)
    expected = resize_positions(source.vit.pos_embed, 16)
    assert expected.shape == (1, 17, DIM) and torch.equal(encoder.vit.pos_embed, expected)
    assert torch.equal(expected[:, 0], source.vit.pos_embed[:, 0])
    with pytest.raises(CheckpointError, match="belong to another model"):
        VisualEncoder(image_size=48, **{**options, "num_blocks": 2}).load(
            tmp_path / "vit.safetensors"
        )


def test_places_of_a_backbone_serve_pictures_of_every_size() -> None:
    """A place that says how far to the right it is still says it in a larger picture."""
    encoder = ConvolutionalEncoder(build_backbone("efficientnet_lite0"), dim=1, patch_size=8).eval()
    encoder.norm = torch.nn.Identity()
    column = torch.linspace(0.5, PLACES - 0.5, PLACES) / PLACES
    with torch.no_grad():
        encoder.project.weight.zero_()
        encoder.project.bias.zero_()
        encoder.places.copy_(column.repeat(PLACES)[:, None])
        for side in (8 * PLACES, 16 * PLACES):
            places = encoder(torch.rand(1, 3, side, side)).unflatten(1, (side // 8, side // 8))
            expected = (torch.arange(side // 8) + 0.5) * 8 / side
            within = expected.clamp(column[0], column[-1])
            torch.testing.assert_close(places[0, ..., 0], within.expand(side // 8, -1))
