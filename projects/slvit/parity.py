"""Replays recorded runs of SLViT's repository on weights made from key names.

Every kind of recording has a function that computes all its arrays again. Tolerances are those that
were stated with the recordings: 1e-5 plus 1e-4 of the largest magnitude for parts of the network,
1e-4 of it (5e-4 for sizes other than 224) for the whole network.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from projects.slvit.backbone import Block, Fusion, LanguageMSCAN, Words
from projects.slvit.checkpoint import OFFICIAL_KEYS
from projects.slvit.decoder import LightHamDecoder, NonNegativeFactors
from projects.slvit.enhance import UncertainRegionEnhancement
from projects.slvit.model import SLViT
from unified.modeling.text_encoder import build_text_encoder
from unified.parity import Comparison, compare
from unified.recorded import make_input, make_weights, thin_out
from unified.structures import ImageBatch

Arrays = Mapping[str, np.ndarray]
DIMS = (64, 128, 320, 512)
EMBEDDINGS = tuple(
    f"text_encoder.embeddings.{kind}_embeddings.weight"
    for kind in ("word", "position", "token_type")
)
_BLOCK = "backbone.block1.0."
PREFIXES = {  # of a part's keys in the whole model: official, ours
    "": ("", ""),
    "block": (_BLOCK, _BLOCK),
    "fusion": (f"{_BLOCK}attn.spatial_gating_unit.", f"{_BLOCK}attn.spatial_gating_unit."),
    "enhancement": ("inter_trans.", "enhancement."),
    "decoder": ("classifier.", "decoder."),
}


def load_named_weights(module: nn.Module, part: str = "") -> int:
    """Fills a part of the model with the weights of its official keys; their number of parameters.

    The weights take the way of an official checkpoint: through the key table.
    """
    theirs, ours = PREFIXES[part]
    own = {ours + key: value for key, value in module.state_dict().items()}
    keys = {key.removeprefix(theirs): v for key, v in OFFICIAL_KEYS.to_foreign(own).items()}
    shapes = {key: tuple(value.shape) for key, value in keys.items()}
    weights = make_weights(shapes, embeddings=EMBEDDINGS)
    native, _ = OFFICIAL_KEYS.to_native({theirs + key: v for key, v in weights.items()})
    module.load_state_dict({key.removeprefix(ours): value for key, value in native.items()})
    module.eval()
    return sum(parameter.numel() for parameter in module.parameters())


def published_model() -> SLViT:
    """SLViT with MSCAN-B and BERT-base, at random."""
    text_encoder = build_text_encoder("bert-base", hidden_dim=None, context_length=20)
    text_encoder.bert.add_module("pooler", None)
    return SLViT(
        backbone=LanguageMSCAN(),
        text_encoder=text_encoder,
        enhancement=UncertainRegionEnhancement(dims=DIMS),
        decoder=LightHamDecoder(dims=DIMS),
        input_size=None,
    )


def replay_fusion(arrays: Arrays, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """Language-guided multi-scale fusion attention."""
    x, words = torch.from_numpy(arrays["x"]), _words(arrays)
    module = Fusion(dim=x.shape[1], context_dim=words.hidden.shape[-1])
    load_named_weights(module, "fusion")
    out, attended = module(x, words)
    return {
        "conv0": module.conv0(x),
        "cross": attended.cross,
        "gated_cross": attended.tokens,
        "out": out,
        "sim_temp": attended.weights.sum(dim=-1)[:, None],
    }


def replay_block(arrays: Arrays, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """One block on tokens (B, N, C) of a map of size ``hw``."""
    tokens, words = torch.from_numpy(arrays["x"]), _words(arrays)
    dim = tokens.shape[-1]
    hidden = info["manifest"]["mlp.fc1.weight"]["shape"][0]
    module = Block(dim=dim, context_dim=words.hidden.shape[-1], mlp_ratio=hidden // dim)
    load_named_weights(module, "block")
    x = tokens.transpose(1, 2).unflatten(2, tuple(arrays["hw"].tolist()))
    return {"out": module(x, words)[0].flatten(2).transpose(1, 2)}


def replay_enhancement(arrays: Arrays, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """Uncertain region enhancement, with the recorded order of nearly equal regions."""
    shapes = {key: entry["shape"] for key, entry in info["manifest"].items()}
    dims = [shapes[f"fc_module.{index}.weight"][1] for index in range(4)]
    recorded = torch.from_numpy(arrays["topk_idx"]).flatten(1)
    module = UncertainRegionEnhancement(
        dims=dims, dim=shapes["fc_module.0.weight"][0], num_regions=recorded.shape[1]
    )
    load_named_weights(module, "enhancement")
    scores = [_square(torch.from_numpy(arrays[f"s{index}"])) for index in range(4)]
    levels = [
        torch.from_numpy(make_input(f"urce.f{i}", (len(score), dim, *score.shape[1:])))
        for i, (score, dim) in enumerate(zip(scores, dims, strict=True))
    ]
    uncertainty = module.uncertainty(scores)
    regions = settle_ties(uncertainty.flatten(1), module.select(uncertainty), recorded)
    outputs = module(levels, regions)
    shape = arrays["topk_idx"].shape
    return {
        "topk_score": uncertainty.flatten(1).gather(1, regions).view(shape),
        "topk_idx": regions.view(shape),
        **{f"out{index}": output for index, output in enumerate(outputs)},
        "stats": torch.stack([statistics(output) for output in outputs]),
    }


def replay_factors(arrays: Arrays, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """Matrix factorisation from the fixed bases."""
    x = torch.from_numpy(arrays["x"])
    return {"out": NonNegativeFactors(dim=x.shape[1]).eval()(x)}


def replay_decoder(arrays: Arrays, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """The decoder on four levels of which the finest is as large as its output."""
    module = LightHamDecoder(dims=DIMS)
    load_named_weights(module, "decoder")
    places = ("squeeze", "hamburger.lower", "hamburger.factors", "hamburger")
    taps = _taps(module, dict(zip(("squeeze", "ham_in", "ham", "hamburger"), places, strict=True)))
    side = arrays["out"].shape[-1]
    out = module(
        [
            torch.from_numpy(make_input(f"ham.f{i}", (1, dim, side >> i, side >> i)))
            for i, dim in enumerate(DIMS)
        ]
    )
    taps["ham_in"] = taps["ham_in"].relu()
    bases = F.normalize(module.hamburger.factors.bases, dim=1)
    return {
        **taps,
        "out": out,
        "stats": torch.stack([statistics(x) for x in taps.values()]),
        "bases_head": bases[0, :4, :4],
    }


def replay_whole(arrays: Arrays, info: Mapping[str, Any]) -> dict[str, Tensor]:
    """The whole network; regions are the recorded ones, as the published choice is rounding."""
    model = published_model()
    load_named_weights(model)
    side = 32 * math.isqrt(arrays["sim4"].shape[-1])
    image = torch.from_numpy(make_input(f"slvit.img{side}", (1, 3, side, side)))
    ids, mask = (torch.from_numpy(arrays[name]) for name in ("input_ids", "mask"))
    hidden = model.text_encoder.encode_ids(ids, mask).last_hidden
    batch = ImageBatch(image, ((side, side),), torch.zeros(1, side, side, dtype=torch.bool))
    stem = model.encode_image(batch).levels[0]
    trace = model.trace(
        stem, Words(hidden, mask == 0), torch.from_numpy(arrays["forced_topk"]).flatten(1)
    )
    logits = F.interpolate(trace.logits, size=(side, side), mode="bilinear", align_corners=True)
    features = [stage.features for stage in trace.stages]
    last = trace.stages[-1].attended.weights.sum(dim=-1)
    named = zip(("F", "T", "D"), (features, trace.enhanced, trace.decoded), strict=True)
    measured = [*features, *trace.enhanced, hidden, trace.logits, logits]
    return {
        **{f"{letter}{i}": x for letter, levels in named for i, x in enumerate(levels, start=1)},
        "lang": hidden[0],
        "logit_q": trace.logits,
        "logits": logits,
        "stats": torch.stack([statistics(x) for x in measured]),
        "real_U": trace.uncertainty.flatten(1)[:, None],
        "sim4": last[:, None],
    }


KINDS: Mapping[str, Callable[[Arrays, Mapping[str, Any]], dict[str, Tensor]]] = {
    "slvit_lmfa": replay_fusion,
    "slvit_block": replay_block,
    "slvit_urce": replay_enhancement,
    "slvit_nmf": replay_factors,
    "slvit_hamhead": replay_decoder,
    "slvit_full": replay_whole,
}
# What a recording holds for the replay alone.
INPUTS = ("x", "l", "l_mask", "hw", "s0", "s1", "s2", "s3", "input_ids", "mask", "forced_topk")


def kind_of(path: Path) -> str | None:
    """The kind of recording a file is, by its name."""
    return next((kind for kind in KINDS if path.stem.startswith(kind)), None)


def check(path: Path, arrays: Arrays) -> list[Comparison]:
    """One comparison for every recorded output of ``path``, whose JSON file lies beside it."""
    kind = kind_of(path)
    assert kind is not None
    info = json.loads(path.with_suffix(".json").read_text())
    with torch.no_grad():
        ours = KINDS[kind](arrays, info)
    results = []
    for name, expected in arrays.items():
        if name not in INPUTS:
            actual = thin_out(ours[name].numpy(), expected.shape)
            largest = float(np.abs(expected).max(initial=0.0))
            allowed = 1e-5 + 1e-4 * largest
            if kind == "slvit_full":
                allowed = max(1e-5, (1e-4 if path.stem.endswith("224") else 5e-4) * largest)
            results.append(compare(name, expected, actual.astype(expected.dtype), allowed))
    return results


def settle_ties(scores: Tensor, ours: Tensor, recorded: Tensor, within: float = 1e-5) -> Tensor:
    """The recorded choice (B, K) where it is as good as ours up to rounding, else ours.

    Args:
        scores: (B, N) of which the largest K are chosen.
    """
    best, theirs = scores.gather(1, ours), scores.gather(1, recorded)
    distinct = all(len(set(row)) == len(row) for row in recorded.tolist())
    return recorded if distinct and bool(((best - theirs).abs() <= within).all()) else ours


def statistics(x: Tensor) -> Tensor:
    """Mean, standard deviation, mean magnitude, minimum and maximum, (5,)."""
    x = x.double()
    return torch.stack([x.mean(), x.std(correction=0), x.abs().mean(), x.min(), x.max()])


def _words(arrays: Arrays) -> Words:
    hidden = torch.from_numpy(arrays["l"]).transpose(1, 2)  # (B, T, D)
    return Words(hidden, torch.from_numpy(arrays["l_mask"])[..., 0] == 0)


def _square(x: Tensor) -> Tensor:
    """(B, 1, N) -> (B, sqrt(N), sqrt(N))."""
    side = math.isqrt(x.shape[-1])
    return x[:, 0].unflatten(1, (side, side))


def _taps(module: nn.Module, names: Mapping[str, str]) -> dict[str, Tensor]:
    """A dict that fills with outputs of submodules when the module runs."""
    taken: dict[str, Tensor] = {}
    for name, place in names.items():

        def keep(_: nn.Module, __: Sequence[Tensor], output: Tensor, name: str = name) -> None:
            taken[name] = output

        module.get_submodule(place).register_forward_hook(keep)
    return taken
