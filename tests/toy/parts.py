"""Small parts of models, without disk or network."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from unified.modeling.text_encoder import TextEncoder

DIM = 64
WORDS = ("a", "the", "red", "left", "right", "man", "dog", "cat", "on", "in", "chair", "tree")


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
