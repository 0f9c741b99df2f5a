"""How a configuration says that its model is asked."""

from __future__ import annotations

from detectron2.config import CfgNode

from unified.inference.settings import ImageSettings, InferenceSettings, VideoSettings


def settings_of(cfg: CfgNode) -> InferenceSettings:
    """The ``INFERENCE`` node as what predictors take.

    Raises:
        ConfigError: the precision is unknown, or the margin of supports is negative or no number.
    """
    node = cfg.INFERENCE
    shared = {
        "max_size": node.MAX_SIZE,
        "precision": node.PRECISION,
        "compile": node.COMPILE,
        "support_margin": node.SUPPORT_MARGIN,
    }
    return InferenceSettings(
        image=ImageSettings(
            short_side=node.IMAGE_SHORT_SIDE,
            score_threshold=node.IMAGE_SCORE_THRESHOLD,
            mirror=node.MIRROR,
            **shared,
        ),
        video=VideoSettings(
            short_side=node.VIDEO_SHORT_SIDE,
            score_threshold=node.SCORE_THRESHOLD,
            memory_score=node.MEMORY_SCORE,
            memory_interval=node.MEMORY_INTERVAL,
            objects_per_pass=node.OBJECTS_PER_PASS,
            **shared,
        ),
    )
