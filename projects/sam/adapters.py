"""SAM-shaped models behind three methods, without a copy of anybody's SAM.

The networks are transformers' and timm's. A model of the user's own takes part as soon as it has
the three methods of ``PromptableModel``.
"""

from __future__ import annotations

from typing import Any, Protocol

import torch
from torch import Tensor, nn

from projects.sam.decoding import decode, runs_here
from unified.modeling.precision import full_precision, widen
from unified.structures import Size


class PromptableModel(Protocol):
    """What is asked of a SAM: B is the batch, C the width, h and w the size of the embedding.

    Attributes:
        image_size: side in pixels of the square that images are padded to.
    """

    image_size: int

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """Normalised (B, 3, S, S) -> the embedding (B, C, h, w), and what else decoding needs.

        Every further tensor is (B, ...) and reaches ``decode_masks`` as it is.
        """
        ...

    def encode_prompts(
        self,
        num: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Prompts of ``num`` objects -> sparse tokens (num, N, C) and a dense map (num, C, h, w).

        Without prompts N is 0 and the dense map says that no mask was given.

        Args:
            points: (num, P, 2) x, y in pixels of the padded input.
            labels: (num, P) int64, 1 on the object, 0 beside it.
            boxes: (num, 4) x0, y0, x1, y1 in pixels.
            masks: (num, 1, 4h, 4w) logits.
        """
        ...

    def decode_masks(
        self, embedding: tuple[Tensor, ...], sparse: Tensor, dense: Tensor, *, several: bool
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (B, K, 4h, 4w) and their predicted IoU (B, K).

        Args:
            embedding: of ``encode_image``, its first entry perhaps changed.
            several: K > 1 masks for an ambiguous prompt, else the one for a clear prompt.
        """
        ...


class Sam(nn.Module):
    """transformers' SAM, or any image encoder before its prompt encoder and mask decoder.

    Source: Segment Anything (arXiv:2304.02643), section 3.

    Args:
        vision_encoder: (B, 3, S, S) -> (B, C, h, w), or an output with it as last_hidden_state.
        prompt_encoder, mask_decoder: of a ``SamModel``.
    """

    def __init__(
        self, *, vision_encoder: nn.Module, prompt_encoder: nn.Module, mask_decoder: nn.Module
    ) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.prompt_encoder: Any = prompt_encoder
        self.mask_decoder = mask_decoder
        self.image_size: int = self.prompt_encoder.input_image_size
        self.frozen = False

    def freeze(self) -> nn.Module:
        """Stops image and prompt encoder from learning; returns the image encoder."""
        self.frozen = True
        self.prompt_encoder.requires_grad_(False)
        return self.vision_encoder.requires_grad_(False).eval()

    def train(self, mode: bool = True) -> Sam:
        """As of every module; the norms of a frozen encoder keep their statistics."""
        super().train(mode)
        if self.frozen:
            self.vision_encoder.eval()
        return self

    @classmethod
    def of(cls, model: Any) -> Sam:
        """The adapter for a loaded ``transformers.SamModel``; shares its weights."""
        return cls(
            vision_encoder=model.vision_encoder,
            prompt_encoder=model.prompt_encoder,
            mask_decoder=model.mask_decoder,
        )

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``PromptableModel``."""
        output = self.vision_encoder(images)
        return (output if isinstance(output, Tensor) else output.last_hidden_state,)

    def encode_prompts(
        self,
        num: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``PromptableModel``."""
        return _encode_prompts(self.prompt_encoder, num, points, labels, boxes, masks)

    def decode_masks(
        self,
        embedding: tuple[Tensor, ...],
        sparse: Tensor,
        dense: Tensor,
        *,
        several: bool,
        decoder: nn.Module | None = None,
        shown: Size | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``PromptableModel``.

        Args:
            decoder: takes the place of the SAM's own.
            shown: rows and columns of the embedding of which masks are wanted, by default all.
        """
        (image,) = embedding
        network, position = self.mask_decoder if decoder is None else decoder, self._position(image)
        if runs_here(image):
            return decode(network, image, position, sparse, dense, several=several, shown=shown)
        masks, scores = network(
            image_embeddings=image,
            image_positional_embeddings=position.expand(len(image), -1, -1, -1),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=dense,
            multimask_output=several,
        )
        return masks[:, 0], scores[:, 0]

    def _position(self, image: Tensor) -> Tensor:
        """Position code of every pixel of an embedding, (C, h, w)."""
        height, width = image.shape[-2:]
        y = (torch.arange(height, device=image.device) + 0.5) / height
        x = (torch.arange(width, device=image.device) + 0.5) / width
        grid = torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1)  # (h, w, 2), x before y
        with full_precision(image.device):
            return self.prompt_encoder.shared_embedding(grid).permute(2, 0, 1)


class Sam2(nn.Module):
    """transformers' SAM 2, 2.1 or the tracker of SAM 3 for single images: two finer maps join the
    embedding.

    Its video memory is not used: the fusion brings one.
    Source: SAM 2 (arXiv:2408.00714), section 4.

    Args:
        model: a ``transformers.Sam2Model`` or ``Sam3TrackerModel``.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model
        self.image_size: int = self.model.prompt_encoder.input_image_size

    @property
    def mask_decoder(self) -> nn.Module:
        """As of ``Sam``."""
        return self.model.mask_decoder

    def freeze(self) -> nn.Module:
        """As of ``Sam``; the projections of the finer maps belong to its decoder and learn."""
        for part in (self.model.prompt_encoder, self.model.shared_image_embedding):
            part.requires_grad_(False)
        self.model.no_memory_embedding.requires_grad_(False)
        return self.model.vision_encoder.requires_grad_(False)

    def encode_image(self, images: Tensor) -> tuple[Tensor, ...]:
        """See ``PromptableModel``."""
        *finer, coarse = self.model.get_image_features(images).fpn_hidden_states  # (h*w, B, C)
        maps = [*finer, coarse + self.model.no_memory_embedding]
        # SAM 3 has a fourth map; its library leaves it out only now, too.
        fine, middle, embedding = (
            tokens.permute(1, 2, 0).unflatten(2, size)
            for tokens, size in zip(maps, self.model.backbone_feature_sizes, strict=False)
        )
        return embedding, fine, middle

    def encode_prompts(
        self,
        num: int,
        *,
        points: Tensor | None = None,
        labels: Tensor | None = None,
        boxes: Tensor | None = None,
        masks: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``PromptableModel``."""
        return _encode_prompts(self.model.prompt_encoder, num, points, labels, boxes, masks)

    def decode_masks(
        self,
        embedding: tuple[Tensor, ...],
        sparse: Tensor,
        dense: Tensor,
        *,
        several: bool,
        decoder: nn.Module | None = None,
    ) -> tuple[Tensor, Tensor]:
        """See ``PromptableModel``; ``decoder`` as of ``Sam``."""
        image, *finer = embedding
        with full_precision(image.device):
            position = self.model.get_image_wide_positional_embeddings()
        masks, scores, _, _ = (self.mask_decoder if decoder is None else decoder)(
            image_embeddings=image,
            image_positional_embeddings=position.expand(len(image), -1, -1, -1),
            sparse_prompt_embeddings=sparse[:, None],
            dense_prompt_embeddings=dense,
            multimask_output=several,
            high_resolution_features=finer,
        )
        return masks[:, 0], scores[:, 0]


def _encode_prompts(
    encoder: Any,
    num: int,
    points: Tensor | None,
    labels: Tensor | None,
    boxes: Tensor | None,
    masks: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """transformers' prompt encoders take one more axis, the prompts of one image: here 1.

    In full precision: places are the arguments of sines.
    """
    with full_precision(encoder.no_mask_embed.weight.device):
        sparse, dense = encoder(
            input_points=None if points is None else points[:, None],
            input_labels=None if labels is None else labels[:, None],
            input_boxes=None if boxes is None else boxes[:, None],
            input_masks=None if masks is None else widen(masks),
        )
    dense = dense.expand(num, -1, -1, -1)
    return dense.new_zeros(num, 0, dense.shape[1]) if sparse is None else sparse[:, 0], dense
