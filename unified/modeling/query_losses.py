"""From decoder queries to losses: which head predicts what for which layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from unified.modeling.criterion import Criterion, LayerPrediction
from unified.modeling.detr_head import DetrHead, Queries
from unified.modeling.mask_head import MaskHead
from unified.structures import FeaturePyramid, Target


def layer_predictions(head: DetrHead, queries: Queries) -> list[LayerPrediction]:
    """Class logits and boxes of every decoder layer, first layer first."""
    return [
        LayerPrediction(logits=head.logits(queries, layer), boxes=head.boxes(queries, layer))
        for layer in range(head.num_layers)
    ]


def proposal_prediction(queries: Queries) -> LayerPrediction:
    """The encoder's own class logits and boxes of every token."""
    return LayerPrediction(logits=queries.proposal_logits, boxes=queries.proposal_boxes.sigmoid())


def query_losses(
    *,
    head: DetrHead,
    mask_head: MaskHead,
    criterion: Criterion,
    queries: Queries,
    features: FeaturePyramid,
    targets: Sequence[Target],
    mask_stride: int = 4,
) -> dict[str, Tensor]:
    """Weighted losses by name of decoded queries; masks are made of matched queries only.

    Args:
        queries: from ``head`` on the fused levels of ``features``.
        features: for the un-fused stride-4 map and the image sizes.
        targets: B, with masks of the padded size.
        mask_stride: 4, or 1 to compare masks at the padded input size.
    """
    assert features.high_res is not None
    shared = mask_head.features(queries.memory, features.high_res)

    def decode(layer: int, image: int, index: Tensor) -> Tensor:
        height, width = features.image_sizes[image]
        one = slice(image, image + 1)
        # Masks are drawn around the box that the layer started from.
        points = queries.references[layer][one, index, :2] * shared.new_tensor((width, height))
        hidden = queries.hidden[layer][one, index]
        return mask_head(shared[one], hidden, points, mask_stride=mask_stride)[0]

    return criterion(
        layer_predictions(head, queries),
        proposal_prediction(queries),
        targets,
        decode,
        mask_stride=mask_stride,
    )
