"""The made world: exact masks, true sentences, and the same files for the same seed."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path

import numpy as np
import pytest

from unified.data.formats.files import segmentation_mask
from unified.data.synthetic.releases import RELEASES
from unified.data.synthetic.sentences import (
    ATTRIBUTES,
    NUMBERS,
    absent_sentences,
    captions,
    describe_clip,
    group_sentences,
    sentences,
)
from unified.data.synthetic.world import COLOURS, KINDS, TEXTURES, make_scene
from unified.data.synthetic.writing import mask_polygons


def test_things_are_drawn_in_their_colour_and_at_least_half_visible() -> None:
    for seed in range(20):
        scene = make_scene(np.random.default_rng(seed))
        image, labels = scene.draw()
        assert image.shape == (*labels.shape, 3)
        assert image.dtype == labels.dtype == np.uint8
        assert set(np.unique(labels)) == set(range(len(scene.things) + 1))
        for label, thing in enumerate(scene.things, start=1):
            colours = image[labels == label].astype(int)
            distance = abs(colours - np.array(thing.rgb)).sum(axis=1)
            assert np.quantile(distance, 0.25) < 60  # texture and edges take the rest


def test_clip_moves_things_the_way_it_says() -> None:
    for seed in range(20):
        scene = make_scene(np.random.default_rng(seed), num_frames=8)
        for thing in scene.things:
            x, y = thing.velocity
            along = {"left": -x, "right": x, "up": -y, "down": y}
            assert thing.motion == "still" or along[thing.motion] > 0.4


def test_sentences_are_true_of_exactly_their_things() -> None:
    """Judged by the words in the text alone, for still pictures without places."""
    vocabulary = {**dict.fromkeys(COLOURS, "colour"), **dict.fromkeys(TEXTURES, "texture")}
    vocabulary |= {**dict.fromkeys(KINDS, "kind"), "small": "size", "large": "size"}
    names = ("size", "colour", "texture", "kind")
    counts = {"one": 0, "group": 0, "none": 0}
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng)
        single = sentences(scene, rng, attributes=names)
        told = [said for found in single.values() for said in found]
        groups = group_sentences(scene, rng, attributes=names, count=2)
        absent = absent_sentences(scene, rng, attributes=names, count=2)
        for said in (*told, *groups, *absent):
            words = [word if word in vocabulary else word[:-1] for word in said.text.split()]
            words = [word if word in vocabulary else word[:-1] for word in words]
            wanted = {vocabulary[word]: word for word in words if word in vocabulary}
            labels = tuple(
                label
                for label, thing in enumerate(scene.things, start=1)
                if all(getattr(thing, name) == word for name, word in wanted.items())
            )
            assert labels == said.labels, said.text
        counts["one"] += len(told)
        counts["group"] += len(groups)
        counts["none"] += len(absent)
    assert counts["one"] > 200 and counts["group"] > 10 and counts["none"] > 30


def test_captions_name_things_that_are_there() -> None:
    texts = set()
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng)
        words = [{t.kind, t.colour, t.texture, t.size} for t in scene.things]
        for text in captions(scene, rng, 5):
            listed = re.sub("^(a picture of|there is) | on a grey ground$", "", text)
            total = 0
            for phrase in re.split(", | and ", listed):
                number, *said, kind = phrase.split()
                count = 1 + NUMBERS.index("a" if number == "an" else number)
                kind = kind if count == 1 else re.sub("(?<=s)es$|s$", "", kind)
                assert sum({*said, kind} <= own for own in words) >= count, text
                total += count
            assert total <= len(words), text
            texts.add(text)
    assert len(texts) > 140


def test_place_words_hold_in_the_picture() -> None:
    for seed in range(20):
        scene = make_scene(np.random.default_rng(seed))
        _, labels = scene.draw()
        for label, words in describe_clip(scene).items():
            column = np.nonzero(labels == label)[1].mean() / labels.shape[1]
            assert ("left" in words["place"]) == (column < 0.38)
            assert ("right" in words["place"]) == (column > 0.62)


def test_most_things_can_be_referred_to() -> None:
    referred = total = 0
    for seed in range(30):
        rng = np.random.default_rng(seed)
        scene = make_scene(rng, num_frames=6)
        referred += len(sentences(scene, rng, attributes=ATTRIBUTES))
        total += len(scene.things)
    assert referred / total > 0.9


def test_polygons_give_back_exact_pixels() -> None:
    rng = np.random.default_rng(0)
    for _ in range(5):
        _, labels = make_scene(rng).draw()
        for label in np.unique(labels[labels > 0]):
            mask = labels == label
            decoded = segmentation_mask(mask_polygons(mask), *mask.shape)
            np.testing.assert_array_equal(decoded, mask)


def _digests(root: Path) -> dict[str, str]:
    return {
        str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.mark.parametrize("name", ["refcoco", "coco_captions", "ytbvos18"])
def test_same_seed_same_files(name: str, tmp_path: Path) -> None:
    RELEASES[name](tmp_path / "a", 2, 7)
    RELEASES[name](tmp_path / "b", 2, 7)
    RELEASES[name](tmp_path / "c", 2, 8)
    first, again, other = (_digests(tmp_path / key) for key in "abc")
    assert first == again
    images = [path for path in first if path.endswith(".jpg")]
    assert images and all(first[path] != other.get(path) for path in images)
