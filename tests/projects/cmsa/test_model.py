"""The whole of CMSA: verbs, losses, variants, sizes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.cmsa.deeplab import build_deeplab
from projects.cmsa.model import Cmsa, resize_from_corner
from unified.errors import InputError
from unified.modeling.vocabulary import SPECIAL, Vocabulary, WordTable
from unified.structures import Target, stack_levels

WORDS = ("the", "red", "left", "dog", "ball")


class TinyBackbone(nn.Module):
    """res3, res4 and res5 at strides 8, 16 and 16."""

    def __init__(self) -> None:
        super().__init__()
        self.channels = {"res3": 4, "res4": 5, "res5": 6}
        self.first = nn.Conv2d(3, 4, 8, stride=8)
        self.second = nn.Conv2d(4, 5, 2, stride=2)
        self.third = nn.Conv2d(5, 6, 3, padding=1)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images).tanh()
        second = self.second(first).tanh()
        return {"res3": first, "res4": second, "res5": self.third(second)}


def make_cmsa(gate: str = "code") -> Cmsa:
    torch.manual_seed(0)
    words = WordTable(Vocabulary([*SPECIAL, *WORDS]), dim=7, context_length=6)
    model = Cmsa(
        backbone=TinyBackbone(),
        text_encoder=words,
        visual_dim=8,
        inner_dims=(3, 3, 3),
        reduced_dims=(5, 5),
        fusion_dim=6,
        gate=gate,
        image_size=32,
        pixel_mean=(127.0,) * 3,
        pixel_std=(64.0,) * 3,
    )
    return model.eval()


def images(*sizes: tuple[int, int]) -> list[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(0, 256, (3, *size), generator=generator).float() for size in sizes]


def target(height: int = 32, width: int = 32) -> Target:
    mask = torch.zeros(1, height, width, dtype=torch.bool)
    mask[:, 4:20, 8:24] = True
    return Target(torch.zeros(1, dtype=torch.int64), torch.tensor([[0.5, 0.4, 0.5, 0.5]]), mask)


def test_it_speaks_the_verbs() -> None:
    model = make_cmsa()
    assert model.reference_kinds == {"text"}
    features = model.encode_image(model.preprocess(images((32, 20))))
    answer = model.segment(features, [model.encode_text(["the red dog"])])
    assert answer.mask_logits.shape == (1, 1, 8, 8)
    assert answer.scores.shape == answer.classes.shape == (1, 1)
    fine = model.segment(features, [model.encode_text(["the red dog"])], mask_stride=1)
    assert fine.mask_logits.shape == (1, 1, 32, 32)
    torch.testing.assert_close(F.avg_pool2d(fine.mask_logits, 4), answer.mask_logits)


def test_batch_equals_loop_for_sentences_of_all_lengths() -> None:
    model = make_cmsa()
    pictures, texts = images((32, 32), (32, 20), (12, 32)), ["dog", "the red dog", "left ball"]
    together = model.logits(
        model.encode_image(model.preprocess(pictures)), [model.encode_text(texts)]
    )
    for row, (picture, text) in enumerate(zip(pictures, texts, strict=True)):
        alone = model.logits(
            model.encode_image(model.preprocess([picture])), [model.encode_text([text])]
        )
        torch.testing.assert_close(together[row], alone[0], atol=1e-6, rtol=0)


def test_objects_of_one_picture_are_a_batch() -> None:
    """As the video predictor asks: features repeated, references stacked."""
    model = make_cmsa()
    features = model.encode_image(model.preprocess(images((32, 32))))
    references = [model.encode_text([text]) for text in ("dog", "the red ball")]
    together = model.logits(features.expand(2), [stack_levels(references)])
    for row, reference in enumerate(references):
        torch.testing.assert_close(
            together[row], model.logits(features, [reference])[0], atol=1e-6, rtol=0
        )


def test_the_sentence_decides() -> None:
    model = make_cmsa()
    features = model.encode_image(model.preprocess(images((32, 32))))
    one, other = (model.logits(features, [model.encode_text([t])]) for t in ("dog", "red ball"))
    assert (one - other).abs().max() > 1e-4


def test_losses_reach_every_parameter() -> None:
    model = make_cmsa().train()
    features = model.encode_image(model.preprocess(images((32, 32), (32, 32))))
    references = [model.encode_text(["the red dog", "left ball"])]
    losses = model.losses(features, references, [target(), target()])
    logits = model.logits(features, references)
    labels = target().masks.float()[:, None].expand(2, -1, -1, -1)
    entropy = F.binary_cross_entropy_with_logits(logits, labels, reduction="sum") / 2
    torch.testing.assert_close(losses["loss_pixel"], entropy)
    squares = model.reduce.weight.square().sum() + model.score.weight.square().sum()
    torch.testing.assert_close(losses["loss_weights"], 2.5e-4 * squares)
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name


def test_the_printed_gate_differs() -> None:
    """It has no candidate of its own, so the same weights mean something else."""
    code, paper = make_cmsa(), make_cmsa("paper")
    kept = paper.state_dict()
    for index in range(3):
        for part in ("weight", "bias"):
            key = f"fusion.gates.{index}.{part}"
            kept[key] = code.state_dict()[key][6:]  # memory and reset
    kept |= {k: v for k, v in code.state_dict().items() if not k.startswith("fusion.gates")}
    paper.load_state_dict(kept)
    features = code.encode_image(code.preprocess(images((32, 32))))
    reference = [code.encode_text(["the red dog"])]
    difference = code.logits(features, reference) - paper.logits(features, reference)
    assert difference.abs().max() > 1e-4
    levels = [torch.randn(1, 6, 4, 4) for _ in range(3)]
    closed = [[torch.full_like(levels[0], -99.0), torch.full_like(levels[0], 99.0)]] * 3
    torch.testing.assert_close(paper.fusion.cell(0, levels, closed), levels[0].tanh())


def test_other_references_are_refused() -> None:
    model = make_cmsa()
    batch = model.preprocess(images((32, 32)))
    features = model.encode_image(batch)
    with pytest.raises(InputError, match="one sentence about each picture, got 0 ref"):
        model.segment(features, [])


def test_the_trunk_of_deeplab_has_one_grid() -> None:
    """Stride 8 throughout, and TensorFlow's alignment: cell i sees no pixel left of its window."""
    trunk = build_deeplab()
    assert not any(parameter.requires_grad for parameter in trunk.parameters())
    maps = trunk(torch.rand(1, 3, 64, 48))
    shapes = {name: tuple(x.shape[1:]) for name, x in maps.items()}
    assert shapes == {
        "res2": (256, 16, 12),
        "res3": (512, 8, 6),
        "res4": (1024, 8, 6),
        "res5": (2048, 8, 6),
    }
    dilations = {
        name: {block.conv2.dilation[0] for block in getattr(trunk, name)} for name in shapes
    }
    assert dilations == {"res2": {1}, "res3": {1}, "res4": {2}, "res5": {4}}
    strides = [trunk.res3[0].conv1.stride, trunk.res3[0].conv2.stride, trunk.res4[0].conv1.stride]
    assert strides == [(2, 2), (1, 1), (1, 1)]
    stem = trunk.stem
    image = torch.zeros(1, 3, 16, 16)
    image[0, 0, 5, 5] = 1.0
    seen = stem.conv1(stem.pad1(image))[0].abs().sum(dim=0) > 0
    assert seen.nonzero().amin(dim=0).tolist() == [1, 1]  # rows 2 i - 2 to 2 i + 4
    assert seen.nonzero().amax(dim=0).tolist() == [3, 3]


def test_the_trunk_mirrors_channels() -> None:
    stem, image = build_deeplab().stem, torch.rand(1, 3, 16, 16)
    expected = stem.act1(stem.bn1(stem.conv1(stem.pad1(image.flip(1)))))
    torch.testing.assert_close(stem(image), stem.maxpool(stem.pad2(expected)))


def test_half_precision_stays_close() -> None:
    model = make_cmsa()
    features = model.encode_image(model.preprocess(images((32, 32))))
    reference = [model.encode_text(["the red dog"])]
    expected = model.logits(features, reference)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        features = model.encode_image(model.preprocess(images((32, 32))))
        ours = model.logits(features, [model.encode_text(["the red dog"])])
    assert (ours.float() - expected).abs().max() < 0.02 * expected.abs().max() + 0.02


def test_resizing_half_precision_keeps_its_places() -> None:
    """bfloat16 itself has no whole numbers between 256 and 258."""
    row = (torch.arange(40) % 2).float()[None, None, None]
    exact = resize_from_corner(row, (1, 320))
    half = resize_from_corner(row.bfloat16(), (1, 320))
    assert half.dtype == torch.bfloat16
    assert (half.float() - exact).abs().max() < 0.01


def test_resizing_starts_at_the_corner() -> None:
    row = torch.tensor([[[[0.0, 1.0, 4.0]]]])
    assert resize_from_corner(row, (1, 6)).flatten().tolist() == [0.0, 0.5, 1.0, 2.5, 4.0, 4.0]
    assert torch.equal(resize_from_corner(row, (1, 3)), row)
