"""Box supervision against loops, scikit-image and numbers recorded from the reference."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from skimage.color import rgb2lab
from torch import Tensor

from unified.modeling.boxinst import (
    box_masks,
    color_similarity,
    pairwise_loss,
    projection_loss,
    rgb_to_lab,
    warm_up,
)
from unified.structures import stack_padded

RECORDED = Path(__file__).parents[2] / "data" / "uniref" / "train_losses.npz"
# The 8 neighbours at distance 2, row by row.
OFFSETS = [(dy, dx) for dy in (-2, 0, 2) for dx in (-2, 0, 2) if (dy, dx) != (0, 0)]


def random_image(seed: int, height: int, width: int) -> Tensor:
    """Smooth enough that some neighbours are alike."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, 5, 5, generator=generator) * 12 + 100
    image = torch.nn.functional.interpolate(coarse, size=(height, width), mode="bilinear")[0]
    return (image + 4 * torch.rand(3, height, width, generator=generator)).byte()


def slow_similarity(image: Tensor, padded: tuple[int, int], original_height: int) -> np.ndarray:
    _, height, width = image.shape
    canvas = np.zeros((*padded, 3))
    canvas[:height, :width] = image.permute(1, 2, 0).numpy()
    rows, columns = padded[0] // 4, padded[1] // 4
    pooled = canvas.reshape(rows, 4, columns, 4, 3).mean(axis=(1, 3)).astype(np.uint8)
    lab = rgb2lab(pooled[..., ::-1])
    last_row = height - int(10 * height / original_height)
    out = np.zeros((8, rows, columns))
    for k, (dy, dx) in enumerate(OFFSETS):
        for y in range(rows):
            for x in range(columns):
                v, u = y + dy, x + dx
                if (
                    0 <= v < rows
                    and 0 <= u < columns
                    and 4 * v + 2 < last_row
                    and 4 * u + 2 < width
                ):
                    out[k, y, x] = math.exp(-0.5 * float(np.linalg.norm(lab[y, x] - lab[v, u])))
    return out


def test_lab_equals_scikit_image() -> None:
    image = random_image(0, 40, 30)
    image[:, :4] = 0
    image[:, 4:8] = 255
    image[:, 8:12] //= 30  # dark colours take the linear branches
    wanted = rgb2lab(image.permute(1, 2, 0).numpy()).transpose(2, 0, 1)
    # float32 at a value of 100 resolves 4e-6
    np.testing.assert_allclose(rgb_to_lab(image[None])[0].numpy(), wanted, atol=1e-5, rtol=0)


@pytest.mark.parametrize("original_height", [50, 100, 30])
def test_color_similarity_equals_the_loop(original_height: int) -> None:
    image = random_image(1, 50, 44)
    other = random_image(3, 61, 30)
    images = stack_padded([image, other], (64, 64))
    similarity, _ = color_similarity(images, [(50, 44), (61, 30)], [original_height, 61])
    wanted = slow_similarity(image, (64, 64), original_height)
    np.testing.assert_allclose(similarity.numpy(), wanted, atol=1e-5)
    assert 0.1 < (wanted >= 0.3).mean() < 0.9


def test_color_similarity_equals_the_recorded_one() -> None:
    recorded = np.load(RECORDED)
    image = torch.from_numpy(recorded["boxinst/image"])
    (similarity,) = color_similarity(
        stack_padded([image], (96, 96)), [image.shape[1:]], original_heights=[10_000]
    )
    # The recording is of a larger image, hence the cut at two cells from the crop's border.
    np.testing.assert_allclose(
        similarity[:, :22, :22].numpy(), recorded["boxinst/color_similarity"], atol=1e-7
    )


def test_an_image_lower_than_the_ignored_border_has_no_similarity() -> None:
    image = random_image(2, 32, 32)
    assert color_similarity(image[None], [(32, 32)], original_heights=[5]).sum() == 0


def test_box_masks_cut_corners_to_pixels_and_include_the_last() -> None:
    masks = box_masks(torch.tensor([[1.9, 0.0, 3.2, 1.0], [-2.0, 2.0, 9.0, 9.0]]), (4, 5))
    assert masks.dtype == torch.bool
    assert masks[0].int().tolist() == [[0, 1, 1, 1, 0], [0, 1, 1, 1, 0], [0] * 5, [0] * 5]
    assert masks[1].int().tolist() == [[0] * 5, [0] * 5, [1] * 5, [1] * 5]
    assert box_masks(torch.zeros(0, 4), (4, 5)).shape == (0, 4, 5)


def test_projection_loss_equals_the_loop() -> None:
    logits = torch.randn(3, 6, 7, generator=torch.Generator().manual_seed(0)).double()
    masks = box_masks(torch.tensor([[1, 1, 3, 4], [0, 0, 6, 5], [2, 3, 2, 3.0]]), (6, 7)).double()
    for k in range(3):
        wanted = 0.0
        scores, mask = logits[k].sigmoid().tolist(), masks[k].tolist()
        for a, b in ((scores, mask), (list(zip(*scores)), list(zip(*mask)))):  # noqa: B905
            p, t = [max(line) for line in a], [max(line) for line in b]
            inner = sum(x * y for x, y in zip(p, t, strict=True))
            wanted += 1 - 2 * inner / (sum(x * x for x in p) + sum(y * y for y in t) + 1e-5)
        assert float(projection_loss(logits, masks)[k]) == pytest.approx(wanted, rel=1e-9)


def test_pairwise_loss_equals_the_loop() -> None:
    generator = torch.Generator().manual_seed(1)
    logits = 2 * torch.randn(2, 8, 9, generator=generator).double()
    masks = box_masks(torch.tensor([[1, 1, 5, 6], [0, 0, 8, 7.0]]), (8, 9)).double()
    similarity = torch.rand(2, 8, 8, 9, generator=generator).double()
    total, count = 0.0, 0
    for k in range(2):
        probability = logits[k].sigmoid().tolist()
        for n, (dy, dx) in enumerate(OFFSETS):
            for y in range(8):
                for x in range(9):
                    if masks[k, y, x] == 0 or similarity[k, n, y, x] < 0.3:
                        continue
                    count += 1
                    v, u = y + dy, x + dx
                    if 0 <= v < 8 and 0 <= u < 9:  # a neighbour outside agrees with everyone
                        p, q = probability[y][x], probability[v][u]
                        total -= math.log(p * q + (1 - p) * (1 - q))
    loss = pairwise_loss(logits, masks, similarity)
    assert float(loss) == pytest.approx(total / count, rel=1e-9)
    assert pairwise_loss(logits, masks, torch.zeros(2, 8, 8, 9)) == 0


def test_extreme_logits_stay_finite_forward_and_backward() -> None:
    logits = torch.tensor([[[200.0, -200.0, 200.0], [-200.0, 200.0, -200.0]]]).requires_grad_()
    masks, similarity = torch.ones(1, 2, 3), torch.ones(1, 8, 2, 3)
    loss = projection_loss(logits, masks).mean() + pairwise_loss(logits, masks, similarity)
    loss.backward()
    assert loss.isfinite() and logits.grad is not None and logits.grad.isfinite().all()


def test_warm_up_counts_decoder_layers_last_layer_first() -> None:
    losses = {"loss_pairwise_0": torch.ones(()), "loss_pairwise": torch.ones(())}
    losses["loss_prj"] = torch.ones(())
    scaled = warm_up(losses, 4000)
    assert {name: float(value) for name, value in scaled.items()} == pytest.approx(
        {"loss_pairwise": 0.4001, "loss_pairwise_0": 0.4002, "loss_prj": 1.0}
    )
    assert all(value == 1 for value in warm_up(losses, 20_000).values())
