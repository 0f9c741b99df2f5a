"""Blocks of GroupViT: transformer layers, and the grouping of tokens into fewer ones."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from unified.modeling.layers import DropPath


class MLP(nn.Module):
    """Linear, GELU, linear."""

    def __init__(self, in_dim: int, hidden_dim: int, out_dim: int) -> None:
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(in_dim, hidden_dim), nn.Linear(hidden_dim, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x)))


class TokenMLP(MLP):
    """An MLP over the tokens instead of the channels: (B, N, C) -> (B, M, C)."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.transpose(1, 2)).transpose(1, 2)


class SelfAttention(nn.Module):
    """Multi-head attention of tokens to each other."""

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv, self.proj = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)

    def forward(self, x: Tensor, *, causal: bool = False) -> Tensor:
        """(B, N, C) -> the same; ``causal``: each token sees itself and those before it."""
        q, k, v = self.qkv(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        out = F.scaled_dot_product_attention(q, k, v, is_causal=causal)  # (B, heads, N, D)
        return self.proj(out.transpose(1, 2).flatten(2))


class CrossAttention(nn.Module):
    """Multi-head attention of queries to other tokens."""

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, C), (B, M, C) -> (B, N, C)."""
        parts = (self.q_proj(query), self.k_proj(tokens), self.v_proj(tokens))
        q, k, v = (x.unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for x in parts)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class Block(nn.Module):
    """A pre-norm transformer layer."""

    def __init__(self, *, dim: int, num_heads: int, drop_path: float = 0.0) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attn = SelfAttention(dim=dim, num_heads=num_heads)
        self.mlp = MLP(dim, 4 * dim, dim)
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, N, C) -> the same."""
        x = x + self.drop_path(self.attn(self.norm1(x)))
        return x + self.drop_path(self.mlp(self.norm2(x)))


class CrossBlock(nn.Module):
    """Queries attend to tokens, without a norm before, with one after."""

    def __init__(self, *, dim: int, num_heads: int) -> None:
        super().__init__()
        self.attn = CrossAttention(dim=dim, num_heads=num_heads)
        self.norm2, self.norm_post = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp = MLP(dim, 4 * dim, dim)

    def forward(self, query: Tensor, tokens: Tensor) -> Tensor:
        """(B, N, C), (B, M, C) -> (B, N, C)."""
        query = query + self.attn(query, tokens)
        return self.norm_post(query + self.mlp(self.norm2(query)))


@dataclass(frozen=True)
class Assignment:
    """Which group each token belongs to, all (B, G, N).

    Attributes:
        logits: similarity of groups and tokens.
        soft: its softmax over groups, without noise.
        hard: one group per token; in training with Gumbel noise, and the gradient of the soft one.
    """

    logits: Tensor
    soft: Tensor
    hard: Tensor


def hard_assignment(weights: Tensor) -> Tensor:
    """The largest of each column of (B, G, N) as 1, the rest 0; its gradient is the identity."""
    one_hot = torch.zeros_like(weights).scatter(1, weights.argmax(dim=1, keepdim=True), 1.0)
    return one_hot - weights.detach() + weights


def gumbel_softmax(logits: Tensor) -> Tensor:
    """Softmax over groups of (B, G, N) with Gumbel(0, 1) noise, at temperature 1."""
    uniform = torch.rand_like(logits).clamp(min=torch.finfo(logits.dtype).tiny)
    return (logits - (-uniform.log()).log()).softmax(dim=1)


class AssignAttention(nn.Module):
    """Attention in which every token goes to exactly one group."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(dim, dim) for _ in range(3))
        self.proj = nn.Linear(dim, dim)

    def forward(self, groups: Tensor, tokens: Tensor) -> tuple[Tensor, Assignment]:
        """(B, G, C), (B, N, C) -> the mean of each group's tokens (B, G, C), and who is whose."""
        query, key, value = self.q_proj(groups), self.k_proj(tokens), self.v_proj(tokens)
        logits = query @ key.transpose(1, 2) * query.shape[-1] ** -0.5
        soft = logits.softmax(dim=1)
        hard = hard_assignment(gumbel_softmax(logits) if self.training else soft)
        weights = hard / (hard.sum(dim=2, keepdim=True) + 1.0)
        return self.proj(weights @ value), Assignment(logits, soft, hard)


class GroupingBlock(nn.Module):
    """Merges the tokens of an image into groups.

    Source: GroupViT (arXiv:2202.11094), section 3.1.2, equations 2 to 5, and its code, which has
    more than the paper: groups first attend to the tokens, means are over one token more than there
    are, and the groups themselves are added, as is an MLP.
    """

    def __init__(self, *, dim: int, num_heads: int, num_groups: int, num_output_groups: int):
        super().__init__()
        self.norm_tokens, self.norm_x = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.mlp_inter = TokenMLP(num_groups, dim // 2, num_output_groups)
        self.norm_post_tokens = nn.LayerNorm(dim)
        self.pre_assign_attn = CrossBlock(dim=dim, num_heads=num_heads)
        self.assign = AssignAttention(dim)
        self.norm_new_x = nn.LayerNorm(dim)
        self.mlp_channels = MLP(dim, 4 * dim, dim)

    def forward(self, tokens: Tensor, groups: Tensor) -> tuple[Tensor, Assignment]:
        """(B, N, C) and group tokens (B, S, C) -> new tokens (B, G, C), and who is whose."""
        tokens = self.norm_x(tokens)
        groups = self.norm_post_tokens(self.mlp_inter(self.norm_tokens(groups)))
        groups = self.pre_assign_attn(groups, tokens)
        merged, assignment = self.assign(groups, tokens)
        merged = merged + groups
        return merged + self.mlp_channels(self.norm_new_x(merged)), assignment
