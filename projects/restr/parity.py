"""Replays recorded runs of ReSTR's released code on weights made from key names.

Beside a recording FILE.npz lies FILE.json, which says what ran: ``meta`` and the official keys with
their shapes in ``manifest``.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from projects.restr.checkpoint import restr_keys
from projects.restr.fusion import CoarseToFine, Fusion
from projects.restr.language import LanguageEncoder
from projects.restr.model import Restr
from projects.restr.vision import VisualEncoder
from unified.checkpoint import load_weights
from unified.errors import InputError
from unified.modeling.vocabulary import PADDING, Vocabulary, WordTable
from unified.parity import Comparison, compare
from unified.recorded import make_input, make_weights, thin_out
from unified.structures import ImageBatch, Target

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, tuple[int, ...]]
EMBEDDINGS = (
    "encoder_l.embedding.weight",
    "encoder_v.pos_embed",
    "encoder_v.cls_token",
    "fusion_module.seed_emb",
    "seed_emb",
)
FUSION = "fusion_module."
ABSOLUTE, RELATIVE = 1e-5, 1e-4
LARGE, LARGE_RELATIVE = 224, 5e-4  # rounding grows with the number of tokens
INPUTS = ("ids", "xv", "xl")
# The rows of ``stats``: mean, deviation, mean magnitude, smallest and largest of each whole array.
STATS = ("zv", "zl", "vl", "ls", "dec_in", "dec0", "pixel_logits", "patch_logits")
HEADS = 12


def is_recording(path: Path, kind: str) -> bool:
    """Whether a file is one of ``REPLAYS``; parts share the names of their arrays."""
    return path.stem.startswith(f"restr_{kind}")


def check(path: Path, arrays: Arrays, kind: str) -> list[Comparison]:
    """One comparison for every recorded output.

    Raises:
        InputError: the file beside is missing, or an output is recorded that the replay lacks.
    """
    ours = REPLAYS[kind](path, arrays)
    recorded = {name: value for name, value in arrays.items() if name not in INPUTS}
    if unknown := sorted(set(recorded) - set(ours)):
        raise InputError(f"{path}: no replay for the recorded arrays {', '.join(unknown)}")
    large = kind == "full" and 16 * arrays["patch_logits"].shape[-1] > LARGE
    relative = LARGE_RELATIVE if large else RELATIVE
    return [
        compare(
            name,
            expected,
            thin_out(ours[name], expected.shape),
            ABSOLUTE + relative * float(np.abs(expected).max()),
        )
        for name, expected in recorded.items()
    ]


@torch.no_grad()
def replay_fusion(path: Path, arrays: Arrays) -> dict[str, np.ndarray]:
    """The fusion alone, on recorded tokens, those of the file without the last word if need be."""
    notes, shapes = read_notes(path)
    inputs = arrays if "xv" in arrays else dict(np.load(_inputs_beside(path)))
    heads, repeats = _number(r"heads=(\d+)", notes, 4), _number(r"with (\d+) repetitions", notes, 0)
    fusion = build_fusion(shapes, heads, repeats)
    weights = make_weights(shapes, embeddings=EMBEDDINGS)
    load_part(fusion, {FUSION + key: value for key, value in weights.items()}, "fusion.")
    tokens, words, ids = (torch.from_numpy(inputs[name]) for name in ("xv", "xl", "ids"))
    side = int((tokens.shape[1] - 1) ** 0.5)
    answer = fusion(
        fusion.prepare_visual(tokens[:, 1:]),
        fusion.prepare_words(words, ids == PADDING),
        (side, side),
    )
    return _arrays(pixel_logits=answer.pixel_logits, patch_logits=answer.patch_logits)


@torch.no_grad()
def replay_full(path: Path, arrays: Arrays) -> dict[str, np.ndarray]:
    """The whole network with its losses."""
    notes, shapes = read_notes(path)
    model = build_model(shapes)
    weights = make_weights(shapes, embeddings=EMBEDDINGS)
    weights["encoder_l.embedding.weight"][PADDING] = 0
    load_part(model, weights, "")
    ids, size = torch.from_numpy(arrays["ids"]), model.image_size
    found = re.search(r'([\d.]+)\*rnd\("(.+?)"\)', notes)
    name, scale = (found[2], float(found[1])) if found else (f"restr.img{size}", 0.5)
    images = ImageBatch(
        tensor=torch.from_numpy(make_input(name, (len(ids), 3, size, size), scale)),
        image_sizes=((size, size),) * len(ids),
        padding_mask=torch.zeros(len(ids), size, size, dtype=torch.bool),
    )
    features, references = model.encode_image(images), [model.encode_ids(ids)]
    answer = model.answer(features, references)
    mask = torch.zeros(1, size, size, dtype=torch.bool)
    mask[:, int(0.23 * size) : int(0.71 * size), int(0.37 * size) : int(0.83 * size)] = True
    target = Target(torch.zeros(1, dtype=torch.int64), torch.zeros(1, 4), mask)
    losses = model.losses(features, references, [target] * len(ids))
    pixel, patch = losses["loss_pixel"], losses["loss_patch"]
    labels = {}
    for rule in ("any", "mean"):
        model.patch_label = rule
        labels[rule] = model.patch_labels(mask[None].float()).expand(len(ids), -1, -1, -1)
    ours = _arrays(
        zv=cast(VisualEncoder, model.backbone).vit.forward_features(images.tensor),
        zl=model.text_encoder(ids),
        vl=answer.joint,
        ls=answer.classifier,
        dec_in=answer.decoder_input,
        dec0=model.fusion.decoder.features(answer.decoder_input)[0],
        pixel_logits=answer.pixel_logits,
        patch_logits=answer.patch_logits,
        loss=torch.stack((patch / model.patch_weight, pixel, pixel + patch)),
        patch_label_sum=labels["any"],
        patch_label_mean=labels["mean"],
    )
    return ours | {"stats": np.stack([_statistics(ours[name]) for name in STATS])}


REPLAYS: dict[str, Callable[[Path, Arrays], dict[str, np.ndarray]]] = {
    "full": replay_full,
    "fusion": replay_fusion,
}


def read_notes(path: Path) -> tuple[str, Shapes]:
    """The note of a recording and the shapes of the official keys.

    Raises:
        InputError: the file beside the recording is missing or of another form.
    """
    notes = path.with_suffix(".json")
    try:
        content: dict[str, Any] = json.loads(notes.read_text())
        entries = content["manifest"].items()
        return content["meta"]["note"], {key: tuple(entry["shape"]) for key, entry in entries}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{notes} should lie beside {path.name} and hold its meta and manifest: {error}"
        ) from error


def build_model(shapes: Shapes) -> Restr:
    """The network that has official keys of these shapes, 12 heads everywhere."""
    patch, dim = shapes["encoder_v.patch_embed.proj.weight"][-1], shapes["encoder_v.pos_embed"][2]
    size = patch * int((shapes["encoder_v.pos_embed"][1] - 1) ** 0.5)
    words, width = shapes["encoder_l.embedding.weight"]
    model = Restr(
        backbone=VisualEncoder(
            image_size=size,
            patch_size=patch,
            dim=dim,
            num_blocks=_count(shapes, "encoder_v.blocks."),
            num_heads=HEADS,
        ),
        text_encoder=LanguageEncoder(
            WordTable(Vocabulary(), dim=width, context_length=20, size=words),
            out_dim=dim,
            num_blocks=_count(shapes, "encoder_l.blocks."),
            num_heads=HEADS,
        ),
        fusion=build_fusion(
            {key.removeprefix(FUSION): shape for key, shape in shapes.items()}, HEADS, 0
        ),
        image_size=size,
        patch_size=patch,
    )
    return model.eval()


def build_fusion(shapes: Shapes, num_heads: int, repeats: int) -> Fusion:
    """The fusion that has official keys of these shapes; its blocks are shared if repeated."""
    fusion = Fusion(
        shapes["seed_emb"][-1],
        num_heads=num_heads,
        num_blocks=repeats or _count(shapes, "blocks_vl."),
        shared=repeats > 0,
        num_steps=_count(shapes, "decoder.") - 1,
    )
    return fusion.eval()


def load_part(module: nn.Module, weights: Mapping[str, Tensor], prefix: str) -> None:
    """Loads weights of the official layout into what stands at ``prefix`` of the whole model."""
    steps = next(part for part in module.modules() if isinstance(part, CoarseToFine)).steps
    native, _ = restr_keys(len(steps)).to_native(weights)
    own = {key.removeprefix(prefix): value for key, value in native.items()}
    load_weights(module, own, optional=("text_encoder.table.words",))


def _count(shapes: Shapes, prefix: str) -> int:
    """How many different numbers follow ``prefix`` in the keys."""
    return len({key[len(prefix) :].split(".")[0] for key in shapes if key.startswith(prefix)})


def _statistics(array: np.ndarray) -> np.ndarray:
    x = array.astype(np.float64)
    return np.array([x.mean(), x.std(), np.abs(x).mean(), x.min(), x.max()])


def _number(pattern: str, text: str, otherwise: int) -> int:
    found = re.search(pattern, text)
    return int(found[1]) if found else otherwise


def _inputs_beside(path: Path) -> Path:
    return path.with_name(path.name.rpartition("_")[0] + ".npz")


def _arrays(**tensors: Tensor) -> dict[str, np.ndarray]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}
