"""What a protocol card says about how a model was asked."""

from __future__ import annotations

from types import SimpleNamespace

from unified.evaluation.report import Origin, Problems, Scores, Split, make_card
from unified.inference.settings import ImageSettings, ModelInput, VideoSettings, asked_as


def card(settings: ModelInput, **carried: object) -> str:
    origin = Origin(inference=asked_as(SimpleNamespace(**carried), settings))
    scores = Scores({}, rows=(), problems=Problems(allowed=False), sample="object")
    return make_card(
        scores, benchmark="a set", protocol="ours", rule="all", split=Split(), origin=origin
    ).line()


def test_how_often_memory_is_renewed_is_on_the_card_where_it_is_not_on_every_frame() -> None:
    assert "memory every 3 frames |" in card(VideoSettings(memory_interval=3))
    assert "memory" not in card(VideoSettings())
    assert "memory" not in card(ImageSettings())
    without = card(VideoSettings(memory_interval=3, use_memory=False))
    assert "no memory |" in without and "every" not in without


def test_who_chose_is_on_the_card() -> None:
    assert ", chooser another-model |" in card(
        ImageSettings(), chooser=object(), chooser_name="another-model"
    )
    assert "chooser" not in card(ImageSettings())
    assert "chooser" not in card(ImageSettings(), chooser=None, chooser_name="another-model")
