"""Replays recorded runs of UniRef's SAM variant on weights made from key names.

Beside a recording FILE.npz lie ``sam_image.png`` and ``sam_support.png``, at the size that the
model sees. Without a manifest the model is that of the configuration; a manifest says its sizes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from projects.sam.building import build_mobile, build_vit
from projects.sam.checkpoint import find_sam_keys
from projects.sam.mask_encoder import SamMaskEncoder
from projects.sam.model import SamUniFusion
from unified.checkpoint import FOREIGN_PREFIX
from unified.engine.config import load_config
from unified.engine.models import CONFIGS
from unified.engine.system import Recording
from unified.errors import InputError
from unified.inference.image_io import read_image
from unified.masks import binary_masks
from unified.modeling.fusion import build_fusion
from unified.modeling.text_encoder import TextEncoder
from unified.parity import Arrays, Comparison, compare
from unified.recorded import make_weights
from unified.structures import FeaturePyramid, Reference, Segmentation, stack_padded

Shapes = Mapping[str, Sequence[int]]

RELATIVE = 1e-3  # of the largest value: these recordings come without a measured noise
NUM_HEADS = 8  # of the fusion, which no shape tells
SAM = "model.sam."


def check(recording: Recording) -> list[Comparison]:
    """One comparison for every recorded output.

    Raises:
        InputError: an output is recorded that the replay lacks, or an input is missing.
    """
    model = load_model(recording)
    arrays = recording.arrays
    ours = replay(model, arrays, recording.path.parent)
    recorded = {n.removeprefix("out/"): a for n, a in arrays.items() if n.startswith("out/")}
    if missing := sorted(set(recorded) - set(ours)):
        raise InputError(f"{recording.path}: no replay for the arrays {', '.join(missing)}")
    return [
        compare(name, expected, ours[name], RELATIVE * float(np.abs(expected).max()))
        for name, expected in recorded.items()
    ]


@torch.no_grad()
def replay(model: SamUniFusion, arrays: Arrays, folder: Path) -> dict[str, np.ndarray]:
    """Our value of every output: a sentence and an example on the same image."""
    images = model.preprocess([_pixels(folder / "sam_image.png")])
    features = model.encode_image(images)
    words = _words(model, arrays)
    said = _answer(model, features, words, "grounding")
    said["grounding_image_embedding_sub"] = features.levels[0][:, ::16, ::2, ::2]
    example = _example(model, arrays, folder)
    shown = _answer(model, features, example, "fss")
    shown["fss_ref_value_sub"] = example.values[:, ::16, ::16]
    shown["fss_ref_emb"] = example.summary
    found = model.segment(features, [(words,)])
    outputs = {**said, **shown, **_final(found, features, arrays["out/final_mask"].shape[1:])}
    return {name: np.asarray(value) for name, value in outputs.items()}


def _answer(
    model: SamUniFusion, features: FeaturePyramid, reference: Reference, name: str
) -> dict[str, Tensor]:
    """Masks at the input size, predicted IoU and the fused embedding."""
    whole = replace(features, image_sizes=(features.padded_size,))  # masks of padding count too
    found = model.decode(whole, [(reference,)], several=False)
    masks = torch.nn.functional.interpolate(found[0], scale_factor=4, mode="bilinear")
    return {
        f"{name}_pred_ious": found[1],
        f"{name}_pred_masks_sub": masks[..., ::8, ::8],
        f"{name}_mask_mean": masks.mean(dim=(2, 3)),
        f"{name}_mask_std": masks.std(dim=(2, 3)),
        f"{name}_fused_sub": model.fuse(features, [reference])[0][:, ::16, ::2, ::2],
    }


def _final(
    found: Segmentation, features: FeaturePyramid, size: tuple[int, ...]
) -> dict[str, np.ndarray]:
    """The mask at the size of the original picture, its score and its box in pixels."""
    height, width = size
    masks = binary_masks(
        found.mask_logits[0],
        stride=features.padded_size[0] // found.mask_logits.shape[-1],
        image_size=features.image_sizes[0],
        original_size=(height, width),
    ).numpy()
    rows, columns = masks[0].nonzero()
    box = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1)
    return {
        "final_mask": masks.astype(np.uint8),
        "final_score": found.scores[0].numpy(),
        "final_box": np.array([box], np.float32),
    }


def _words(model: SamUniFusion, arrays: Arrays) -> Reference:
    assert model.text_encoder is not None
    ids, valid = (
        torch.from_numpy(arrays[f"in/{n}"])[None] for n in ("input_ids", "attention_mask")
    )
    text = model.text_encoder.encode_ids(ids, valid)
    return Reference(text.words, text.words, text.padding_mask, text.sentence)


def _example(model: SamUniFusion, arrays: Arrays, folder: Path) -> Reference:
    images = model.preprocess([_pixels(folder / "sam_support.png")])
    height, width = (int(side) for side in arrays["in/support_mask_shape"])
    bits = np.unpackbits(arrays["in/support_mask"])[: height * width]
    mask = torch.from_numpy(bits.reshape(height, width)).bool()
    masks = stack_padded([mask], images.padded_size)
    (reference,) = model.encode_mask(images, model.encode_image(images), masks)
    return reference


def _pixels(path: Path) -> Tensor:
    return torch.from_numpy(read_image(path).transpose(2, 0, 1).copy())


def load_model(recording: Recording) -> SamUniFusion:
    """The recorded model in eval mode, its weights made from their names.

    Raises:
        InputError: the manifest is of another model.
    """
    if recording.manifest is None:
        from projects.sam.config import build

        config = recording.config_file or CONFIGS / "base_sam.yaml"
        with torch.device("meta"):
            like = build(load_config(config, recording.options))
        table = find_sam_keys(like.state_dict())
        assert table is not None
        foreign = table.to_foreign(like.state_dict())
        shapes: Shapes = {key: tuple(value.shape) for key, value in foreign.items()}
    else:
        shapes = {key: entry[0] for key, entry in recording.manifest.items()}
    table = find_sam_keys(shapes)
    if table is None:
        raise InputError(f"{recording.path}: the manifest holds no SAM; its keys start {SAM}")
    model = build_like(shapes)
    embeddings = {key for key, shape in shapes.items() if "embeddings" in key and len(shape) > 1}
    weights, report = table.to_native(make_weights(shapes, embeddings=embeddings))
    own = {key: value for key, value in weights.items() if not key.startswith(FOREIGN_PREFIX)}
    if report.unexpected or set(own) != set(model.state_dict()):
        odd = sorted({*report.unexpected, *set(own) ^ set(model.state_dict())})
        raise InputError(f"{recording.path}: the manifest does not fit our model, first {odd[0]}")
    model.load_state_dict(own, assign=True)  # nothing is held twice
    return model.eval()


def build_like(shapes: Shapes) -> SamUniFusion:
    """The model whose official keys have these shapes; SAM itself without memory."""
    inner = {k.removeprefix(SAM): s for k, s in shapes.items() if k.startswith(SAM)}
    dim = shapes["model.fusion_module.norm_v.weight"][0]
    with torch.device("meta"):
        sam = (
            build_vit(**_vit_sizes(inner)) if "image_encoder.pos_embed" in inner else build_mobile()
        )
    width = shapes.get("model.value_encoder.conv1.weight")
    return SamUniFusion(
        sam,
        fusion=build_fusion(
            "UniFusion",
            dim=dim,
            num_heads=NUM_HEADS,
            head_dim=shapes["model.fusion_module.attn.q_proj.weight"][0] // NUM_HEADS,
        ),
        text_encoder=_text_encoder(shapes, dim),
        mask_encoder=None if width is None else SamMaskEncoder(dim=dim, width=width[0]),
    )


def _vit_sizes(shapes: Shapes) -> dict[str, Any]:
    _, grid, _, width = shapes["image_encoder.pos_embed"]
    lengths = {
        int(key.split(".")[2]): shape
        for key, shape in shapes.items()
        if key.endswith(".attn.rel_pos_h")
    }
    windows = {(shape[0] + 1) // 2 for shape in lengths.values()} - {grid}
    return {
        "width": width,
        "depth": len(lengths),
        "num_heads": width // lengths[0][1],
        "global_layers": [i for i, shape in lengths.items() if shape[0] == 2 * grid - 1],
        "window_size": windows.pop() if windows else grid,
        "image_size": 16 * grid,
    }


def _text_encoder(shapes: Shapes, dim: int) -> TextEncoder | None:
    from transformers import BertConfig, BertModel

    bert = {k: s for k, s in shapes.items() if k.startswith("model.text_encoder.")}
    if not bert:
        return None
    words = bert["model.text_encoder.embeddings.word_embeddings.weight"]
    layers = {key.split(".")[4] for key in bert if ".encoder.layer." in key}
    config = BertConfig(
        vocab_size=words[0],
        hidden_size=words[1],
        num_hidden_layers=len(layers),
        num_attention_heads=max(1, words[1] // 64),
        intermediate_size=bert["model.text_encoder.encoder.layer.0.intermediate.dense.bias"][0],
    )
    return TextEncoder(model=BertModel(config), tokenizer=None, hidden_dim=dim)
