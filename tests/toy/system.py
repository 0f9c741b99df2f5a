"""The toy as a system, found by the entry point in ``installed`` as that of a package would be."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from torch import nn
from yacs.config import CfgNode

from unified.checkpoint import KeyTable
from unified.engine.system import Layout, ModelEntry, ParameterGroup, Supervision, System
from unified.weights import WeightsEntry

INSTALLED = Path(__file__).parent / "installed"
# With this PYTHONPATH other interpreters find the toolkit and the toy.
PATH = f"{Path(__file__).parents[2]}{os.pathsep}{INSTALLED}"
CONFIG = Path(__file__).with_name("toy.yaml")
PARTS = (
    *("backbone", "neck", "head", "mask_head", "fusion"),
    *("text_encoder", "mask_encoder"),
)
TABLE = KeyTable(rules=[(f"net.{part}.*", f"{part}.*") for part in PARTS], unused=["step"])


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.TOY``."""
    cfg.MODEL.TOY = type(cfg)()
    cfg.MODEL.TOY.KINDS = ("text", "mask")
    cfg.MODEL.TOY.FUSION = "UniFusion"
    cfg.MODEL.TOY.NUM_QUERIES = 12
    cfg.MODEL.TOY.NUM_CLASSES = 1


def build(cfg: CfgNode) -> nn.Module:
    """The model that ``MODEL.TOY`` describes."""
    from tests.toy.model import Toy

    node = cfg.MODEL.TOY
    return Toy(
        kinds=node.KINDS,
        fusion=node.FUSION,
        num_queries=node.NUM_QUERIES,
        num_classes=node.NUM_CLASSES,
    )


def supervision(cfg: CfgNode) -> Supervision:
    """Every label is 0 where there is one class."""
    return Supervision(class_agnostic=cfg.MODEL.TOY.NUM_CLASSES == 1)


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """The language model learns at a tenth of the rate."""
    slow = name.startswith("text_encoder.bert.")
    return ParameterGroup(cfg.SOLVER.BASE_LR * (0.1 if slow else 1), cfg.SOLVER.WEIGHT_DECAY)


def find_keys(keys: Iterable[str]) -> KeyTable | None:
    """The published layout has "net." before every key."""
    return TABLE if {"head.box_embed.bias", "net.head.box_embed.bias"} & set(keys) else None


SYSTEM = System(
    name="Toy",
    add_config=add_config,
    build=build,
    supervision=supervision,
    parameter_group=parameter_group,
    class_keys=("head.class_embed.",),
    layouts=(Layout("toy", find_keys),),
    models={"toy": ModelEntry(CONFIG), "toy-large": ModelEntry(CONFIG, "toy_large")},
    weights={"toy_large": WeightsEntry(licence="Apache-2.0", page="https://example.org/toy")},
)
