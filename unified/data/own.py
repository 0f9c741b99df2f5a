"""Own data: a dataset described by a few lines of yaml instead of a row in the table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import yaml

from unified.data.formats import clips, coco, few_shot, referring_clips
from unified.data.formats.expressions import read_expressions
from unified.data.formats.records import ImageRecord
from unified.data.table import Dataset, Merge
from unified.errors import ConfigError
from unified.files import read_text
from unified.tasks import TASKS, Task

# task -> keys that say where its files are, all required; a task of one's own adds a row
FILES: dict[Task, tuple[str, ...]] = {
    Task.DETECTION: ("images", "annotations"),
    Task.RIS: ("images", "annotations"),
    Task.CAPTION: ("images", "annotations"),
    Task.FSS: ("images",),
    Task.VOS: ("images", "masks"),
    Task.RVOS: ("images", "masks", "expressions"),
}
OPTIONAL = {Task.RIS: {"expressions"}}  # sentences in a file of their own
# task -> evaluator type and protocols; one that is not here is learnt from only
EVALUATORS: dict[Task, tuple[str, tuple[str, ...]]] = {
    Task.DETECTION: ("coco", ("coco-mask", "coco-box")),
    Task.RIS: ("ris", ("uniref", "uniref-box")),
    Task.FSS: ("fss", ("hsnet", "fss-per-image")),
    Task.VOS: ("vos", ("vos-benchmark",)),
    Task.RVOS: ("rvos", ("ref-youtube-vos",)),
}


def read_own_dataset(path: Path) -> Dataset:
    """The row that a yaml file describes; its name is the name of the file.

    Keys: ``task``; ``split``, train or test; the files of ``FILES``, and of ``OPTIONAL`` if wanted,
    relative to the yaml file.

    Raises:
        ConfigError: a key is missing, unknown or has another kind of value.
    """
    content = _read_yaml(path)
    tasks = list(FILES)
    if content.get("task") not in tasks:
        raise ConfigError(f"{path}: task is {content.get('task')!r}: expected one of {tasks}")
    task = Task(content["task"])
    wanted = {"task", "split", *FILES[task]}
    optional = OPTIONAL.get(task, set())
    for key in sorted((wanted ^ set(content)) - optional):
        state = "is missing" if key in wanted else "is not known"
        raise ConfigError(f"{path}: {key!r} {state}: a set for {task} has {sorted(wanted)}")
    if content["split"] not in ("train", "test"):
        raise ConfigError(f"{path}: split is {content['split']!r}: expected train or test")
    if content["split"] == "test" and task not in EVALUATORS:
        raise ConfigError(f"{path}: split is 'test', but a set for {task} cannot be scored")
    named = (*FILES[task], *sorted(optional & set(content)))
    files = {key: path.parent / content[key] for key in named}
    evaluator, protocols = EVALUATORS.get(task, ("", ()))
    spec = TASKS[task]
    merge: Merge = "none"
    if spec.is_clip:
        merge = "each" if "text" in spec.references else "soft"
    return Dataset(
        name=path.stem,
        task=task,
        split=content["split"],
        release="own",
        files=tuple(str(file.absolute()) for file in files.values()),
        read=partial(_read, task=task, split=content["split"], **files),
        evaluator=evaluator,
        protocols=protocols,
        score_threshold=None if spec.references else 0.0,
        merge=merge,
        memory=spec.is_clip,
    )


def _read_yaml(path: Path) -> Mapping[str, Any]:
    try:
        content = yaml.safe_load(read_text(path))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid yaml: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path} has no keys: expected task, split and where the files are")
    return content


def _read_sentences(
    images: Path, annotations: Path, expressions: Path | None = None
) -> list[ImageRecord]:
    """Objects that are described; their sentences stand with them, or in a file of their own."""
    if expressions is None:
        return coco.read_described_objects(annotations, [images, images.parent])
    return read_expressions(expressions, annotations, images)


def _read(root: Path, task: Task, split: str, images: Path, **files: Path) -> Sequence[Any]:
    """Records of own data; ``root`` is not used because paths are relative to the yaml file."""
    spec = TASKS[task]
    if not spec.references:
        return coco.read_instances(files["annotations"], [images, images.parent])
    if not spec.has_masks:
        return coco.read_captions(files["annotations"], [images, images.parent])
    if spec.references == ("text",):
        records = _read_sentences(images, **files)
        return records if split == "train" else coco.one_record_per_sentence(records)
    if not spec.is_clip:
        return few_shot.read_class_folders(images)
    if "text" not in spec.references:
        found = clips.read_clip_folders(images, files["masks"])
        return found if split == "train" else [clips.with_first_frames(clip) for clip in found]
    videos = referring_clips.read_meta_expressions(files["expressions"])
    return [
        record
        for name, video in sorted(videos.items())
        for record in referring_clips.read_clip_expressions(
            images / name, files["masks"] / name, video
        )
    ]
