"""A whole UniRef of 0.6 M parameters, without disk or network."""

from __future__ import annotations

from collections.abc import Callable
from typing import ClassVar

import pytest
import torch
from torch import Tensor, nn

from projects.uniref.model import UniRef
from unified.modeling.detr_head import DetrHead
from unified.modeling.fusion import build_fusion
from unified.modeling.mask_encoder import MaskEncoder
from unified.modeling.mask_head import MaskHead
from unified.modeling.neck import Neck
from unified.modeling.text_encoder import TextEncoder
from unified.modeling.transformer import DeformableTransformer

DIM = 64
WORDS = ("a", "the", "red", "left", "right", "man", "dog", "cat", "on", "in", "chair", "tree")
MakeUniRef = Callable[..., UniRef]


class TinyBackbone(nn.Module):
    """Four strided convolutions: res2..res5 at strides 4 to 32."""

    name = "tiny"
    channels: ClassVar[dict[str, int]] = {"res2": 8, "res3": 16, "res4": 24, "res5": 32}

    def __init__(self) -> None:
        super().__init__()
        dims = [3, *self.channels.values()]
        strides = (4, 2, 2, 2)
        self.stages = nn.ModuleList(
            nn.Conv2d(a, b, stride + 1, stride=stride, padding=stride // 2)
            for a, b, stride in zip(dims, dims[1:], strides, strict=False)
        )

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 3, H, W) with H and W multiples of 32."""
        outputs, x = {}, images
        for name, stage in zip(self.channels, self.stages, strict=True):
            x = torch.relu(stage(x))
            outputs[name] = x
        return outputs


def make_text_encoder(dim: int = DIM) -> TextEncoder:
    """A two-layer BERT over a dozen words."""
    from tokenizers import Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Whitespace
    from tokenizers.processors import TemplateProcessing
    from transformers import BertConfig, BertModel

    entries = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS)
    vocabulary = {word: index for index, word in enumerate(entries)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = Whitespace()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[(word, vocabulary[word]) for word in ("[CLS]", "[SEP]")],
    )
    config = BertConfig(
        vocab_size=len(entries),
        hidden_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        max_position_embeddings=32,
    )
    return TextEncoder(
        model=BertModel(config), tokenizer=tokenizer, hidden_dim=dim, context_length=16
    )


def make_uniref(
    *,
    seed: int = 0,
    kinds: tuple[str, ...] = ("text", "mask"),
    backbone: nn.Module | None = None,
    num_queries: int = 12,
    num_classes: int = 1,
) -> UniRef:
    """C = 64, two encoder and decoder layers, every weight random, in eval mode.

    The zero-initialised layers (box refinement, fusion gate, sampling offsets) get random weights
    too, so that nothing is an identity. With C = 32 each of GroupNorm's 32 groups would be one
    channel: no mean of a channel would differ between images.
    """
    torch.manual_seed(seed)
    transformer = DeformableTransformer(
        dim=DIM, num_heads=4, encoder_layers=2, decoder_layers=2, feedforward_dim=64, num_points=2
    )
    backbone = TinyBackbone() if backbone is None else backbone
    model = UniRef(
        backbone=backbone,
        neck=Neck(in_dims=backbone.channels, dim=DIM),
        head=DetrHead(transformer, num_queries=num_queries, num_classes=num_classes),
        mask_head=MaskHead(dim=DIM, high_res_dim=backbone.channels["res2"]),
        fusion=build_fusion("UniFusion", dim=DIM, num_heads=4, head_dim=8) if kinds else None,
        text_encoder=make_text_encoder() if "text" in kinds else None,
        mask_encoder=MaskEncoder(dim=DIM, width=8) if "mask" in kinds else None,
    )
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim > 1 and not parameter.any():
                parameter.normal_(std=0.3 / parameter[0].numel() ** 0.5)
            elif name.startswith("head.class_embed") and name.endswith("bias"):
                parameter.normal_(std=0.5)  # scores in the middle of 0..1
        if model.fusion is not None:
            model.fusion.modulation[1].weight.normal_(std=0.3)  # references matter
        model.mask_head.controller.layers[-1].weight.mul_(0.3)  # masks are neither full nor empty
    return model.eval()


@pytest.fixture(scope="session")
def build_uniref() -> MakeUniRef:
    """The function that makes a new tiny UniRef; see ``make_uniref``."""
    return make_uniref


@pytest.fixture(scope="session")
def uniref() -> UniRef:
    """One tiny UniRef for the whole run; tests must not change it."""
    return make_uniref()
