"""Made candidates: boxes on a grid, with features that say what they are."""

from __future__ import annotations

import torch
from torch import Tensor

from unified.inference.chooser.candidates import Found, overlaps
from unified.inference.chooser.choosing import Network
from unified.inference.chooser.colours import NUM_CHANNELS
from unified.inference.chooser.describing import Described
from unified.inference.chooser.network import ChooserNetwork

GRID = (20, 30)
SEEN, TEXT = 12, 16


def boxes(*corners: tuple[int, int, int, int]) -> Tensor:
    """Masks (K, h, w) bool of x0, y0, x1, y1 in cells."""
    masks = torch.zeros(len(corners), *GRID, dtype=torch.bool)
    for mask, (x0, y0, x1, y1) in zip(masks, corners, strict=True):
        mask[y0:y1, x0:x1] = True
    return masks


def found(masks: Tensor, scores: list[float] | None = None) -> Found:
    """As a segmenter would find them."""
    given = torch.tensor(scores) if scores else torch.linspace(0.9, 0.5, len(masks))
    return Found(masks.float() * 0.8 + 0.1, given)


def random_described(num: int, seed: int = 0) -> Described:
    """Candidates with random features and places."""
    rng = torch.Generator().manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=rng)

    starts = [(int(20 * x), int(12 * y)) for x, y in draw(num, 2).tolist()]
    masks = boxes(*((x, y, x + 6, y + 5) for x, y in starts))
    x, y = (torch.tensor(values) for values in zip(*starts, strict=True))
    corners = torch.stack((x / 30, y / 20, (x + 6) / 30, (y + 5) / 20), dim=1)
    centres = (corners[:, :2] + corners[:, 2:]) / 2
    rest = torch.tensor([[0.05, 0.9]]).expand(num, 2)
    places = torch.cat((centres, corners, rest), dim=1)
    return Described(
        draw(num, SEEN), draw(num, 3 * NUM_CHANNELS), places, draw(num), *overlaps(masks, masks)
    )


def make_network(kind: type[Network] = ChooserNetwork, seed: int = 0) -> Network:
    """A small one in eval mode."""
    torch.manual_seed(seed)
    return kind(seen_dim=SEEN, text_dim=TEXT, dim=32, dropout=0.0).eval()
