"""Reading pickles of plain containers and arrays without running what is in them."""

from __future__ import annotations

import os
import pickle
import re
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, NoReturn

import numpy as np

from unified.errors import CheckpointError, first_line


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
_ARRAYS: dict[str, Any] = {
    "numpy.ndarray": np.ndarray,
    "numpy.dtype": _dtype,
    "collections.OrderedDict": OrderedDict,
    "_codecs.encode": _encode,
}
for _core in ("numpy.core", "numpy._core"):
    _ARRAYS[f"{_core}.multiarray._reconstruct"] = np.empty(0).__reduce__()[0]
    _ARRAYS[f"{_core}.multiarray.scalar"] = np.float32(0).__reduce__()[0]
    _ARRAYS[f"{_core}.numeric._frombuffer"] = np.empty(0).__reduce_ex__(5)[0]


class _RestrictedUnpickler(pickle.Unpickler):
    def __init__(self, file: BinaryIO, allowed: Mapping[str, Any]) -> None:
        # Files of Python 2, such as Detectron2's backbones and REFER's lists, hold its str.
        super().__init__(file, encoding="latin1")
        self.allowed = allowed

    def find_class(self, module: str, name: str) -> Any:
        found = self.allowed.get(f"{module}.{name}")
        if found is None:
            raise pickle.UnpicklingError(f"it refers to {module}.{name}, which could run code")
        return found

    def persistent_load(self, pid: Any) -> NoReturn:
        raise pickle.UnpicklingError("persistent references are not allowed")


def load_restricted(file: BinaryIO, allowed: Mapping[str, Any]) -> Any:
    """Content of a pickle; text of Python 2 is read as latin-1.

    Args:
        allowed: "module.name" -> what stands for it, for all that the pickle may refer to; nothing
            is needed for dicts, lists, tuples, text and numbers.

    Raises:
        pickle.UnpicklingError: it refers to anything else. A damaged one can raise nearly anything.
    """
    return _RestrictedUnpickler(file, allowed).load()


def why_unread(error: BaseException) -> str:
    """Why a library did not read a file, without its advice to run what is in a pickle."""
    text = str(error)
    if isinstance(error, pickle.UnpicklingError) or "pickle" in text or "weights_only" in text:
        named = re.search(r"GLOBAL ([\w.]+)|refers to ([\w.]+)", text)
        objects = f" ({named[1] or named[2]})" if named else ""
        return (
            f"it is damaged, or holds Python objects{objects} that could run code and are not read"
        )
    return "no known kind" if isinstance(error, LookupError) else first_line(error)


def safe_load_pkl(path: str | os.PathLike[str]) -> Any:
    """Content of a pickle made of arrays, numbers, text, dicts, lists and tuples; runs no code.

    Raises:
        CheckpointError: the file is missing, damaged, or refers to anything else.
    """
    try:
        with open(path, "rb") as file:
            return load_restricted(file, _ARRAYS)
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
