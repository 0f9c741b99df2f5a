"""GroupViT as a system of the toolkit."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from unified.checkpoint import KeyTable
from unified.engine.system import (
    Layout,
    ModelEntry,
    ParameterGroup,
    Profile,
    Recording,
    Replay,
    Supervision,
    System,
)
from unified.errors import CheckpointError, ConfigError
from unified.parity import Comparison
from unified.weights import WeightsEntry, resolve

if TYPE_CHECKING:
    from torch import Tensor
    from yacs.config import CfgNode

    from projects.groupvit.model import GroupViT
    from projects.groupvit.text_encoder import TextTransformer
    from projects.groupvit.tokenizer import Tokenize

logger = logging.getLogger(__name__)

_NVIDIA = "NVIDIA Source Code License (non-commercial)"


def add_config(cfg: CfgNode) -> None:
    """Adds ``MODEL.GROUPVIT``; the defaults are the published model of two grouping stages."""
    from unified.engine.words import add_words

    node = type(cfg)()
    node.IMAGE_SIZE = 224  # for the table of positions
    node.PATCH_SIZE = 16
    node.DIM = 384
    node.DEPTHS = (6, 3, 3)
    node.NUM_HEADS = 6
    node.GROUP_TOKENS = (64, 8, 0)
    node.OUTPUT_GROUPS = (64, 8)
    node.DROP_PATH = 0.1
    node.SHARED_DIM = 256  # of the space of images and texts
    node.PROJECTOR_DIM = 4096
    node.PIXEL_MEAN = [123.675, 116.28, 103.53]  # RGB on the 0..255 scale
    node.PIXEL_STD = [58.395, 57.12, 57.375]
    # CLIP's: a name of the weights registry or a folder; "" reads by the words of VOCABULARY.
    node.TOKENIZER = "clip-vit-base-patch32"
    add_words(node, dim=256)
    node.CONTEXT_LENGTH = 77
    node.TEXT_LAYERS = 12
    node.NUM_LABELS = 3  # nouns of a caption in the multi-label loss; 0 leaves it out
    node.TAGGER = "nltk"  # how nouns are found, or "open_class", or "content": colours as well
    node.LABEL_TEMPLATES = "full"  # sentences around those nouns: or "simple", "plain", "subset"
    node.TEMPLATES = "simple"  # the same around class names
    # Probability below which a pixel is of no class; 1.0 or more: every pixel is of one.
    node.BACKGROUND = 0.95
    node.WINDOW = 448
    node.WINDOW_STRIDE = 224
    cfg.MODEL.GROUPVIT = node


def build(cfg: CfgNode) -> GroupViT:
    """The model that ``MODEL.GROUPVIT`` describes.

    Raises:
        ConfigError: a value does not fit.
    """
    from functools import partial

    from projects.groupvit.image_encoder import ImageEncoder
    from projects.groupvit.model import GroupViT
    from projects.groupvit.prompts import TAGGERS, TEMPLATES, noun_prompts

    node = cfg.MODEL.GROUPVIT
    named = {"TAGGER": TAGGERS, "LABEL_TEMPLATES": TEMPLATES, "TEMPLATES": TEMPLATES}
    for key, known in named.items():
        if node[key] not in known:
            raise ConfigError(
                f"MODEL.GROUPVIT.{key} is {node[key]!r}: choose one of {sorted(known)}"
            )
    text_encoder, tokenize = _build_text(node)
    return GroupViT(
        image_encoder=ImageEncoder(
            image_size=node.IMAGE_SIZE,
            patch_size=node.PATCH_SIZE,
            dim=node.DIM,
            depths=node.DEPTHS,
            num_heads=node.NUM_HEADS,
            num_group_tokens=node.GROUP_TOKENS,
            num_output_groups=node.OUTPUT_GROUPS,
            drop_path=node.DROP_PATH,
        ),
        text_encoder=text_encoder,
        tokenize=tokenize,
        out_dim=node.SHARED_DIM,
        hidden_dim=node.PROJECTOR_DIM,
        num_labels=node.NUM_LABELS,
        prompts_of=partial(
            noun_prompts, tagger=TAGGERS[node.TAGGER], templates=TEMPLATES[node.LABEL_TEMPLATES]
        ),
        templates=TEMPLATES[node.TEMPLATES],
        background=node.BACKGROUND if node.BACKGROUND < 1 else None,
        window=node.WINDOW,
        stride=node.WINDOW_STRIDE,
        pixel_mean=node.PIXEL_MEAN,
        pixel_std=node.PIXEL_STD,
    )


def _build_text(node: CfgNode) -> tuple[TextTransformer, Tokenize | None]:
    from projects.groupvit.text_encoder import TextTransformer
    from projects.groupvit.tokenizer import CLIP_ENTRIES, END_OF_WORDS, clip_ids, word_ids
    from unified.engine.words import build_words

    sizes = {
        "context_length": node.CONTEXT_LENGTH,
        "dim": node.WORD_DIM,
        "num_layers": node.TEXT_LAYERS,
    }
    if not node.TOKENIZER:
        table = build_words(node)
        text_encoder = TextTransformer(**sizes, embedding=table, end_token=END_OF_WORDS)
        return text_encoder, word_ids(table)
    tokenize = None
    try:
        tokenize = clip_ids(resolve(node.TOKENIZER), node.CONTEXT_LENGTH)
    except CheckpointError as error:
        logger.warning("GroupViT cannot read sentences yet: %s", error)
    return TextTransformer(**sizes, vocab_size=CLIP_ENTRIES), tokenize


def load_parts(model: Any, cfg: CfgNode, given: Mapping[str, Tensor]) -> tuple[str, ...]:
    """The words of a file of ours; files of transformers lack one temperature.

    Raises:
        CheckpointError: the words are unknown.
    """
    from unified.engine.words import load_words

    prefix = "text_encoder.token_embedding."
    optional = ["multi_label_logit_scale"]
    if not cfg.MODEL.GROUPVIT.TOKENIZER:
        optional += load_words(model.text_encoder.token_embedding, given, prefix)
    return tuple(optional)


def parameter_group(name: str, cfg: CfgNode) -> ParameterGroup:
    """No decay of biases, norms and temperatures, as in GroupViT's code."""
    vectors = (".bias", "logit_scale")
    norm = any(
        part in name
        for part in (
            "norm",
            ".ln_",
            "text_projector.1.",
            "image_projector.1.",
            "group_projector.0.",
        )
    )
    decay = 0.0 if norm or name.endswith(vectors) else cfg.SOLVER.WEIGHT_DECAY
    return ParameterGroup(cfg.SOLVER.BASE_LR, decay)


def official_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for files of NVIDIA's code."""
    from projects.groupvit.checkpoint import find_official_keys

    return find_official_keys(keys)


def transformers_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for files of transformers."""
    from projects.groupvit.checkpoint import find_transformers_keys

    return find_transformers_keys(keys)


def benchmark_weights(model: GroupViT) -> None:
    """Where CLIP's vocabulary is missing, made-up tokens stand for every sentence."""
    import torch

    if model.tokenize is None:
        model.tokenize = lambda texts: torch.arange(1, 8).expand(len(texts), -1)


def _replay(kind: str) -> Replay:
    def fits(recording: Recording) -> bool:
        from projects.groupvit.parity import kind_of

        return kind_of(recording.path) == kind

    def run(recording: Recording) -> list[Comparison]:
        from projects.groupvit.parity import check

        return check(recording.path, recording.arrays)

    return Replay(fits, run)


SYSTEM = System(
    name="GroupViT",
    add_config=add_config,
    build=build,
    supervision=lambda _: Supervision(masks=False),
    parameter_group=parameter_group,
    load_parts=load_parts,
    layouts=(Layout("official", official_keys), Layout("transformers", transformers_keys)),
    models={
        "groupvit": ModelEntry(
            "groupvit.yaml",
            "groupvit-gcc-yfcc",
            profile=Profile((448, 448), published="VOC 2012 mIoU 52.3, without masks"),
        ),
        "groupvit-redcaps": ModelEntry("groupvit.yaml", "groupvit-gcc-redcaps"),
        "groupvit-tiny": ModelEntry("lite/groupvit_tiny.yaml"),
    },
    weights={
        name: WeightsEntry(licence=_NVIDIA, hub=f"nvidia/{name}")
        for name in ("groupvit-gcc-yfcc", "groupvit-gcc-redcaps")
    },
    benchmark_weights=benchmark_weights,
    replays={kind: _replay(kind) for kind in ("groupvit_block", "groupvit_1stage", "groupvit_")},
)
