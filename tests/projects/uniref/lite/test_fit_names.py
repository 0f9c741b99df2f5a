"""The training of the name head, on made pictures and a tiny model."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.uniref.lite.fit_names import (
    MAX_WORDINGS,
    Objects,
    describe_all,
    describe_objects,
    fit,
    named_records,
    named_right,
    wordings,
)
from projects.uniref.lite.model import NamedUniRef
from projects.uniref.lite.name_head import NameHead
from tests.projects.uniref.lite.tiny import make_named
from unified.data.augmentation import Augmentation
from unified.data.formats.records import ImageRecord
from unified.data.synthetic.releases import RELEASES
from unified.errors import ConfigError, InputError

NAMES = ("dog", "cat", "tree", "chair")
SIZE = Augmentation(short_sides=(64,), max_size=96, flip=0.0, crop=0.0)


@pytest.fixture
def model() -> NamedUniRef:
    return make_named(len(NAMES))


def clusters(head: NameHead, count: int) -> Objects:
    """Features of four kinds that are easily told apart."""
    generator = torch.Generator().manual_seed(0)
    dim = head.norm.num_features
    middles = torch.randn(len(NAMES), dim, generator=generator)
    rows = torch.arange(count) % len(NAMES)
    noise = 0.3 * torch.randn(count, dim, generator=generator)
    return Objects(middles[rows] + noise, tuple(NAMES[row] for row in rows))


def state(model: NamedUniRef) -> dict[str, Tensor]:
    return {key: value.clone() for key, value in model.state_dict().items()}


def record(name: str, *sentences: str) -> ImageRecord:
    entry = {"category_name": name, "category_id": 0}
    return {"annotations": [entry], "expressions": list(sentences)}  # type: ignore[list-item]


def test_names_are_learnt_and_nothing_else_changes(model: NamedUniRef) -> None:
    objects = clusters(model.name_head, 600)
    before = state(model)
    loss = fit(model, objects, {name: [name, f"the red {name}"] for name in NAMES}, seed=0)
    assert loss < np.log(len(NAMES)) - 0.3, "less than a guess"
    share, count = named_right(model, objects, NAMES)
    assert count == 600
    assert share > 0.9
    changed = {key for key, value in state(model).items() if not torch.equal(value, before[key])}
    assert changed == {
        *("name_head.centre", "name_head.names"),
        *(f"name_head.norm.running_{what}" for what in ("mean", "var")),
        *(f"name_head.embed.{layer}.{what}" for layer in (1, 4) for what in ("weight", "bias")),
    }
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.name_head.parameters())


def test_training_is_repeatable(model: NamedUniRef) -> None:
    objects = clusters(model.name_head, 100)
    phrases = {name: [name, f"a {name}"] for name in NAMES}
    first = fit(model, objects, phrases, seed=1), state(model)
    second = fit(model, objects, phrases, seed=1), state(model)
    assert first[0] == second[0]
    assert all(torch.equal(first[1][key], second[1][key]) for key in first[1])


def test_one_object_gives_no_nan(model: NamedUniRef) -> None:
    fit(
        model, Objects(clusters(model.name_head, 1).features, NAMES[:1]), {n: [n] for n in NAMES}, 0
    )
    assert all(torch.isfinite(value.float()).all() for value in model.state_dict().values())


def test_named_right_counts_only_known_names(model: NamedUniRef) -> None:
    objects = clusters(model.name_head, 8)
    assert named_right(model, objects, [*NAMES[:2], "x", "y"])[1] == 4
    with pytest.raises(InputError, match="none of 8 objects"):
        named_right(model, objects, ["w", "x", "y", "z"])


def test_wordings_are_opening_phrases_of_things_with_one_name(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    both = record("dog", "two animals")
    both["annotations"] = [*both["annotations"], *record("cat")["annotations"]]
    many = [record("cat", *(f"cat number{i}" for i in range(2 * MAX_WORDINGS)))]
    records = [
        record("dog", "The red dog on the left!", "the dog", "the dog"),
        both,
        record("sun", "it"),
    ]
    monkeypatch.setattr(
        "projects.uniref.lite.fit_names.load_records", lambda name: {"a": records, "b": many}[name]
    )
    found = wordings([[record("dog"), record("cat")]], ["a", "b"], expected=2)
    assert list(found) == ["cat", "dog"]
    assert found["dog"] == ["dog", "the red dog", "the dog"]
    assert len(found["cat"]) == MAX_WORDINGS + 1
    with pytest.raises(ConfigError, match="set it to 2"):
        wordings([[record("dog"), record("cat")]], [], expected=3)


def test_objects_come_from_each_set_with_their_names(
    model: NamedUniRef, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    RELEASES["coco"](tmp_path, 4, 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    train, val = named_records(["coco_2017_train", "coco_2017_val"])
    drawn = describe_objects(model, [train, val], SIZE, 6, seed=0)
    assert len(drawn.features) == len(drawn.names) > 0
    every = describe_all(model, val, SIZE)
    assert list(every.names) == [e["category_name"] for r in val for e in r["annotations"]]
    rows = (every.features[:, None] == drawn.features[None]).all(dim=-1).any(dim=1)
    assert rows.any(), "three of six pictures are from the second set, seen as they are"
    empty: list[ImageRecord] = [{**record, "annotations": []} for record in val]
    with pytest.raises(InputError, match="no picture shows an object"):
        describe_objects(model, [empty], SIZE, 2, seed=0)


def test_sets_without_names_or_sentences_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for release in ("coco", "fss1000", "davis17"):
        RELEASES[release](tmp_path, 2, 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    with pytest.raises(InputError, match="fss-1000-train have no names"):
        named_records(["fss-1000-train"])
    with pytest.raises(InputError, match="davis17-val holds clips"):
        named_records(["davis17-val"])
    named = named_records(["coco_2017_train"])
    names = {e["category_name"] for r in named[0] for e in r["annotations"]}
    with pytest.raises(InputError, match="coco_2017_train has no sentences"):
        wordings(named, ["coco_2017_train"], expected=len(names))
