"""Embeddings are made once for every picture and every state of the encoder."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from projects.sam.cache import EmbeddingCache
from tests.projects.sam.tiny import make_model

NUM = 4
ENTRY = 2 * 16 * 16 + 2 * 8 * 8  # bytes of numbers


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(1.0))
        self.seen = 0

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        self.seen += len(images)
        return self.scale * images[:, :1], images[:, :1, ::2, ::2]


def pictures(seed: int = 0) -> Tensor:
    return torch.randn(NUM, 3, 16, 16, generator=torch.Generator().manual_seed(seed))


def cache(encoder: nn.Module, folder: Path, limit: int = 1 << 20) -> EmbeddingCache:
    return EmbeddingCache(encoder, folder=folder, limit=limit)


@torch.no_grad()
def test_the_second_epoch_encodes_nothing_and_sees_the_same(tmp_path: Path) -> None:
    encoder = Encoder()
    first = cache(encoder, tmp_path)(encoder, pictures())
    assert encoder.seen == NUM
    order = torch.tensor([2, 0, 3, 1])
    again = cache(encoder, tmp_path)(encoder, pictures()[order])
    assert encoder.seen == NUM
    for one, other, plain in zip(first, again, encoder(pictures()), strict=True):
        assert torch.equal(one[order], other) and one.dtype == torch.float32
        torch.testing.assert_close(one, plain, atol=2e-3, rtol=1e-3)


def test_autocast_changes_no_entry(tmp_path: Path) -> None:
    sam = make_model().sam
    encoder = sam.freeze()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        (made,) = cache(encoder, tmp_path)(sam.encode_image, images)
        (kept,) = cache(encoder, tmp_path)(sam.encode_image, images)
    (plain,) = sam.encode_image(images)
    assert torch.equal(made, kept)
    torch.testing.assert_close(made, plain, atol=2e-3, rtol=1e-3)


@torch.no_grad()
def test_other_weights_and_other_pictures_are_other_entries(tmp_path: Path) -> None:
    encoder = Encoder()
    cache(encoder, tmp_path)(encoder, pictures())
    mixed = torch.cat([pictures()[:1], pictures(1)[:1]])
    cache(encoder, tmp_path)(encoder, mixed)
    assert encoder.seen == NUM + 1
    encoder.scale.fill_(2.0)
    level, _ = cache(encoder, tmp_path)(encoder, pictures())
    assert encoder.seen == 2 * NUM + 1
    torch.testing.assert_close(level, 2 * pictures()[:, :1], atol=4e-3, rtol=1e-3)


@torch.no_grad()
def test_the_folder_keeps_its_limit_and_what_was_used_last(tmp_path: Path) -> None:
    encoder = Encoder()
    size = 4 * (ENTRY + 200)
    kept = cache(encoder, tmp_path, limit=size)
    for seed in range(5):
        kept(encoder, pictures(seed))
        assert sum(file.stat().st_size for file in tmp_path.iterdir()) <= size
    seen = encoder.seen
    kept(encoder, pictures(4)[-1:])
    assert encoder.seen == seen
    kept(encoder, pictures(0)[-1:])
    assert encoder.seen == seen + 1


@torch.no_grad()
def test_a_damaged_entry_is_made_again(tmp_path: Path) -> None:
    encoder = Encoder()
    expected = cache(encoder, tmp_path)(encoder, pictures())
    for file in tmp_path.iterdir():
        file.write_bytes(b"half a file")
    assert torch.equal(cache(encoder, tmp_path)(encoder, pictures())[0], expected[0])
    assert encoder.seen == 2 * NUM


def test_a_model_uses_it_in_training_only(tmp_path: Path) -> None:
    model = make_model()
    model.cache = cache(model.sam.freeze(), tmp_path)
    images = model.preprocess([torch.randint(0, 256, (3, 64, 50))])
    exact = model.encode_image(images).levels[0]
    assert not list(tmp_path.iterdir())
    model.train()
    kept = model.encode_image(images).levels[0]
    assert len(list(tmp_path.iterdir())) == 1
    assert (kept - exact).abs().max() == pytest.approx(0, abs=5e-3) and not torch.equal(kept, exact)
