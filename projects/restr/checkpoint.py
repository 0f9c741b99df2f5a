"""Keys of the released code's snapshots and ours."""

from __future__ import annotations

from collections.abc import Iterable

from unified.checkpoint import KeyTable

_FUSION = {
    "seed_emb": "seed",
    "proj_patch": "patch_matrix",
    "proj_cls": "seed_matrix",
    "proj_v.*": "project_visual.*",
    "proj_l.*": "project_words.*",
    "blocks_vl.*": "joint.*",
    "blocks_ls.*": "classifier.*",
    "norm.*": "norm.*",
}
_LANGUAGE = {
    "embedding.weight": "table.table.weight",
    "blocks.*": "blocks.*",
    "proj_lang.*": "project.*",
    "lang_norm.*": "norm.*",
}


def restr_keys(num_steps: int = 4) -> KeyTable:
    """The table for a decoder of so many steps."""
    return KeyTable(
        rules=[
            ("encoder_v.*", "backbone.vit.*"),
            *((f"encoder_l.{a}", f"text_encoder.{b}") for a, b in _LANGUAGE.items()),
            *((f"fusion_module.{a}", f"fusion.{b}") for a, b in _FUSION.items()),
            *(
                (f"fusion_module.decoder.{step}.up.1.weight", f"fusion.decoder.steps.{step}.weight")
                for step in range(num_steps)
            ),
            (f"fusion_module.decoder.{num_steps}.weight", "fusion.decoder.score.weight"),
        ],
        unused=("encoder_v.head.*",),
        ours=("text_encoder.table.words",),
    )


def find_restr_keys(keys: Iterable[str]) -> KeyTable | None:
    """The table for a file of a ReSTR model, in either layout."""
    known = list(keys)
    for prefix in ("fusion_module.decoder.", "fusion.decoder.steps."):
        steps = [key for key in known if key.startswith(prefix)]
        if steps and ("fusion_module.seed_emb" in known or "fusion.seed" in known):
            return restr_keys(len(steps) - (prefix == "fusion_module.decoder."))
    return None
