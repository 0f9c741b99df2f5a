"""Objects with many tensors as one tensor, for the way from a worker process to the trainer.

Every tensor that a process sends is a file in shared memory that both open: with hundreds of small
tensors in a batch that costs more than the training step of a small model.
"""

from __future__ import annotations

import io
import math
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 16  # bytes; views of other dtypes must start at multiples of their size


@dataclass(frozen=True)
class Packed:
    """What ``pack`` makes: the pickled object without its tensors, and their bytes."""

    skeleton: bytes
    storage: Tensor


def pack(content: Any) -> Packed:
    """Any picklable object; its tensors are on the CPU."""
    stream = io.BytesIO()
    pickler = _Pickler(stream)
    pickler.dump(content)
    storage = torch.empty(pickler.size, dtype=torch.uint8)
    for start, part in pickler.parts:
        storage[start : start + len(part)] = part
    return Packed(stream.getvalue(), storage)


def unpack(packed: Packed) -> Any:
    """The object; its tensors share the memory of ``packed.storage``."""
    return _Unpickler(packed).load()


class _Pickler(pickle.Pickler):
    def __init__(self, stream: io.BytesIO) -> None:
        super().__init__(stream, protocol=pickle.HIGHEST_PROTOCOL)
        self.parts: list[tuple[int, Tensor]] = []
        self.size = 0

    def persistent_id(self, content: Any) -> tuple[Any, ...] | None:
        if type(content) is not Tensor:
            return None
        start, dtype, shape = self.size, content.dtype, tuple(content.shape)
        part = content.detach().contiguous().flatten().view(torch.uint8)
        self.parts.append((start, part))
        self.size += math.ceil(len(part) / ALIGNMENT) * ALIGNMENT
        return start, len(part), dtype, shape


class _Unpickler(pickle.Unpickler):
    def __init__(self, packed: Packed) -> None:
        super().__init__(io.BytesIO(packed.skeleton))
        self.storage = packed.storage

    def persistent_load(self, place: tuple[Any, ...]) -> Tensor:
        start, length, dtype, shape = place
        return self.storage[start : start + length].view(dtype).view(shape)
