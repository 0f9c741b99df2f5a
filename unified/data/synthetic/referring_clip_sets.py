"""Writers of referring clip sets: Ref-YouTube-VOS, Ref-DAVIS17 and MeViS."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from unified.data.formats.files import write_json
from unified.data.synthetic.clip_sets import (
    Clip,
    davis_ids,
    make_clips,
    write_davis17,
    youtube_objects,
)
from unified.data.synthetic.sentences import Sentence, group_sentences, sentences
from unified.data.synthetic.writing import save_lines, split_size
from unified.label_maps import encode_mask, write_mask

LOOKS = ("size", "colour", "texture", "kind")
LOOKS_AND_MOTION = (*LOOKS, "motion")
NUM_REF_DAVIS_SETS = 4  # two annotators, each from the first frame and from the full video


def write_refytvos(root: Path, size: int, seed: int) -> None:
    """Ref-YouTube-VOS; of its validation clips, those in the test file are hidden and unscored."""
    release = root / "ref-youtube-vos"
    for split in ("train", "valid"):
        videos: dict[str, Any] = {}
        objects: dict[str, Any] = {}
        test: dict[str, Any] = {}
        for clip in make_clips(seed, f"refytvos/{split}", split_size(split, size), step=5):
            clip.save_images(release / split / "JPEGImages")
            phrases = _sentences(clip, LOOKS_AND_MOTION, per_thing=2, from_start=True)
            expressions = {
                str(number): {
                    "exp": sentence.text,
                    **({"obj_id": str(sentence.labels[0])} if split == "train" else {}),
                }
                for number, sentence in enumerate(phrases)
            }
            entry = {"expressions": expressions, "frames": list(clip.frame_names)}
            videos[clip.name], objects[clip.name] = entry, {"objects": youtube_objects(clip)}
            if split == "train":
                clip.save_label_maps(release / "train/Annotations")
            elif len(videos) == 1:
                test[clip.name] = entry
            else:
                _save_expression_masks(clip, phrases, release / "valid/Annotations")
        _save_expressions(release, split, videos)
        if split == "train":
            write_json(release / "train/meta.json", {"videos": objects})
        else:
            _save_expressions(release, "test", test)


def _sentences(
    clip: Clip, attributes: tuple[str, ...], per_thing: int, *, from_start: bool = False
) -> list[Sentence]:
    """Sentences about the things that are ever visible, or visible in the first frame."""
    found = sentences(clip.scene, clip.rng, attributes=attributes, per_thing=per_thing)
    visible = set(np.unique(clip.label_maps[0]).tolist()) if from_start else clip.frames_of()
    return [
        sentence for label, phrases in found.items() if label in visible for sentence in phrases
    ]


def _save_expressions(release: Path, split: str, videos: dict[str, Any]) -> None:
    write_json(release / f"meta_expressions/{split}/meta_expressions.json", {"videos": videos})


def _save_expression_masks(clip: Clip, phrases: list[Sentence], folder: Path) -> None:
    """``folder/<clip>/<expression>/<frame>.png``: the layout of submissions, 0 and 255."""
    for number, sentence in enumerate(phrases):
        for name, labels in zip(clip.frame_names, clip.label_maps, strict=True):
            write_mask(
                folder / clip.name / str(number) / f"{name}.png", labels == sentence.labels[0]
            )


def write_refdavis(root: Path, size: int, seed: int) -> None:
    """Ref-DAVIS17: DAVIS 2017 and its four text files, one sentence per object in each."""
    write_davis17(root, size, seed)
    lines: list[list[str]] = [[] for _ in range(NUM_REF_DAVIS_SETS)]
    for split in ("train", "val"):
        for clip in make_clips(seed, f"davis17/{split}", split_size(split, size)):
            for label, number in davis_ids(clip).items():
                for index, sentence in enumerate(_four_sentences(clip, label)):
                    lines[index].append(f'{clip.name} {number} "{sentence}"')
    folder = root / "ref-davis/davis_text_annotations"
    names = ("annot1", "annot1_full_video", "annot2", "annot2_full_video")
    for name, content in zip(names, lines, strict=True):
        save_lines(folder / f"Davis17_{name}.txt", content)


def _four_sentences(clip: Clip, label: int) -> list[str]:
    """First-frame sentences speak of looks, full-video ones of motion too; repeated if too few."""
    result = []
    for index in range(NUM_REF_DAVIS_SETS):
        attributes = LOOKS if index % 2 == 0 else LOOKS_AND_MOTION
        phrases = sentences(clip.scene, clip.rng, attributes=attributes, per_thing=2)
        thing = clip.scene.things[label - 1]
        fallback = Sentence(
            f"the {thing.size} {thing.colour} {thing.texture} {thing.kind}", (label,)
        )
        result.append(phrases.get(label, [fallback])[0].text)
    return result


def write_mevis(root: Path, size: int, seed: int) -> None:
    """MeViS: sentences about motion, for one or several objects; ``valid`` has no masks."""
    for split in ("train", "valid_u", "valid"):
        folder = root / "mevis" / split
        videos: dict[str, Any] = {}
        masks: dict[str, list[Any]] = {}
        clips = make_clips(seed, f"mevis/{split}", split_size(split, size))
        for video_id, clip in enumerate(clips):
            clip.save_images(folder / "JPEGImages")
            anno_ids = {}
            for label in clip.frames_of():
                anno_ids[label] = len(masks)
                maps = [labels == label for labels in clip.label_maps]
                masks[str(len(masks))] = [encode_mask(m) if m.any() else None for m in maps]
            attributes = ("colour", "kind", "motion")
            phrases = _sentences(clip, attributes, per_thing=2)
            phrases += group_sentences(clip.scene, clip.rng, attributes=attributes, count=2)
            videos[clip.name] = {
                "expressions": _mevis_expressions(phrases, anno_ids, with_ids=split != "valid"),
                "vid_id": video_id,
                "frames": list(clip.frame_names),
            }
        write_json(folder / "meta_expressions.json", {"videos": videos})
        if split != "valid":
            write_json(folder / "mask_dict.json", masks)


def _mevis_expressions(
    phrases: list[Sentence], anno_ids: dict[int, int], *, with_ids: bool
) -> dict[str, dict[str, Any]]:
    result: dict[str, dict[str, Any]] = {}
    order = list(anno_ids)
    for sentence in phrases:
        labels = [label for label in sentence.labels if label in anno_ids]
        ids = {
            "obj_id": [order.index(label) for label in labels],
            "anno_id": [anno_ids[label] for label in labels],
        }
        result[str(len(result))] = {"exp": sentence.text, **(ids if with_ids else {})}
    return result
