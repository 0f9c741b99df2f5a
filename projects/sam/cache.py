"""Embeddings of a frozen image encoder on disk, so that an image is encoded once."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from unified.checkpoint import read_weights
from unified.errors import CheckpointError
from unified.files import atomic_path
from unified.modeling.precision import full_precision

GIGABYTE = 1 << 30
Embedding = tuple[Tensor, ...]


class EmbeddingCache:
    """A folder of embeddings in half precision, keyed by the encoder's weights and the pixels.

    So other weights, another file or another resize are other entries. The first answer is rounded
    like the later ones: every epoch sees the same numbers. When the folder is full, what was used
    longest ago goes.

    Args:
        encoder: its weights name the entries; they stay as they are from the first call on.
        folder: made when it is needed; several processes may share it.
        limit: bytes that it may hold.
    """

    def __init__(self, encoder: nn.Module, *, folder: Path, limit: int) -> None:
        self.encoder, self.folder, self.limit = encoder, folder, limit
        self._weights: bytes | None = None
        self._held = 0  # bytes, at least

    def __call__(self, encode: Callable[[Tensor], Embedding], images: Tensor) -> Embedding:
        """``encode(images)`` for images (B, 3, S, S), only for those not known yet."""
        paths = [self._path(image) for image in images.cpu()]
        found = [self._read(path) for path in paths]
        fresh = [index for index, entry in enumerate(found) if entry is None]
        if fresh:
            with full_precision(images.device):  # an entry serves every kind of autocast
                made = [part.half() for part in encode(images[fresh])]
            for row, index in enumerate(fresh):
                found[index] = tuple(part[row].cpu() for part in made)
                self._write(paths[index], found[index] or ())
        rows = [entry for entry in found if entry is not None]
        return tuple(
            torch.stack([part.float() for part in parts]).to(images.device)
            for parts in zip(*rows, strict=True)
        )

    def _path(self, image: Tensor) -> Path:
        if self._weights is None:
            self._weights = _digest(self.encoder.state_dict())
        digest = hashlib.blake2b(self._weights, digest_size=16)
        digest.update(image.contiguous().numpy())
        return self.folder / f"{digest.hexdigest()}.safetensors"

    def _read(self, path: Path) -> Embedding | None:
        """None also for an entry that is gone or damaged: it is made again."""
        try:
            entry = read_weights(path)
            os.utime(path)
        except (CheckpointError, OSError):
            return None
        return tuple(entry[name] for name in sorted(entry))

    def _write(self, path: Path, entry: Embedding) -> None:
        from safetensors.torch import save_file

        self.folder.mkdir(parents=True, exist_ok=True)
        with atomic_path(path) as temporary:
            parts = {f"{place:02d}": part.contiguous() for place, part in enumerate(entry)}
            save_file(parts, temporary)
        self._held += path.stat().st_size
        if self._held > self.limit or self._held == path.stat().st_size:
            self._make_room()

    def _make_room(self) -> None:
        """Deletes the entries that were used longest ago until a tenth of the limit is free."""
        files = {file: file.stat() for file in self.folder.glob("*.safetensors") if file.exists()}
        self._held = sum(status.st_size for status in files.values())
        if self._held <= self.limit:
            return
        for file in sorted(files, key=lambda file: files[file].st_mtime):
            file.unlink(missing_ok=True)
            self._held -= files[file].st_size
            if self._held <= 0.9 * self.limit:
                return


def _digest(weights: Mapping[str, Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for key, value in sorted(weights.items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.digest()
