"""The language encoder: word vectors through a small transformer."""

from __future__ import annotations

from torch import Tensor, nn

from projects.restr.blocks import PostNormBlock, word_positions
from unified.modeling.vocabulary import WordTable


class LanguageEncoder(nn.Module):
    """Vectors of words with a position code, blocks that normalise last, a projection.

    Source: ReSTR (arXiv:2203.16768), section 3.1; released code SouthFlame/restr, which has six
    blocks of width 300 where the paper says those of the visual encoder.
    """

    positions: Tensor

    def __init__(
        self, table: WordTable, *, out_dim: int, num_blocks: int = 6, num_heads: int = 12
    ) -> None:
        super().__init__()
        dim = table.table.embedding_dim
        self.table = table
        self.register_buffer(
            "positions", word_positions(table.context_length, dim), persistent=False
        )
        self.blocks = nn.Sequential(
            *(
                PostNormBlock(dim, num_heads=num_heads, feedforward_dim=4 * dim)
                for _ in range(num_blocks)
            )
        )
        self.project = nn.Linear(dim, out_dim)
        nn.init.trunc_normal_(self.project.weight, std=0.02)
        nn.init.zeros_(self.project.bias)
        self.norm = nn.LayerNorm(out_dim)

    def forward(self, ids: Tensor) -> Tensor:
        """Numbers of words (B, T), padding included -> (B, T, out_dim)."""
        return self.norm(self.project(self.blocks(self.table(ids) + self.positions)))
