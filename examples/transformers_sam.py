"""UniFusion in a SAM of transformers that you have loaded: a mask for a sentence, printed.

    python examples/transformers_sam.py picture.jpg "the cat" --sam facebook/sam-vit-base

What UniFusion adds is untrained here, and begins as the identity: train it with
``configs/sam_image.yaml``, or take ``examples/mobile_sam.py``, which is trained. Without ``--sam``
a tiny SAM with random weights stands in, to see the plumbing.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from transformers import SamConfig, SamModel

from examples.printing import printed
from projects.sam.adapters import Sam
from projects.sam.mask_encoder import SamMaskEncoder
from projects.sam.model import SamUniFusion
from unified import ImagePredictor
from unified.commands import run_command
from unified.inference.image_io import read_image
from unified.modeling.fusion import build_fusion
from unified.modeling.text_encoder import build_text_encoder
from unified.structures import Prompt
from unified.weights import resolve


def tiny_sam() -> SamModel:
    """A SAM of width 256 and one layer, for pictures of 256 pixels."""
    size = {"image_size": 256}
    vision = {"hidden_size": 64, "num_hidden_layers": 1, "num_attention_heads": 2, "mlp_dim": 64}
    prompts = {"image_embedding_size": 16}
    return SamModel(
        SamConfig(
            vision_config={**size, **vision, "global_attn_indexes": [0]},
            prompt_encoder_config={**size, **prompts},
        )
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Prints the mask and its score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("picture", type=Path)
    parser.add_argument("sentence")
    parser.add_argument("--sam", help="name or folder that transformers loads")
    given = parser.parse_args(arguments)
    return run_command(lambda: show(given))


def show(given: argparse.Namespace) -> None:
    """Plugs UniFusion into a SAM and asks it for one sentence."""
    sam = SamModel.from_pretrained(given.sam) if given.sam else tiny_sam()

    model = SamUniFusion(
        Sam.of(sam),
        fusion=build_fusion("UniFusion", dim=256),
        text_encoder=build_text_encoder("minilm", hidden_dim=256, weights=resolve("minilm")),
        mask_encoder=SamMaskEncoder(dim=256),
    ).eval()
    side = model.sam.image_size
    predictor = ImagePredictor(model, short_side=side, max_size=side)
    predictor.set_image(read_image(given.picture))
    print(printed(*predictor.predict(Prompt(text=given.sentence))))


if __name__ == "__main__":
    sys.exit(main())
