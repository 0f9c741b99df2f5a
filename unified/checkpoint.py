"""Reading, renaming, loading and writing weights files; nothing that can run code is unpickled."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from unified.errors import CheckpointError, first_line
from unified.files import atomic_path, foreign_content
from unified.unpickle import why_unread

Weights = dict[str, Tensor]

# Entries of a foreign file that our models do not use travel under this prefix, so that exporting
# gives back every entry.
FOREIGN_PREFIX = "foreign."


@dataclass(frozen=True)
class KeyTable:
    """How the keys of a foreign layout correspond to ours, one rule a line, first match wins.

    Attributes:
        rules: (foreign, ours) patterns; ``*`` stands for any text and appears equally often on
            both sides.
        aliases: (alias, original) foreign patterns of entries stored twice.
        unused: foreign patterns of entries that our models do not need, also where a rule fits.
        convolutions: foreign patterns of convolutions of kernel 1 along one axis, (out, in, 1),
            which are linear layers, (out, in), here.
        ours: our patterns of entries that have no place in the foreign layout and are left out of
            it.
    """

    rules: Sequence[tuple[str, str]]
    aliases: Sequence[tuple[str, str]] = ()
    unused: Sequence[str] = ()
    convolutions: Sequence[str] = ()
    ours: Sequence[str] = ()

    def to_native(self, weights: Mapping[str, Tensor]) -> tuple[Weights, Conversion]:
        """Our layout of a foreign state dict.

        Raises:
            CheckpointError: an alias differs from its original, or two keys become one.
        """
        native: Weights = {}
        report = Conversion()
        for key, tensor in weights.items():
            original = _translate(key, self.aliases)
            if original is not None:
                if original in weights and not torch.equal(weights[original], tensor):
                    raise CheckpointError(
                        f"{key} should be the same as {original} but differs: the file was not "
                        "written by the reference implementation"
                    )
                report.aliases.append(key)
                continue
            known = any(_regex(pattern).fullmatch(key) for pattern in self.unused)
            renamed = None if known else _translate(key, self.rules)
            if renamed is None:
                (report.unused if known else report.unexpected).append(key)
                renamed = FOREIGN_PREFIX + key
            if renamed in native:
                raise CheckpointError(f"two entries of the file both become {renamed}")
            native[renamed] = tensor.squeeze(-1) if self._is_convolution(key) else tensor
        return native, report

    def to_foreign(self, weights: Mapping[str, Tensor]) -> Weights:
        """The foreign layout of our state dict, aliases included.

        Raises:
            CheckpointError: an entry has no place in the foreign layout.
        """
        inverse = [(ours, theirs) for theirs, ours in self.rules]
        copies = [(original, alias) for alias, original in self.aliases]
        foreign: Weights = {}
        for key, tensor in weights.items():
            if key.startswith(FOREIGN_PREFIX):
                foreign[key.removeprefix(FOREIGN_PREFIX)] = tensor
                continue
            if any(_regex(pattern).fullmatch(key) for pattern in self.ours):
                continue
            renamed = _translate(key, inverse)
            if renamed is None:
                raise CheckpointError(
                    f"{key} has no counterpart in the official layout: only models with the parts "
                    "of the reference can be exported"
                )
            foreign[renamed] = tensor[..., None] if self._is_convolution(renamed) else tensor
            alias = _translate(renamed, copies)
            if alias is not None:
                foreign[alias] = foreign[renamed]
        return foreign

    def _is_convolution(self, key: str) -> bool:
        return any(_regex(pattern).fullmatch(key) for pattern in self.convolutions)

    def is_foreign(self, weights: Iterable[str]) -> bool:
        """True when the keys look like the foreign layout rather than ours."""
        keys = list(weights)
        return sum(map(self.knows_foreign, keys)) > sum(map(self.knows_native, keys))

    def knows_foreign(self, key: str) -> bool:
        """True when a rule or ``unused`` covers a foreign key."""
        patterns = (*(theirs for theirs, _ in self.rules), *self.unused)
        return any(_regex(pattern).fullmatch(key) for pattern in patterns)

    def knows_native(self, key: str) -> bool:
        """True when a rule makes this key of ours."""
        return any(_regex(ours).fullmatch(key) for _, ours in self.rules)


@dataclass
class Conversion:
    """What happened to the entries that were not simply renamed (foreign keys)."""

    aliases: list[str] = field(default_factory=list)
    unused: list[str] = field(default_factory=list)
    unexpected: list[str] = field(default_factory=list)


@cache
def _regex(pattern: str) -> re.Pattern[str]:
    return re.compile(re.escape(pattern).replace(r"\*", "(.+)"))


def _translate(key: str, rules: Iterable[tuple[str, str]]) -> str | None:
    for source, destination in rules:
        match = _regex(source).fullmatch(key)
        if match:
            for part in match.groups():
                destination = destination.replace("*", part, 1)
            return destination
    return None


def read_weights(path: str | Path) -> Weights:
    """State dict of a .safetensors, .pth/.pt/.bin, .npz or Detectron2 .pkl file, on the CPU.

    A training checkpoint is opened to its "model" entry.

    Raises:
        CheckpointError: the file is missing, damaged, holds no tensors or would run code.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"weights file {path} does not exist")
    if foreign := foreign_content(path, "weights"):
        raise CheckpointError(foreign)
    reader = _READERS.get(path.suffix, _read_torch)
    try:
        content = reader(path)
    except CheckpointError:
        raise
    except Exception as error:  # the readers raise many kinds for a damaged file
        raise CheckpointError(
            f"{path} cannot be read as weights, it may be truncated: {why_unread(error)}. "
            "Expected a dict of tensors, as torch.save(model.state_dict(), FILE) writes it, or "
            ".safetensors; a Detectron2 pickle of arrays ends in .pkl"
        ) from error
    for name in ("model", "state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(name), Mapping):
            content = content[name]
    weights = (
        {
            key: torch.as_tensor(value)
            for key, value in content.items()
            if isinstance(key, str) and _holds_numbers(value)
        }
        if isinstance(content, Mapping)
        else {}
    )
    if not weights:
        raise CheckpointError(f"{path} holds no tensors: expected a dict of weights by name")
    return weights


def _holds_numbers(value: object) -> bool:
    if isinstance(value, np.ndarray | np.generic):
        return value.dtype.kind in "biufc"
    return isinstance(value, Tensor)


def _read_torch(path: Path) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of pickle protocols that it goes on to refuse
        return torch.load(path, map_location="cpu", weights_only=True)


def _read_safetensors(path: Path) -> object:
    from safetensors.torch import load_file

    return load_file(path)


def _read_pickle(path: Path) -> object:
    from unified.unpickle import safe_load_pkl

    return safe_load_pkl(path)


def _read_arrays(path: Path) -> object:
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file.files}


_READERS: dict[str, Callable[[Path], object]] = {
    ".npz": _read_arrays,
    ".safetensors": _read_safetensors,
    ".pkl": _read_pickle,
}


def write_weights(path: str | Path, weights: Mapping[str, Tensor]) -> None:
    """Writes .safetensors, or for other suffixes ``{"model": weights}`` as torch does; atomic.

    Raises:
        CheckpointError: the file cannot be written; an older one is as it was.
    """
    path = Path(path)
    try:
        with atomic_path(path) as temporary:
            if path.suffix == ".safetensors":
                from safetensors.torch import save_file

                save_file(
                    {key: tensor.contiguous().clone() for key, tensor in weights.items()},
                    temporary,
                )
            else:
                torch.save({"model": dict(weights)}, temporary)
    except Exception as error:  # of a full disk both libraries tell by errors of their own
        raise CheckpointError(f"{path} cannot be written: {first_line(error)}") from error


@dataclass(frozen=True)
class LoadReport:
    """Outcome of loading a state dict, by our keys."""

    loaded: int
    missing: tuple[str, ...]
    unexpected: tuple[str, ...]
    mismatched: tuple[str, ...]


def load_weights(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    *,
    table: KeyTable | None = None,
    optional: Sequence[str] = (),
    reinitialise: Sequence[str] = (),
    source: str = "the weights",
) -> LoadReport:
    """Copies ``weights`` of our layout, or of the foreign one of ``table``, into ``model``.

    Args:
        optional: prefixes of our keys that may be missing (parts with weights of their own).
        reinitialise: prefixes of our keys that keep the model's values when the shapes differ
            (class predictors of another label set).
        source: what to call the weights in errors.

    Raises:
        CheckpointError: anything else is missing, unexpected or of another shape.
    """
    if table is not None and table.is_foreign(weights):
        weights, conversion = table.to_native(weights)
        foreign = conversion.unexpected
    else:
        foreign = []
    own = model.state_dict()
    given = {k: v for k, v in weights.items() if not k.startswith(FOREIGN_PREFIX)}
    missing = tuple(k for k in own if k not in given and not k.startswith(tuple(optional)))
    unexpected = (*foreign, *(k for k in given if k not in own))
    different = [k for k in own if k in given and own[k].shape != given[k].shape]
    mismatched = tuple(k for k in different if not k.startswith(tuple(reinitialise)))
    if missing or unexpected or mismatched:
        raise CheckpointError(_explain(source, own, given, missing, unexpected, mismatched))
    usable = {k: v for k, v in given.items() if k not in different}
    model.load_state_dict(usable, strict=False)
    return LoadReport(len(usable), missing, unexpected, tuple(different))


def _explain(
    source: str,
    own: Mapping[str, Tensor],
    given: Mapping[str, Tensor],
    missing: Sequence[str],
    unexpected: Sequence[str],
    mismatched: Sequence[str],
) -> str:
    fitting = sum(key in given for key in own) - len(mismatched)
    lines = [f"{source} belong to another model: {fitting} of its {len(own)} entries fit"]
    for title, keys in (("missing", missing), ("unexpected", unexpected)):
        if keys:
            lines.append(f"{len(keys)} {title} ({', '.join(keys[:3])}{', ...' * (len(keys) > 3)})")
    for key in mismatched[:1]:
        lines.append(
            f"{len(mismatched)} of another shape ({key}: expected {tuple(own[key].shape)}, "
            f"got {tuple(given[key].shape)})"
        )
    return "; ".join(lines) + ". Choose the config that these weights were trained with."
