"""Key names of SLViT's repository and of the public MSCAN weights, and ours."""

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor, nn

from unified.checkpoint import KeyTable, Weights
from unified.errors import CheckpointError

_ATTENTION = {
    "vis_lang_att.project_q.0": "query",
    "vis_lang_att.project_k.0": "key",
    "vis_lang_att.project_v.0": "value",
    "vis_lang_att.W.0": "out",
    "res_gate": "gate",
}
_ENHANCEMENT = {
    "fc_module": "unify",
    "fc_rever_module": "revert",
    "group_attention.0.Attention.qkv_linear": "qkv",
    "group_attention.0.Attention.proj": "proj",
    "group_attention.0": "",
}
_DECODER = {
    "squeeze.gn": "squeeze.norm",
    "align.gn": "align.norm",
    "hamburger.ham_in.conv": "hamburger.lower",
    "hamburger.ham_out.conv": "hamburger.upper",
    "conv1": "classify",
}


def _rules(theirs: str, ours: str, names: Mapping[str, str]) -> list[tuple[str, str]]:
    return [(f"{theirs}{a}.*", f"{ours}{b}.*" if b else f"{ours}*") for a, b in names.items()]


# Computed nowhere in the official code: entries of its checkpoints that the model does not have.
DEAD_KEYS = ("*fusion.project_v.0.*", "*hamburger.ham.f_l1.0.*")

OFFICIAL_KEYS = KeyTable(
    rules=[
        *_rules("backbone.*.fusion.", "backbone.*.fusion.", _ATTENTION),
        ("backbone.*", "backbone.*"),
        ("text_encoder.*", "text_encoder.bert.*"),
        *_rules("inter_trans.", "enhancement.", _ENHANCEMENT),
        ("squeelayers.*", "squeeze.*"),
        ("normlayers.*", "norms.*"),
        *_rules("classifier.", "decoder.", _DECODER),
        ("classifier.*", "decoder.*"),
    ],
    unused=[*DEAD_KEYS, "text_encoder.embeddings.position_ids", "text_encoder.pooler.*"],
    convolutions=["backbone.*.fusion.vis_lang_att.*.weight"],
)


def load_mscan(backbone: nn.Module, weights: Mapping[str, Tensor]) -> None:
    """Copies public MSCAN weights into the backbone; layers that read words keep their values.

    Args:
        weights: of a classifier (``head.*`` is left out) or of a whole segmenter (``backbone.*``).

    Raises:
        CheckpointError: an entry is missing or has another shape.
    """
    plain = {key.removeprefix("module."): value for key, value in weights.items()}
    inside = {k.removeprefix("backbone."): v for k, v in plain.items() if k.startswith("backbone.")}
    given: Weights = {k: v for k, v in (inside or plain).items() if not k.startswith("head.")}
    own = {k: v for k, v in backbone.state_dict().items() if ".fusion." not in k}
    wrong = [k for k in own if k not in given or given[k].shape != own[k].shape]
    wrong += [k for k in given if k not in own and ".fusion." not in k]
    if wrong:
        raise CheckpointError(
            f"expected MSCAN weights of this size, but {len(wrong)} entries are missing, unknown "
            f"or of another shape (first: {wrong[0]}): choose the weights that fit "
            "MODEL.SLVIT.DIMS and DEPTHS"
        )
    backbone.load_state_dict({k: given[k] for k in own}, strict=False)
