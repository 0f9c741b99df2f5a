"""What an exported folder says about itself: ``manifest.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from unified.errors import CheckpointError
from unified.files import file_sha256
from unified.inference.settings import (
    ImageSettings,
    InferenceSettings,
    ModelInfo,
    VideoSettings,
    as_json,
)
from unified.structures import Size

MANIFEST = "manifest.json"
VERSION = 3

Format = Literal["torch", "onnx", "openvino"]
SUFFIXES: Mapping[str, str] = {"torch": ".pt2", "onnx": ".onnx", "openvino": ".xml"}
What = Literal["image", "video"]


@dataclass(frozen=True)
class Entry:
    """One tensor that a program takes.

    Attributes:
        shape: -1 where it may vary.
        used: False where the program ignores it.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    used: bool = True


@dataclass(frozen=True)
class ProgramInfo:
    """One program.

    Attributes:
        outputs: names, in order.
        aliases: further names of some of them.
    """

    inputs: tuple[Entry, ...]
    outputs: tuple[str, ...]
    aliases: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextRules:
    """How sentences become tokens; the vocabulary lies in ``tokenizer.json``.

    Attributes:
        ends: a pattern for each row of tokens: its first match ends the sentence; "" for the whole.
        padding: id of the padding token.
    """

    ends: tuple[str, ...]
    context_length: int
    padding: int


@dataclass(frozen=True)
class Manifest:
    """A folder of programs.

    Attributes:
        size: (H, W) of the input, padding included; images are scaled to fit.
        divisor: the model itself pads an image to multiples of this.
        sees_own_padding: whether programs take no more of the padding into account than that.
        mask_strides: by the kinds of reference that are given, such as "text-mask".
        programs: by name; "segment-KINDS" for each kind or kinds.
        files: sha256 of every other file of the folder, by its name.
    """

    format: Format
    what: What
    size: Size
    divisor: int
    sees_own_padding: bool
    reference_kinds: tuple[str, ...]
    mask_strides: Mapping[str, int]
    settings: InferenceSettings
    info: ModelInfo
    programs: Mapping[str, ProgramInfo]
    files: Mapping[str, str]
    text: TextRules | None = None

    def write(self, folder: Path) -> None:
        """Writes ``manifest.json``."""
        content = asdict(self) | {
            "version": VERSION,
            "settings": {
                "image": as_json(self.settings.image),
                "video": as_json(self.settings.video),
            },
        }
        (folder / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """The manifest of a folder, whose files are as it says.

        Raises:
            CheckpointError: there is none, it is of another version or damaged, or another file
                is missing or not the one that was written.
        """
        path = folder / MANIFEST
        if not path.is_file():
            raise CheckpointError(
                f"{folder} holds no exported model: it has no {MANIFEST}, which is "
                "written last. Write it (again) with tools/export.py, or name a model"
            )
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
            version = content.pop("version")
            manifest = cls(**_nouns(content)) if version == VERSION else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise CheckpointError(f"{path} is damaged: export the model again") from error
        if manifest is None:
            raise CheckpointError(
                f"{path} is of version {version}, this toolkit reads version {VERSION}: export the "
                "model again"
            )
        for name, sha256 in manifest.files.items():
            _check_file(folder / name, sha256)
        return manifest


def _check_file(path: Path, sha256: str) -> None:
    if not path.is_file():
        raise CheckpointError(f"{path} is missing: export the model again")
    if file_sha256(path) != sha256:
        raise CheckpointError(
            f"{path} is damaged or was replaced: its sha256 is not the one in {MANIFEST}. Export "
            "the model again"
        )


def _nouns(content: dict[str, Any]) -> dict[str, Any]:
    settings, text = content["settings"], content["text"]
    return content | {
        "size": tuple(content["size"]),
        "reference_kinds": tuple(content["reference_kinds"]),
        "settings": InferenceSettings(
            image=ImageSettings(**_with_infinity(settings["image"])),
            video=VideoSettings(**_with_infinity(settings["video"])),
        ),
        "info": ModelInfo(**content["info"]),
        "programs": {name: _program(program) for name, program in content["programs"].items()},
        "text": None if text is None else TextRules(**text | {"ends": tuple(text["ends"])}),
    }


def _with_infinity(settings: Mapping[str, Any]) -> dict[str, Any]:
    """``as_json`` the other way."""
    return {key: math.inf if value is None else value for key, value in settings.items()}


def _program(content: Mapping[str, Any]) -> ProgramInfo:
    inputs: Sequence[Mapping[str, Any]] = content["inputs"]
    return ProgramInfo(
        inputs=tuple(Entry(**{**entry, "shape": tuple(entry["shape"])}) for entry in inputs),
        outputs=tuple(content["outputs"]),
        aliases=content["aliases"],
    )
