"""From fused feature levels to decoder queries, boxes and class logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from unified.modeling.layers import MLP, inverse_sigmoid, zero_init
from unified.modeling.precision import full_precision
from unified.modeling.transformer import DeformableTransformer, TokenLayout


@dataclass(frozen=True)
class Proposals:
    """What the encoder proposes.

    Attributes:
        memory: (B, N, C) encoder output.
        layout: of its tokens.
        logits: (B, N, num_classes) of every token.
        features: (B, N, C) that boxes are predicted from.
        anchors: (B, N, 4) unactivated, that they are predicted relative to; infinite where no
            proposal is allowed.
    """

    memory: Tensor
    layout: TokenLayout
    logits: Tensor
    features: Tensor
    anchors: Tensor


@dataclass(frozen=True)
class Queries:
    """What the decoder knows; D decoder layers.

    Attributes:
        hidden: D x (B, Q, C).
        references: D + 1 boxes (B, Q, 4) cxcywh in [0, 1]; entry l is what layer l starts from,
            entry l + 1 what it makes of it. Gradients reach one layer back (look forward twice).
        memory: L x (B, C, h, w) encoder output.
        proposals: one for every token.
        selected: (B, Q) token of each query.
    """

    hidden: tuple[Tensor, ...]
    references: tuple[Tensor, ...]
    memory: tuple[Tensor, ...]
    proposals: Proposals
    selected: Tensor


class DetrHead(nn.Module):
    """Two-stage Deformable DETR with mixed query selection and look-forward-twice refinement.

    Source: DINO (arXiv:2203.03605), sections 3.4 and 3.5, as set in UniRef++ (arXiv:2312.15715).
    The predictors' last entry serves the encoder proposals.

    Under autocast the layers of encoder and decoder use half precision; what is predicted from
    them, and their residual streams, stay float32.
    """

    def __init__(
        self, transformer: DeformableTransformer, *, num_queries: int, num_classes: int
    ) -> None:
        super().__init__()
        dim = transformer.dim
        num_predictors = len(transformer.decoder.layers) + 1
        self.transformer = transformer
        self.query_embed = nn.Embedding(num_queries, dim)
        self.class_embed = nn.ModuleList(nn.Linear(dim, num_classes) for _ in range(num_predictors))
        self.bbox_embed = nn.ModuleList(MLP(dim, dim, 4, 3) for _ in range(num_predictors))
        for name, parameter in self.class_embed.named_parameters():
            if name.endswith("bias"):
                nn.init.constant_(parameter, -math.log((1 - 0.01) / 0.01))
        for regressor in self.bbox_embed:
            assert isinstance(regressor, MLP)
            zero_init(regressor.layers[-1])

    @property
    def num_layers(self) -> int:
        """Number of decoder layers."""
        return len(self.transformer.decoder.layers)

    def forward(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> Queries:
        """L x (B, C, h, w) and L x (B, h, w) True on padding -> decoded queries."""
        proposals = self.propose(levels, padding_masks)
        return self.decode(proposals, self.choose(proposals))

    def propose(self, levels: Sequence[Tensor], padding_masks: Sequence[Tensor]) -> Proposals:
        """A proposal for every token of the encoder."""
        memory, layout = self.transformer.encode(levels, padding_masks)
        with full_precision(memory.device):
            features, anchors = self.transformer.propose(memory, layout)
            return Proposals(
                memory=memory,
                layout=layout,
                logits=self.class_embed[-1](features),
                features=features,
                anchors=anchors,
            )

    def choose(self, proposals: Proposals) -> Tensor:
        """Tokens (B, Q) of the best proposals, best first: the order gives each its query."""
        num_queries = min(self.query_embed.num_embeddings, proposals.logits.shape[1])
        return proposals.logits[..., 0].topk(num_queries, dim=1).indices

    def decode(self, proposals: Proposals, selected: Tensor) -> Queries:
        """The chosen proposals, tokens (B, Q), refined layer by layer."""
        transformer, memory, layout = self.transformer, proposals.memory, proposals.layout
        features, anchors = (
            x.gather(1, selected[..., None].expand(-1, -1, x.shape[-1])).detach()
            for x in (proposals.features, proposals.anchors)
        )
        with full_precision(memory.device):
            boxes = (self.bbox_embed[-1](features) + anchors).detach()
            position = transformer.query_position(boxes)
        hidden = self.query_embed.weight[: selected.shape[1]].expand(boxes.shape[0], -1, -1)
        valid = torch.cat((layout.valid_ratios, layout.valid_ratios), dim=-1)  # (B, L, 4)
        hiddens, references = [], [boxes.sigmoid()]
        for index, layer in enumerate(transformer.decoder.layers):
            start = references[-1].detach()
            hidden = layer(hidden, position, start[:, :, None] * valid[:, None], memory, layout)
            references.append(self._refine(index, hidden, start))
            hiddens.append(hidden)
        return Queries(
            hidden=tuple(hiddens),
            references=tuple(references),
            memory=layout.split(memory),
            proposals=proposals,
            selected=selected,
        )

    def proposal_boxes(self, proposals: Proposals) -> Tensor:
        """Boxes (B, N, 4) of all tokens, cxcywh in [0, 1]."""
        with full_precision(proposals.features.device):
            return (self.bbox_embed[-1](proposals.features) + proposals.anchors).sigmoid()

    def logits(self, queries: Queries, layer: int) -> Tensor:
        """Class logits (B, Q, num_classes) of one decoder layer."""
        hidden = queries.hidden[layer]
        with full_precision(hidden.device):
            return self.class_embed[layer](hidden)

    def boxes(self, queries: Queries, layer: int) -> Tensor:
        """Boxes (B, Q, 4) of one decoder layer with gradients through the layer before it."""
        return self._refine(layer, queries.hidden[layer], queries.references[layer])

    def _refine(self, layer: int, hidden: Tensor, start: Tensor) -> Tensor:
        """What a decoder layer makes of boxes (B, Q, 4)."""
        with full_precision(hidden.device):
            delta = self.bbox_embed[layer](hidden)
            return (delta + inverse_sigmoid(start)).sigmoid()
