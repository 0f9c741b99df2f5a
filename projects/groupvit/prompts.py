"""Nouns of captions and sentences around class names."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Mapping, Sequence

from unified.dependencies import require
from unified.errors import ConfigError

# What CLIP was prompted with for ImageNet; source: CLIP repository (MIT), notebook of prompts.
FULL = (
    "a bad photo of a {}.",
    "a photo of many {}.",
    "a sculpture of a {}.",
    "a photo of the hard to see {}.",
    "a low resolution photo of the {}.",
    "a rendering of a {}.",
    "graffiti of a {}.",
    "a bad photo of the {}.",
    "a cropped photo of the {}.",
    "a tattoo of a {}.",
    "the embroidered {}.",
    "a photo of a hard to see {}.",
    "a bright photo of a {}.",
    "a photo of a clean {}.",
    "a photo of a dirty {}.",
    "a dark photo of the {}.",
    "a drawing of a {}.",
    "a photo of my {}.",
    "the plastic {}.",
    "a photo of the cool {}.",
    "a close-up photo of a {}.",
    "a black and white photo of the {}.",
    "a painting of the {}.",
    "a painting of a {}.",
    "a pixelated photo of the {}.",
    "a sculpture of the {}.",
    "a bright photo of the {}.",
    "a cropped photo of a {}.",
    "a plastic {}.",
    "a photo of the dirty {}.",
    "a jpeg corrupted photo of a {}.",
    "a blurry photo of the {}.",
    "a photo of the {}.",
    "a good photo of the {}.",
    "a rendering of the {}.",
    "a {} in a video game.",
    "a photo of one {}.",
    "a doodle of a {}.",
    "a close-up photo of the {}.",
    "a photo of a {}.",
    "the origami {}.",
    "the {} in a video game.",
    "a sketch of a {}.",
    "a doodle of the {}.",
    "a origami {}.",
    "a low resolution photo of a {}.",
    "the toy {}.",
    "a rendition of the {}.",
    "a photo of the clean {}.",
    "a photo of a large {}.",
    "a rendition of a {}.",
    "a photo of a nice {}.",
    "a photo of a weird {}.",
    "a blurry photo of a {}.",
    "a cartoon {}.",
    "art of a {}.",
    "a sketch of the {}.",
    "a embroidered {}.",
    "a pixelated photo of a {}.",
    "itap of the {}.",
    "a jpeg corrupted photo of the {}.",
    "a good photo of a {}.",
    "a plushie {}.",
    "a photo of the nice {}.",
    "a photo of the small {}.",
    "a photo of the weird {}.",
    "the cartoon {}.",
    "art of the {}.",
    "a drawing of the {}.",
    "a photo of the large {}.",
    "a black and white photo of a {}.",
    "the plushie {}.",
    "a dark photo of a {}.",
    "itap of a {}.",
    "graffiti of the {}.",
    "a toy {}.",
    "itap of my {}.",
    "a photo of a cool {}.",
    "a photo of a small {}.",
    "a tattoo of the {}.",
)
TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "simple": ("a photo of a {}.",),
    "plain": ("a {}", "the {}"),
    "subset": (
        "itap of a {}.",
        "a bad photo of a {}.",
        "a origami {}.",
        "a photo of the large {}.",
        "a {} in a video game.",
        "art of the {}.",
        "a photo of the small {}.",
    ),
    "full": FULL,
}

# Words of a caption -> those that count as nouns, in order.
Tagger = Callable[[Sequence[str]], list[str]]

_CLOSED_CLASS = frozenset(
    "a an the this that these those some any each every no one two three four five six seven eight "
    "nine ten first second third fourth fifth last other another more most less many few several "
    "all both half such own same and or but nor so yet if as than then when while where who whom "
    "whose which what why how i you he she it we they me him her us them my your his its our their "
    "mine yours hers ours theirs myself himself herself itself themselves in on at of to by for "
    "from with without into onto over under above below behind beside besides between among near "
    "next before after against along across around through during inside outside off out up down "
    "upon about like is are was were be been being am do does did done has have had having can "
    "could will would shall should may might must not very too also just only even still there "
    "picture photo photograph image view "
    "here now left right top bottom middle center front back upper lower far farthest closest "
    "nearest leftmost rightmost big small large little tiny tall short long wide high low old "
    "young new".split()
)
_COLOURS = frozenset(
    "red green blue yellow orange purple pink brown black white gray grey dark light bright".split()
)


def content_words(words: Sequence[str]) -> list[str]:
    """All words but function words, numbers, places and sizes."""
    return [word for word in words if word not in _CLOSED_CLASS and not word.isdigit()]


def open_class_words(words: Sequence[str]) -> list[str]:
    """``content_words`` without colours: nouns, where there is no tagger."""
    return [word for word in content_words(words) if word not in _COLOURS]


def nltk_nouns(words: Sequence[str]) -> list[str]:
    """Nouns and, as in the official code, verbs, by nltk's tagger, which brings its own data."""
    nltk = require("nltk")
    try:
        tagged = nltk.pos_tag(list(words))
    except LookupError as error:
        raise ConfigError(
            "nltk is installed without the data of its tagger: run `python -m nltk.downloader "
            "averaged_perceptron_tagger_eng`, or set MODEL.GROUPVIT.TAGGER open_class"
        ) from error
    return [word for word, tag in tagged if tag in ("NN", "NNS", "NNP") or tag[:2] == "VB"]


TAGGERS: Mapping[str, Tagger] = {
    "nltk": nltk_nouns,
    "open_class": open_class_words,
    "content": content_words,
}


def noun_prompts(
    caption: str,
    num: int,
    *,
    tagger: Tagger = open_class_words,
    templates: Sequence[str] = FULL,
    rng: random.Random | None = None,
) -> list[str]:
    """``num`` prompts of different nouns of a caption, each in a random sentence.

    A caption with fewer nouns stands in for those that are missing. Without ``rng`` the choice
    follows from Python's own generator, which training seeds for every step.

    Source: GroupViT (arXiv:2202.11094), section 3.2; the sentences are those of its code.
    """
    rng = rng or random.Random(random.getrandbits(64))
    words = re.findall(r"[^\W_]+(?:'[^\W_]+)?", caption.lower())
    nouns = list(dict.fromkeys(tagger(words)))
    chosen = rng.sample(nouns, min(num, len(nouns)))
    prompts = [rng.choice(templates).format(noun) for noun in chosen]
    return prompts + [caption] * (num - len(prompts))
