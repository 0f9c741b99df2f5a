"""Replays recorded runs of the official GroupViT on weights made from key names.

Sizes are read from the shapes of the official keys, so that any configuration is served. Tolerances
are those that were stated with the recordings: 1e-5 plus 1e-4 of the largest magnitude; assignments
of tokens agree for 99%, maps of classes and the scores at their pixels for 99.9%.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.groupvit.checkpoint import OFFICIAL_KEYS
from projects.groupvit.grouping import GroupingBlock, hard_assignment
from projects.groupvit.image_encoder import Grouped, ImageEncoder
from projects.groupvit.losses import image_text_loss, multi_label_loss
from projects.groupvit.model import GroupViT
from projects.groupvit.text_encoder import TextTransformer
from projects.groupvit.zero_shot import (
    class_scores,
    group_affinity,
    mean_of_prompts,
    winning_groups,
)
from unified.errors import InputError
from unified.parity import Comparison, compare
from unified.recorded import make_input, make_weights, named_inputs, thin_out

Arrays = Mapping[str, np.ndarray]
Shapes = Mapping[str, Sequence[int]]
THRESHOLDS = {"voc": 0.95, "ctx": 0.35, "nobg": None}
INITIAL_SCALE = float(np.float32(np.log(1 / 0.07)))


def image_encoder_of(shapes: Shapes, num_heads: int) -> ImageEncoder:
    """An image encoder of the size that official keys (without prefix) tell."""
    depths: list[int] = []
    groups: list[int] = []
    outputs: list[int] = []
    while any(key.startswith(f"layers.{len(depths)}.") for key in shapes):
        prefix = f"layers.{len(depths)}."
        blocks = {key.split(".")[3] for key in shapes if key.startswith(f"{prefix}blocks.")}
        depths.append(len(blocks))
        token = shapes.get(f"{prefix}group_token")
        groups.append(0 if token is None else token[1])
        if token is not None:
            outputs.append(shapes[f"{prefix}downsample.mlp_inter.fc2.weight"][0])
    _, positions, dim = shapes["pos_embed"]
    patch = shapes["patch_embed.proj.weight"][-1]
    return ImageEncoder(
        image_size=patch * round(positions**0.5),
        patch_size=patch,
        dim=dim,
        depths=depths,
        num_heads=num_heads,
        num_group_tokens=groups,
        num_output_groups=outputs,
    )


def model_of(shapes: Shapes, num_heads: int) -> GroupViT:
    """A GroupViT of the size that official keys tell."""
    image = {k.removeprefix("img_encoder."): v for k, v in shapes.items() if "img_encoder." in k}
    length, dim = shapes["text_encoder.positional_embedding"]
    layers = {key.split(".")[3] for key in shapes if ".resblocks." in key}
    hidden = shapes["img_projector.linear_hidden.0.weight"][0]
    return GroupViT(
        image_encoder=image_encoder_of(image, num_heads),
        text_encoder=TextTransformer(
            context_length=length,
            dim=dim,
            num_layers=len(layers),
            vocab_size=shapes["text_encoder.token_embedding.weight"][0],
        ),
        out_dim=shapes["img_projector.linear_out.weight"][0],
        hidden_dim=hidden,
    )


def load_named_weights(module: nn.Module, prefix: str, native_prefix: str) -> None:
    """Fills a part of the model with weights of its official keys, through the key table."""
    own = {native_prefix + key: value for key, value in module.state_dict().items()}
    foreign = OFFICIAL_KEYS.to_foreign(own)
    shapes = {key.removeprefix(prefix): tuple(value.shape) for key, value in foreign.items()}
    small = r"(.*\.)?(pos_embed|group_token|token_embedding\.weight|positional_embedding)"
    weights = make_weights(shapes, embeddings=[k for k in shapes if re.fullmatch(small, k)])
    for name in ("logit_scale", "multi_label_logit_scale"):
        if name in weights:
            weights[name] = torch.tensor(INITIAL_SCALE)
    native, _ = OFFICIAL_KEYS.to_native({prefix + key: value for key, value in weights.items()})
    module.load_state_dict({k.removeprefix(native_prefix): v for k, v in native.items()})
    module.eval()


@dataclass(frozen=True)
class Recorded:
    """A recording: its arrays, shapes of its official keys, its images, and attention heads."""

    arrays: Arrays
    shapes: Shapes
    images: Sequence[Tensor]
    num_heads: int


def replay_block(recorded: Recorded) -> dict[str, Tensor]:
    """One grouping block, without noise."""
    arrays = recorded.arrays
    groups, dim = arrays["g"].shape[1:]
    module = GroupingBlock(
        dim=dim,
        num_heads=recorded.num_heads,
        num_groups=groups,
        num_output_groups=arrays["out"].shape[1],
    )
    prefix = "layers.0.downsample."
    load_named_weights(module, f"img_encoder.{prefix}", f"image_encoder.{prefix}")
    out, assignment = module(torch.from_numpy(arrays["x"]), torch.from_numpy(arrays["g"]))
    logits = torch.from_numpy(arrays["raw"])[:, 0]  # any: not those of the block
    return {
        "out": out,
        "soft": assignment.soft[:, None],
        "hard": assignment.hard[:, None],
        "hard_softmax": hard_assignment(logits.softmax(dim=1))[:, None],
    }


def replay_image_encoder(recorded: Recorded) -> dict[str, Tensor]:
    """The image encoder alone."""
    encoder = image_encoder_of(recorded.shapes, recorded.num_heads)
    load_named_weights(encoder, "img_encoder.", "image_encoder.")
    described = _described(encoder(recorded.images[0]))
    short = {key.removeprefix("enc_").removesuffix("0"): x for key, x in described.items()}
    return described | short


def replay_model(recorded: Recorded) -> dict[str, Tensor]:
    """Both encoders, losses, zero-shot segmentation, and what transformers' class would say."""
    arrays, images = recorded.arrays, recorded.images
    model = model_of(recorded.shapes, recorded.num_heads)
    load_named_weights(model, "", "")
    grouped = model.image_encoder(images[0])
    image = model.image_projector(grouped.groups.mean(dim=1))
    flat = model.image_projector(grouped.groups.flatten(0, 1))
    groups = flat.unflatten(0, grouped.groups.shape[:2])
    text = model.text_vectors(torch.from_numpy(arrays["tokens"]))
    directions = F.normalize(image, dim=-1), F.normalize(text, dim=-1)
    logits = model.scale * directions[0] @ directions[1].t()
    named = {
        **_described(grouped),
        "image_x": image,
        "image_feat": groups,
        "text_x": text,
        "logits": logits,
        "hf_logits_per_image": logits,
        "hf_seg_logits": _transformers_map(
            grouped, groups, directions[1], model, images[0].shape[-2:]
        ),
    }
    if "tokens_multi" in arrays:
        named["loss"] = _losses(model, directions[0], torch.from_numpy(arrays["tokens_multi"]))
    if "cls_tokens" in arrays:
        named |= _zero_shot(model, images[-1], torch.from_numpy(arrays["cls_tokens"]))
    return named


def _described(grouped: Grouped) -> dict[str, Tensor]:
    named: dict[str, Tensor] = {"enc_x": grouped.groups.mean(dim=1), "enc_feat": grouped.groups}
    for index, assignment in enumerate(grouped.assignments):
        best = assignment.soft.topk(2, dim=1).values
        named[f"soft{index}"] = assignment.soft
        named[f"hard{index}"] = assignment.hard
        named[f"hard_idx{index}"] = assignment.soft.argmax(dim=1)
        named[f"soft_margin{index}"] = (best[:, 0] - best[:, 1]).min()[None]
    return named


def _losses(model: GroupViT, image: Tensor, ids: Tensor) -> Tensor:
    """Image-text and multi-label loss: captions are the first texts of ``ids`` (B, 1 + K, N)."""
    vectors = model.text_vectors(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
    texts = F.normalize(vectors, dim=-1)
    scale = model.multi_label_logit_scale.exp()
    return torch.stack(
        (
            image_text_loss(image, texts[:, 0], model.scale),
            multi_label_loss(image, texts[:, 1:], scale),
        )
    )


def _transformers_map(
    grouped: Grouped, groups: Tensor, text: Tensor, model: GroupViT, size: Sequence[int]
) -> Tensor:
    """The ``segmentation_logits`` of transformers: soft groups, the scale applied twice."""
    scale = model.logit_scale.exp()
    fit = scale * F.normalize(groups, dim=-1) @ text.t()  # (B, G, N)
    resized = F.interpolate(grouped.soft_map(), size=tuple(size), mode="bilinear")
    return scale * torch.einsum("bgn,bghw->bnhw", fit, resized)


def _zero_shot(model: GroupViT, images: Tensor, ids: Tensor) -> dict[str, Tensor]:
    """The published protocol on one image; with a background its class comes first."""
    vectors = model.text_vectors(ids.flatten(0, 1)).unflatten(0, ids.shape[:2])
    classes = mean_of_prompts(vectors)
    grouped = model.image_encoder(images)
    image, groups = model.embed_image(grouped), model.embed_groups(grouped)
    affinity = group_affinity(groups, image, classes, model.scale)
    size = (images.shape[-2], images.shape[-1])
    winners = winning_groups(grouped.soft_map(), size)
    named = {"text_embedding": classes, "affinity": affinity[0], "group_map": winners[0]}
    soft = grouped.soft_map()[0].flatten(1)
    named |= {"group_argmax": soft.argmax(dim=0), "prev_soft": soft.t()}
    for name, threshold in THRESHOLDS.items():
        scores = class_scores(winners, affinity, background=threshold)[0]
        named |= {f"seg_{name}": scores, f"argmax_{name}": scores.argmax(dim=0)}
    return named


@dataclass(frozen=True)
class Kind:
    """How a kind of recording is computed again, and which of its arrays are only inputs."""

    replay: Callable[[Recorded], dict[str, Tensor]]
    inputs: tuple[str, ...]


KINDS: Mapping[str, Kind] = {  # by the beginning of the file's name, the first that fits
    "groupvit_block": Kind(replay_block, ("x", "g", "raw")),
    "groupvit_1stage": Kind(replay_image_encoder, ()),
    "groupvit_": Kind(replay_model, ("tokens", "tokens_multi", "cls_tokens")),
}
# Share of entries that may differ: of assignments of tokens, and of maps of pixels.
FLIPPED = {"hard": 0.01, "group_argmax": 0.01, "argmax": 0.001, "seg": 0.001}


def kind_of(path: Path) -> str | None:
    """The kind of recording a file is, by its name."""
    return next((kind for kind in KINDS if path.stem.startswith(kind)), None)


def check(path: Path, arrays: Arrays) -> list[Comparison]:
    """One comparison for every recorded output of ``path``, whose JSON file lies beside it.

    Keys do not tell the number of attention heads. Where the recording does not either, it is the
    first that reproduces all arrays, out of a few that are usual.

    Raises:
        InputError: the JSON file is missing or does not tell the size of the model.
    """
    name = kind_of(path)
    assert name is not None
    kind, info = KINDS[name], read_info(path)
    shapes = _shapes(path, info)
    results: list[Comparison] = []
    for num_heads in _heads(info, shapes):
        images = _images(path, info, arrays, shapes)
        with torch.no_grad():
            ours = kind.replay(Recorded(arrays, shapes, images, num_heads))
        recorded = {k: v for k, v in arrays.items() if k not in kind.inputs}
        unknown = sorted(set(recorded) - set(ours))
        if unknown:
            raise InputError(f"{path}: no replay for the recorded arrays {', '.join(unknown)}")
        found = [_compared(key, value, ours[key].numpy()) for key, value in recorded.items()]
        if not results or _failed(found) < _failed(results):
            results = found
        if not _failed(results):
            break
    return results


def read_info(path: Path) -> Mapping[str, Any]:
    """What the JSON file beside a recording says about it.

    Raises:
        InputError: it cannot be read.
    """
    try:
        return json.loads(path.with_suffix(".json").read_text())
    except (OSError, ValueError) as error:
        raise InputError(
            f"the description of {path.name}, {path.stem}.json beside it, cannot be read: {error}"
        ) from error


def _failed(results: Sequence[Comparison]) -> int:
    return sum(not result.passed for result in results)


def _compared(name: str, expected: np.ndarray, ours: np.ndarray) -> Comparison:
    """Arrays of labels, and of scores that labels choose, by the number of entries that differ."""
    actual = thin_out(ours, expected.shape)
    allowed = 1e-5 + 1e-4 * float(np.abs(expected).max(initial=0.0))
    share = next((s for start, s in FLIPPED.items() if name.startswith(start)), None)
    if share is None:
        return compare(name, expected, actual.astype(expected.dtype), allowed)
    differing = np.abs(expected.astype(np.float64) - actual) > (allowed if "seg" in name else 0)
    if differing.ndim == 3:  # (classes, H, W): pixels of which any score differs
        differing = differing.any(axis=0)
    return Comparison(name, int(differing.sum()), int(share * differing.size))


def _shapes(path: Path, info: Mapping[str, Any]) -> Shapes:
    """Shapes of the official keys: in the description, else in the manifest file of the name."""
    manifest = info.get("manifest")
    beside = path.with_name(f"{path.stem}_manifest.json")
    if not manifest and beside.is_file():
        manifest = json.loads(beside.read_text())["keys"]
    if not manifest:
        raise InputError(f"{path}: neither its description nor {beside.name} names any keys")
    return {k: v["shape"] if isinstance(v, dict) else v for k, v in manifest.items()}


def _images(path: Path, info: Mapping[str, Any], arrays: Arrays, shapes: Shapes) -> list[Tensor]:
    """The images that the note names; without a note one batch of the size of the positions."""
    note = str(info.get("note") or info["meta"].get("note", ""))
    named = named_inputs(note)
    key = next((key for key in shapes if key.endswith("pos_embed")), None)
    if not named and key is not None:
        patch = shapes[key.replace("pos_embed", "patch_embed.proj.weight")][-1]
        side = patch * round(shapes[key][1] ** 0.5)
        named = {f"{path.stem}.img": (len(next(iter(arrays.values()))), 3, side, side)}
    return [torch.from_numpy(make_input(name, shape)) for name, shape in named.items()]


def _heads(info: Mapping[str, Any], shapes: Shapes) -> list[int]:
    """Numbers of attention heads to try, one if the recording's configuration says it."""
    configuration = info["meta"].get("cfg", {})
    heads = configuration.get("img", configuration).get("num_heads")
    if heads is not None:
        return [heads[0] if isinstance(heads, list) else heads]
    dim = next(v for k, v in shapes.items() if k.endswith("norm_tokens.weight"))[0]
    return [n for n in (6, 3, dim // 64, dim // 32, dim // 16) if n and dim % n == 0]
