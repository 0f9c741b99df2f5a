from __future__ import annotations

import copy
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from projects.uniref.model import UniRef
from unified.errors import ConfigError
from unified.segmenter import Segmenter
from unified.structures import (
    FeaturePyramid,
    ImageBatch,
    References,
    Segmentation,
    Target,
)

SIZES = ((96, 128), (70, 90))
SENTENCES = ("the red dog", "a man on the left chair")
KINDS = ("none", "text", "mask", "both")


def images(sizes: Sequence[tuple[int, int]] = SIZES) -> list[Tensor]:
    """Coloured rectangles on noise, 0..255."""
    generator = torch.Generator().manual_seed(0)
    made = []
    for index, (height, width) in enumerate(sizes):
        image = torch.rand(3, height, width, generator=generator) * 80
        image[0, 10 + index : height // 2, 15 : width // 2] += 150
        image[2, height // 2 :, width // 2 : -8] += 150
        made.append(image)
    return made


def masks(batch: ImageBatch) -> Tensor:
    marked = torch.zeros(len(batch), *batch.padded_size, dtype=torch.bool)
    for row, (height, width) in zip(marked, batch.image_sizes, strict=True):
        row[10 : height // 2, 15 : width // 2] = True
    return marked


def encode(
    model: UniRef, kind: str, sizes: Sequence[tuple[int, int]] = SIZES
) -> tuple[FeaturePyramid, list[References]]:
    batch = model.preprocess(images(sizes))
    features = model.encode_image(batch)
    references: list[References] = []
    if kind in ("text", "both"):
        references.append(model.encode_text(SENTENCES[: len(sizes)]))
    if kind in ("mask", "both"):
        references.append(model.encode_mask(batch, features, masks(batch)))
    return features, references


def segment(model: UniRef, kind: str, **options: int) -> Segmentation:
    with torch.no_grad():
        return model.segment(*encode(model, kind), **options)


def close(ours: Segmentation, expected: Segmentation, atol: float = 1e-4) -> None:
    for name in ("mask_logits", "scores", "boxes", "classes"):
        torch.testing.assert_close(
            getattr(ours, name), getattr(expected, name), atol=atol, rtol=1e-4
        )


# ---------------------------------------------------------------- the verbs


def test_speaks_the_verbs_of_a_segmenter(uniref: UniRef) -> None:
    assert isinstance(uniref, Segmenter)
    assert uniref.reference_kinds == {"text", "mask"}
    assert callable(uniref.losses)


def test_features_and_references_have_the_documented_shapes(uniref: UniRef) -> None:
    features, (text, mask) = encode(uniref, "both")
    shapes = [(12, 16), (6, 8), (3, 4), (2, 2)]
    assert [tuple(x.shape) for x in features.levels] == [(2, 64, h, w) for h, w in shapes]
    assert [tuple(x.shape) for x in features.padding_masks] == [(2, h, w) for h, w in shapes]
    assert features.high_res is not None and features.high_res.shape == (2, 8, 24, 32)
    assert features.image_sizes == SIZES and features.padded_size == (96, 128)
    for level, reference in enumerate(text):
        assert reference.keys.shape == (2, 8, 64) and reference.summary.shape == (2, 64)
        assert reference.padding_mask.sum(dim=1).tolist() == [3, 0]
        assert torch.equal(reference.keys, reference.values), level
    for (height, width), reference in zip(shapes, mask, strict=True):
        assert reference.keys.shape == reference.values.shape == (2, height * width, 64)
        assert reference.padding_mask.shape == (2, height * width)


def test_keys_of_a_mask_are_the_features_and_its_summary_their_mean(uniref: UniRef) -> None:
    features, (references,) = encode(uniref, "mask")
    for level, padding, reference in zip(
        features.levels, features.padding_masks, references, strict=True
    ):
        assert torch.equal(reference.keys, level.flatten(2).transpose(1, 2))
        for image in range(2):
            expected = level[image][:, ~padding[image]].mean(dim=1)
            torch.testing.assert_close(reference.summary[image], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("top_k", "stride"), [(1, 4), (1, 1), (5, 4)])
def test_segmentations_have_the_documented_shapes(
    uniref: UniRef, kind: str, top_k: int, stride: int
) -> None:
    found = segment(uniref, kind, top_k=top_k, mask_stride=stride)
    kept = found.scores.shape[1]
    assert 1 <= kept <= top_k
    assert found.mask_logits.shape == (2, kept, 96 // stride, 128 // stride)
    assert found.boxes.shape == (2, kept, 4) and found.classes.shape == (2, kept)
    assert found.boxes.ge(0).all() and found.boxes.le(1).all()
    assert found.scores.ge(0).all() and found.scores.le(1).all()
    assert torch.equal(found.scores, found.scores.sort(dim=1, descending=True).values)
    assert found.classes.dtype == torch.int64 and not found.classes.any()


@pytest.mark.parametrize("kind", ["text", "mask", "both"])
def test_references_matter(uniref: UniRef, kind: str) -> None:
    with_it, without = segment(uniref, kind), segment(uniref, "none")
    assert (with_it.scores - without.scores).abs().min() > 1e-3


def test_another_sentence_another_result(uniref: UniRef) -> None:
    features, _ = encode(uniref, "none")
    with torch.no_grad():
        first = uniref.segment(features, [uniref.encode_text(SENTENCES)])
        second = uniref.segment(features, [uniref.encode_text(SENTENCES[::-1])])
    assert (first.scores - second.scores).abs().max() > 1e-3


def test_order_of_references_is_irrelevant(uniref: UniRef) -> None:
    features, references = encode(uniref, "both")
    with torch.no_grad():
        close(uniref.segment(features, references[::-1]), uniref.segment(features, references))


def test_full_masks_are_the_stride_4_ones_upsampled(uniref: UniRef) -> None:
    coarse, full = segment(uniref, "text"), segment(uniref, "text", mask_stride=1)
    torch.testing.assert_close(full.mask_logits[..., 2::4, 2::4], coarse.mask_logits)


def test_nothing_is_changed(uniref: UniRef) -> None:
    before = copy.deepcopy(uniref.state_dict())
    pixels = images()
    kept = [image.clone() for image in pixels]
    features, references = encode(uniref, "both")
    levels = [level.clone() for level in features.levels]
    keys = [level.keys.clone() for reference in references for level in reference]
    with torch.no_grad():
        first = uniref.segment(features, references)
        close(uniref.segment(features, references), first, atol=0)
    after = [level.keys for reference in references for level in reference]
    assert all(torch.equal(a, b) for a, b in zip(features.levels, levels, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(after, keys, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(pixels, kept, strict=True))
    assert all(torch.equal(before[key], value) for key, value in uniref.state_dict().items())


# ---------------------------------------------------------------- batches and padding


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(64, 96), (70, 90)])
def test_batch_equals_loop(uniref: UniRef, kind: str, size: tuple[int, int]) -> None:
    """Of images of one size, which all have the same padding."""
    features, references = encode(uniref, kind, (size, size))
    with torch.no_grad():
        together = uniref.segment(features, references)
        for index in range(2):
            row = slice(index, index + 1)
            batch = uniref.preprocess(images((size, size))[row])
            alone = uniref.encode_image(batch)
            own: list[References] = []
            if kind in ("text", "both"):
                own.append(uniref.encode_text(SENTENCES[row]))
            if kind in ("mask", "both"):
                own.append(uniref.encode_mask(batch, alone, masks(batch)))
            found = uniref.segment(alone, own)
            close(
                found,
                Segmentation(
                    mask_logits=together.mask_logits[row],
                    scores=together.scores[row],
                    boxes=together.boxes[row],
                    classes=together.classes[row],
                ),
            )


def test_an_image_with_few_detections_takes_none_from_its_neighbour(build_uniref: object) -> None:
    """Suppression leaves other numbers of queries in different images."""
    detector = build_uniref(kinds=(), num_queries=40)  # type: ignore[operator]
    detector.nms_threshold = 0.2
    with torch.no_grad():
        features = detector.encode_image(detector.preprocess(images()))
        together = detector.segment(features, [], top_k=30)
        kept = []
        for index in range(2):
            row = slice(index, index + 1)
            one = FeaturePyramid(
                levels=tuple(level[row] for level in features.levels),
                padding_masks=tuple(mask[row] for mask in features.padding_masks),
                image_sizes=features.image_sizes[row],
                padded_size=features.padded_size,
                high_res=None if features.high_res is None else features.high_res[row],
            )
            alone = detector.segment(one, [], top_k=30)
            num = alone.scores.shape[1]
            kept.append(num)
            for name in ("scores", "boxes", "mask_logits"):
                ours, expected = getattr(together, name)[index, :num], getattr(alone, name)[0]
                torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
            assert not together.scores[index, num:].any()
            assert not together.boxes[index, num:].any()
    assert kept[0] != kept[1]


def padded(features: FeaturePyramid, value: float) -> FeaturePyramid:
    """The same features of one image on canvases twice as large, padding filled with ``value``."""

    def grow(x: Tensor, fill: float) -> Tensor:
        height, width = x.shape[-2:]
        canvas = torch.full((*x.shape[:-2], 2 * height, 2 * width), fill).to(x.dtype)
        canvas[..., :height, :width] = x
        return canvas

    assert features.high_res is not None
    return FeaturePyramid(
        levels=tuple(grow(level, value) for level in features.levels),
        padding_masks=tuple(grow(mask, True) for mask in features.padding_masks),
        image_sizes=features.image_sizes,
        padded_size=(2 * features.padded_size[0], 2 * features.padded_size[1]),
        high_res=grow(features.high_res, 0.0),
    )


@pytest.mark.parametrize("kind", KINDS)
def test_padding_of_features_changes_no_score_and_no_box(uniref: UniRef, kind: str) -> None:
    """From the projected features on, an image is the same alone and in a larger batch.

    The convolutions of the mask branch look across the border, as the reference's do, so masks are
    compared farther from it than they reach: 84 pixels.
    """
    size = (256, 256)
    features, references = encode(uniref, kind, (size,))
    with torch.no_grad():
        expected = uniref.segment(features, references)
        for fill in (0.0, 3.0):
            ours = uniref.segment(padded(features, fill), references)
            for name in ("scores", "boxes"):
                torch.testing.assert_close(
                    getattr(ours, name), getattr(expected, name), atol=1e-5, rtol=1e-5
                )
            reach = (256 - 84) // 4
            torch.testing.assert_close(
                ours.mask_logits[..., :reach, :reach],
                expected.mask_logits[..., :reach, :reach],
                atol=1e-3,
                rtol=1e-4,
            )


def test_padding_of_images_reaches_features_as_in_the_reference(uniref: UniRef) -> None:
    """Zeros beyond an image take part in the norm of its projected features.

    The reference does the same (its recorded padded batches hold it); so an image alone is not
    bit by bit the image in a padded batch, but close.
    """
    batch = uniref.preprocess(images())
    together = uniref.encode_image(batch)
    alone = uniref.encode_image(uniref.preprocess(images()[1:]))
    height, width = alone.levels[0].shape[2:]
    inside = together.levels[0][1:, :, : height - 1, : width - 1]
    difference = (inside - alone.levels[0][..., : height - 1, : width - 1]).abs()
    assert 0 < difference.mean() < 0.5 * alone.levels[0].abs().mean()


def test_what_stands_on_padded_reference_tokens_is_ignored(uniref: UniRef) -> None:
    features, references = encode(uniref, "both")
    polluted = [
        tuple(
            type(level)(
                keys=level.keys.masked_fill(level.padding_mask[..., None], 50.0),
                values=level.values.masked_fill(level.padding_mask[..., None], 50.0),
                padding_mask=level.padding_mask,
                summary=level.summary,
            )
            for level in reference
        )
        for reference in references
    ]
    with torch.no_grad():
        close(uniref.segment(features, polluted), uniref.segment(features, references))


# ---------------------------------------------------------------- precision


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_close_to_float32(uniref: UniRef, kind: str, dtype: torch.dtype) -> None:
    """On a padded batch. The same tokens are given, as rounding may exchange near-tied ones."""
    features, references = encode(uniref, kind)
    last = uniref.head.num_layers - 1
    with torch.no_grad():
        expected = uniref.head(uniref.fuse(features, references), features.padding_masks)
        with torch.autocast("cpu", dtype=dtype):
            features, references = encode(uniref, kind)
            fused = uniref.fuse(features, references)
            found = uniref.segment(features, references)
            ours = uniref.head(fused, features.padding_masks)
    for tensor in (found.mask_logits, found.scores, found.boxes, *fused):
        assert tensor.isfinite().all()
    assert found.mask_logits.dtype == torch.float32, "masks keep their contours"
    assert found.boxes.dtype == torch.float32, "boxes of large images need more than 8 bits"
    for level, (mine, reference) in enumerate(zip(ours.memory, expected.memory, strict=True)):
        error = (mine - reference).abs().mean() / reference.abs().mean()
        assert error < (0.03 if dtype == torch.bfloat16 else 0.004), level
    with torch.no_grad():
        shared = uniref.mask_head.features(expected.memory, features.high_res.float()).to(dtype)
        sizes = ((851, 1333), (601, 853))  # bfloat16 would make 1336 and 856 of the widths
        index = torch.zeros(2, 3, dtype=torch.int64) + torch.arange(3)
        exact = uniref.decode_masks(expected, shared.float(), sizes, last, index, mask_stride=4)
        with torch.autocast("cpu", dtype=dtype):
            rounded = uniref.decode_masks(expected, shared, sizes, last, index, mask_stride=4)
    torch.testing.assert_close(rounded, exact, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_masks_of_one_query_agree_after_autocast(uniref: UniRef, dtype: torch.dtype) -> None:
    """End to end: the share of pixels on the same side."""
    exact = segment(uniref, "both", mask_stride=1)
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        found = segment(uniref, "both", mask_stride=1)
    same_query = (found.boxes - exact.boxes).abs().amax(dim=(1, 2)) < 0.02
    assert same_query.any()
    agreement = ((found.mask_logits > 0) == (exact.mask_logits > 0)).float().mean(dim=(1, 2, 3))
    assert agreement[same_query].min() > 0.98


# ---------------------------------------------------------------- parts left out


def test_a_detector_only_detects(build_uniref: object) -> None:
    detector = build_uniref(kinds=(), num_classes=5)  # type: ignore[operator]
    assert detector.reference_kinds == frozenset()
    found = segment(detector, "none", top_k=8)
    assert found.classes.max() > 0
    features, _ = encode(detector, "none")
    with pytest.raises(ConfigError, match="no text encoder"):
        detector.encode_text(["a dog"])
    with pytest.raises(ConfigError, match="no mask encoder"):
        batch = detector.preprocess(images())
        detector.encode_mask(batch, features, masks(batch))
    whole = build_uniref(num_classes=5)  # type: ignore[operator]
    with pytest.raises(ConfigError, match="no fusion layer: it only detects"):
        detector.segment(features, [whole.encode_text(SENTENCES)])


# ---------------------------------------------------------------- training


def target(batch: ImageBatch, index: int) -> Target:
    height, width = batch.image_sizes[index]
    mask = masks(batch)[index]
    rows, columns = mask.nonzero().T
    corners = torch.stack([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]).float()
    centre, size = (corners[:2] + corners[2:]) / 2, corners[2:] - corners[:2]
    scale = torch.tensor([width, height])
    return Target(
        labels=torch.zeros(1, dtype=torch.int64),
        boxes=torch.cat([centre / scale, size / scale])[None],
        masks=mask[None],
    )


@pytest.mark.parametrize("stride", [4, 1])
def test_gradient_reaches_every_parameter(build_uniref: object, stride: int) -> None:
    model = build_uniref()  # type: ignore[operator]
    model.train()
    batch = model.preprocess(images())
    features, references = encode(model, "both")
    losses = model.losses(
        features, references, [target(batch, index) for index in range(2)], mask_stride=stride
    )
    assert all(loss.ndim == 0 and loss.isfinite() for loss in losses.values())
    sum(losses.values()).backward()
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            assert "pooler" in name
            continue
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any() or name == "fusion.attention.k_proj.bias", name


def test_a_step_down_the_gradient_lowers_the_loss(build_uniref: object) -> None:
    model = build_uniref()  # type: ignore[operator]
    batch = model.preprocess(images())
    targets = [target(batch, index) for index in range(2)]

    def objective() -> Tensor:
        features, references = encode(model, "both")
        return sum(model.losses(features, references, targets).values())

    parameters = [p for p in model.parameters() if p.requires_grad]
    before = objective()
    gradients = torch.autograd.grad(before, parameters, allow_unused=True)
    with torch.no_grad():
        for parameter, gradient in zip(parameters, gradients, strict=True):
            if gradient is not None:
                parameter -= 1e-4 * gradient
    assert objective() < before
