"""One recorded file against the model that it asks for."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from projects.uniref.config import build
from projects.uniref.parity import check_file, kind_of
from projects.uniref.parity.training import check_train_file
from unified.engine.config import load_config
from unified.engine.models import CONFIGS
from unified.engine.system import Recording
from unified.parity import Comparison


def check(recording: Recording) -> list[Comparison]:
    """Replays the recording on weights made from its key names.

    Raises:
        InputError: the file holds an output that no replay makes.
    """
    manifest = recording.manifest
    config = recording.config_file or choose_config(recording)
    if "in/boxes0" in recording.arrays and any("fusion" in key for key in manifest or {}):
        manifest = None  # it is of a later stage: the keys of the detector are used
    replay = check_train_file if kind_of(recording.arrays) == "train" else check_file
    return replay(recording.path, build(load_config(config, recording.options)), manifest)


def choose_config(recording: Recording) -> Path:
    """Swin-L if the manifest or the name says so; the detector for box-supervised training."""
    keys: Mapping[str, Any] = recording.manifest or {}
    swin = "swin" in recording.path.stem
    swin = swin or any(".layers.0.blocks.0.attn" in key for key in keys)
    detector = bool(keys) and not any("fusion" in key for key in keys)
    stage = "video_joint"
    if detector or "in/boxes0" in recording.arrays:
        stage = "pretrain_objects365"
    return CONFIGS / f"{stage}_{'swin_l' if swin else 'r50'}.yaml"
