"""How a model is asked: sizes, thresholds, precision; a model carries them, callers override.

A model that was trained for other values has them as its attribute ``inference``; ``unified.load``
sets it from the ``INFERENCE`` node of the configuration. A model without it is asked with the
defaults here, which are the reference's.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from unified.errors import ConfigError
from unified.label_maps import check_margin

PRECISIONS = ("float32", "bfloat16", "float16")

MergeRule = Literal["soft", "separate"]


@dataclass(frozen=True)
class ModelInput:
    """What images and clips have in common.

    Attributes:
        short_side: the shorter side of the model's input.
        max_size: its longer side is never larger than this.
        score_threshold: an object with a lower score is absent, its mask empty.
        precision: "float32", or "bfloat16" or "float16" autocast, whose masks are near those of
            float32 but not the same, see docs/runs.md.
        compile: runs the model by ``torch.compile``, see ``prepared``; faster after a while.
        support_margin: example images are cropped around their object, see ``object_window``;
            infinite takes whole pictures.
    """

    short_side: int
    max_size: int = 1333
    score_threshold: float = 0.0
    precision: str = "float32"
    compile: bool = False
    support_margin: float = math.inf

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: the precision is unknown, a side is no number of pixels, or the margin is
                negative or no number.
        """
        for name in ("short_side", "max_size"):
            _check_count(name, getattr(self, name))
        if self.precision not in PRECISIONS:
            raise ConfigError(
                f"precision {self.precision!r} is unknown: choose one of {PRECISIONS}"
            )
        check_margin(self.support_margin)


@dataclass(frozen=True)
class ImageSettings(ModelInput):
    """How ``ImagePredictor`` asks.

    Attributes:
        mirror: ask the mirror image too, with left and right swapped in sentences, and join both
            answers, see ``join_mirrored``; takes twice the time. Not in detection.
    """

    short_side: int = 800
    mirror: bool = False


@dataclass(frozen=True)
class VideoSettings(ModelInput):
    """How ``VideoPredictor`` asks.

    Attributes:
        merge_rule: "soft" lets objects compete for pixels (soft aggregation); "separate" keeps
            every object's own mask (``FrameResult.masks``), as one object at a time would.
        use_memory: False segments every frame from the sentence alone.
        memory_score: memory that rests on a sentence found with a lower score is not trusted yet:
            the sentence is asked alone beside it, and wins where it shows something else with a
            higher score than that. 0 trusts the first mask, as the reference does.
        memory_interval: frames from one mask that is remembered to the next; 1 remembers every
            frame, as the reference does.
        objects_per_pass: largest number of objects batched.
        keep_probabilities: return (H, W) float probabilities of every object.
    """

    short_side: int = 480
    score_threshold: float = 0.3
    merge_rule: MergeRule = "soft"
    use_memory: bool = True
    memory_score: float = 0.0
    memory_interval: int = 1
    objects_per_pass: int = 8
    keep_probabilities: bool = False

    def __post_init__(self) -> None:
        """
        Raises:
            ConfigError: as for ``ModelInput``, or a count is below 1.
        """
        super().__post_init__()
        _check_count("objects_per_pass", self.objects_per_pass)
        _check_count("memory_interval", self.memory_interval)


def _check_count(name: str, value: int) -> None:
    if value < 1:
        raise ConfigError(f"{name} is {value}: expected at least 1")


@dataclass(frozen=True)
class InferenceSettings:
    """What a model carries: how it is asked about images and about clips."""

    image: ImageSettings = field(default_factory=ImageSettings)
    video: VideoSettings = field(default_factory=VideoSettings)


@dataclass(frozen=True)
class ModelInfo:
    """Where a loaded model comes from.

    Attributes:
        name: as the user named it.
        system: name of the system.
        config: file of the configuration, or None for a ``CfgNode``.
        weights: file of the weights, or None when they are untrained.
        sha256: of that file.
    """

    name: str
    system: str
    config: str | None
    weights: str | None
    sha256: str | None


def as_json(settings: ModelInput) -> dict[str, Any]:
    """The fields; an infinite margin is None."""
    return {key: None if value == math.inf else value for key, value in asdict(settings).items()}


def asked_as(model: object, settings: ModelInput) -> dict[str, Any]:
    """``as_json`` with the chooser that answers beside the model, by name, or None."""
    used = getattr(model, "chooser", None) is not None
    return as_json(settings) | {"chooser": getattr(model, "chooser_name", None) if used else None}


def inference_settings(model: object) -> InferenceSettings:
    """Those that a model carries as ``inference``, or the defaults."""
    carried = getattr(model, "inference", None)
    return carried if isinstance(carried, InferenceSettings) else InferenceSettings()
