"""Reading pickles of plain containers and arrays, such as Detectron2's .pkl backbones."""

from __future__ import annotations

import os
import pickle
from collections import OrderedDict
from typing import Any, NoReturn

import numpy as np

from unified.errors import CheckpointError


def _dtype(name: Any, *flags: Any) -> np.dtype[Any]:
    """``numpy.dtype`` for numbers, booleans and text; a dtype that holds objects is refused."""
    dtype: np.dtype[Any] = np.dtype(name, *flags)
    if dtype.kind not in "?biufcSU" or dtype.subdtype is not None:
        raise pickle.UnpicklingError(f"arrays of dtype {dtype} are not allowed")
    return dtype


def _encode(text: str, encoding: str = "utf-8") -> bytes:
    """How pickle protocols below 3 write bytes; other codecs of Python do more than encode."""
    if encoding not in ("latin1", "utf-8"):
        raise pickle.UnpicklingError(f"the codec {encoding!r} is not allowed")
    return text.encode(encoding)


# numpy moved these between versions: take them from what numpy itself writes into a pickle.
_ALLOWED: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _ALLOWED[f"{_core}.multiarray._reconstruct"] = np.empty(0).__reduce__()[0]
    _ALLOWED[f"{_core}.multiarray.scalar"] = np.float32(0).__reduce__()[0]
    _ALLOWED[f"{_core}.numeric._frombuffer"] = np.empty(0).__reduce_ex__(5)[0]


class _ArrayUnpickler(pickle.Unpickler):
    """Unpickler that resolves only the names above."""

    def find_class(self, module: str, name: str) -> Any:
        allowed = _ALLOWED.get(f"{module}.{name}")
        if allowed is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which could run code")
        return allowed

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("persistent references are not allowed")


def safe_load_pkl(path: str | os.PathLike[str]) -> Any:
    """Content of a pickle made of arrays, numbers, text, dicts, lists and tuples; runs no code.

    Text of Python 2 pickles is read as latin-1, as Detectron2 does.

    Raises:
        CheckpointError: the file is missing, damaged, or refers to anything else.
    """
    try:
        with open(path, "rb") as file:
            return _ArrayUnpickler(file, encoding="latin1").load()
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read: {error.strerror or error}") from error
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path} is not a plain pickle of arrays: {error}. Use a file from a source you trust "
            "that holds only arrays, or convert it to .safetensors"
        ) from error
    except Exception as error:  # a damaged pickle can raise nearly anything
        raise CheckpointError(
            f"{path} is damaged or no pickle ({type(error).__name__}): download it again"
        ) from error
