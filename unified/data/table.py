"""The table of datasets: one row per name, with its files, its reader and how it is judged."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, Literal

from unified.data.formats import clips, coco, few_shot, referring_clips
from unified.tasks import Task

Reader = Callable[[Path], Sequence[Any]]  # root of all datasets -> records
Split = Literal["train", "test"]
Merge = Literal["soft", "each", "none"]


@dataclass(frozen=True)
class Dataset:
    """One row of the table.

    Attributes:
        name: as in configs, logs and result tables.
        task: of its samples.
        split: "train" or "test"; a test set has one record per prediction to make.
        release: the published release it is part of; what ``tools/data.py make`` writes.
        files: annotation files and folders below the root, of which at least one exists where the
            release is installed.
        read: records from the root of all datasets.
        evaluator: Detectron2's ``evaluator_type``.
        protocols: how its numbers are computed, names known to ``unified.evaluation``.
        score_threshold: an object with a lower score is absent; None is that of the model.
        merge: "soft" when objects of a clip compete for pixels, "each" when every prediction is
            judged alone, "none" for images.
        memory: whether predictions of earlier frames of a clip are references for later ones.
        mask_size: masks are judged at this many pixels a side, None for the size of each image.
        note: what else its card says of the protocol.
    """

    name: str
    task: Task
    split: Split
    release: str
    files: tuple[str, ...]
    read: Reader
    evaluator: str = ""
    protocols: tuple[str, ...] = ()
    score_threshold: float | None = 0.0
    merge: Merge = "none"
    memory: bool = False
    mask_size: int | None = None
    note: str = ""


def _sentences(read: Reader, split: Split) -> Reader:
    """A RIS reader that gives one record per sentence in a test set."""
    if split == "train":
        return read
    return lambda root: coco.one_record_per_sentence(read(root))


def _detection() -> Iterable[Dataset]:
    for split in ("train", "val"):
        use: Split = "train" if split == "train" else "test"
        row = Dataset(
            name=f"coco_2017_{split}",
            task=Task.DETECTION,
            split=use,
            release="coco",
            files=(f"coco/annotations/instances_{split}2017.json",),
            read=partial(_read_coco, split=split),
            evaluator="coco",
            protocols=("coco-mask", "coco-box"),
        )
        yield row
        yield replace(
            row,
            name=f"objects365_v2_{split}",
            release="objects365",
            files=(f"Objects365V2/annotations/zhiyuan_objv2_{split}_new.json",),
            read=partial(_read_objects365, split=split),
            protocols=("coco-box",),
        )
        if split == "train":
            yield replace(
                row, name=f"video-coco_2017_{split}", task=Task.VOS, evaluator="", protocols=()
            )


def _read_coco(root: Path, split: str) -> Sequence[Any]:
    path = root / f"coco/annotations/instances_{split}2017.json"
    return coco.read_instances(path, [root / f"coco/{split}2017"])


def _captions() -> Iterable[Dataset]:
    for split in ("train", "val"):
        yield Dataset(
            name=f"coco-captions-{split}",
            task=Task.CAPTION,
            split="train",  # captions are not scored
            release="coco_captions",
            files=(f"coco/annotations/captions_{split}2017.json",),
            read=partial(_read_captions, split=split),
        )


def _read_captions(root: Path, split: str) -> Sequence[Any]:
    path = root / f"coco/annotations/captions_{split}2017.json"
    return coco.read_captions(path, [root / f"coco/{split}2017"])


def _read_objects365(root: Path, split: str) -> Sequence[Any]:
    folder = root / "Objects365V2"
    path = folder / f"annotations/zhiyuan_objv2_{split}_new.json"
    return coco.read_instances(path, [folder, folder / "images"])


# name of our rows -> folder of the REFER release, splitBy, splits
REFER_ROWS = {
    "refcoco-unc": ("refcoco", "unc", ("train", "val", "testA", "testB")),
    "refcoco-google": ("refcoco", "google", ("train", "val", "test")),
    "refcocoplus-unc": ("refcoco+", "unc", ("train", "val", "testA", "testB")),
    "refcocog-umd": ("refcocog", "umd", ("train", "val", "test")),
    "refcocog-google": ("refcocog", "google", ("train", "val")),
    "refclef-unc": ("refclef", "unc", ("train", "val", "testA", "testB")),
    "refclef-berkeley": ("refclef", "berkeley", ("train", "val", "test")),
    "grefcoco-unc": ("grefcoco", "unc", ("train", "val", "testA", "testB")),
}
MIXED = {"refcoco": "unc", "refcoco+": "unc", "refcocog": "umd"}
_HELD_OUT = ("val", "test", "testA", "testB")


def _referring() -> Iterable[Dataset]:
    for name, (folder, split_by, splits) in REFER_ROWS.items():
        generalized = folder == "grefcoco"
        for split in splits:
            use: Split = "train" if split == "train" else "test"
            json_file = f"coco2014/annotations/{name}/instances_{split}.json"
            pickle_file = f"refer/{folder}/{'grefs' if generalized else 'refs'}({split_by})"
            pickle_file += ".json" if generalized else ".p"
            yield Dataset(
                name=f"{name}-{split}",
                task=Task.RIS,
                split=use,
                release=folder.replace("+", "plus"),
                files=(json_file, pickle_file),
                read=_sentences(partial(_read_refer, name=name, split=split), use),
                evaluator="gris" if generalized else "ris",
                # no grefcoco-box, which wants all boxes of a sentence: models give the best one
                protocols=("grefcoco",) if generalized else ("uniref", "uniref-box"),
            )
    mixed = Dataset(
        name="refcoco-mixed",
        task=Task.RIS,
        split="train",
        release="refcoco_mixed",
        files=(
            "coco2014/annotations/refcoco-mixed/instances_train.json",
            "refer/refcoco+/refs(unc).p",
        ),
        read=_read_mixed,
    )
    yield mixed
    yield replace(mixed, name="video-refcoco-mixed", task=Task.RVOS)


def _read_refer(root: Path, name: str, split: str) -> Sequence[Any]:
    path = root / f"coco2014/annotations/{name}/instances_{split}.json"
    if path.exists():
        return coco.read_instances(path, [root / "coco2014/train2014"])
    return read_refer_folder(root, name, split)


def read_refer_folder(root: Path, name: str, split: str) -> Sequence[Any]:
    """The records of a row of ``REFER_ROWS`` from its REFER files, one per reference."""
    folder, split_by, _ = REFER_ROWS[name]
    images = "refer/images/saiapr_tc-12" if folder == "refclef" else "coco2014/train2014"
    return coco.read_referred(root / "refer" / folder, split_by, split, root / images)


def _read_mixed(root: Path) -> Sequence[Any]:
    path = root / "coco2014/annotations/refcoco-mixed/instances_train.json"
    if path.exists():
        return coco.read_instances(path, [root / "coco2014/train2014"])
    return read_mixed_folders(root)


def read_mixed_folders(root: Path) -> Sequence[Any]:
    """The records of refcoco-mixed from the REFER files."""
    folders = {root / "refer" / folder: split_by for folder, split_by in MIXED.items()}
    return coco.read_mixed(folders, root / "coco2014/train2014", held_out=_HELD_OUT)


# How hsnet tests folds; the lists of its own runs are met with one support.
HSNET_SIZE = 400
NUM_SEEDS = 5  # published means are over 1,000 episodes, or over five draws of them


def _few_shot() -> Iterable[Dataset]:
    for split in ("train", "val", "test"):
        use: Split = "train" if split == "train" else "test"
        row = Dataset(
            name=f"fss-1000-{split}",
            task=Task.FSS,
            split=use,
            release="fss1000",
            files=("fss-1000/images",),
            read=partial(_read_fss1000, split=split),
            evaluator="fss",
            protocols=("hsnet", "fss-per-image"),
        )
        yield row
        folds = few_shot.NUM_FOLDS if split != "test" else 0
        seeds = range(1 if use == "train" else NUM_SEEDS)
        for fold, seed in product(range(folds), seeds):
            yield from _folds(row, split, fold, seed)


def _folds(row: Dataset, split: str, fold: int, seed: int) -> Iterable[Dataset]:
    """One fold of PASCAL-5i and of COCO-20i; test folds are drawn by a seed."""
    if split != "train":
        note = (
            f"{few_shot.NUM_EPISODES} episodes drawn by seed {seed}, supports from the whole class"
        )
        row = replace(row, mask_size=HSNET_SIZE, note=note)
    suffix = f"{split}-{fold}" + f"-seed{seed}" * bool(seed)
    read = partial(_read_fold, split=split, fold=fold, seed=seed)
    yield replace(
        row,
        name=f"pascal-5i-{suffix}",
        release="pascal5i",
        files=("VOC2012/SegmentationClassAug",),
        read=partial(read, reader=few_shot.read_pascal5i),
        protocols=("hsnet",),
    )
    yield replace(
        row,
        name=f"coco-20i-{suffix}",
        release="coco20i",
        files=("coco2014/splits",),
        read=partial(read, reader=few_shot.read_coco20i),
        protocols=("hsnet",),
    )


def _read_fss1000(root: Path, split: str) -> Sequence[Any]:
    return few_shot.read_fss1000(root / "fss-1000", split)


def _read_fold(
    root: Path,
    reader: Callable[[Path, str, int], Sequence[Any]],
    split: str,
    fold: int,
    seed: int,
) -> Sequence[Any]:
    pascal = reader is few_shot.read_pascal5i
    records = reader(root / ("VOC2012" if pascal else "coco2014"), split, fold)
    if split == "train":
        return records
    draw = few_shot.pascal_episodes if pascal else few_shot.coco_episodes
    return draw(records, seed)


def _vos_row(
    name: str,
    release: str,
    folder: str,
    split: str,
    reader: Callable[..., Sequence[Any]],
    **more: Any,
) -> Dataset:
    """A row of the VOS table whose reader takes the folder and the split of the release."""
    return Dataset(
        name=name,
        task=Task.VOS,
        split="train" if split == "train" else "test",
        release=release,
        files=(f"{folder}/{split}",) if "files" not in more else more.pop("files"),
        read=lambda root: reader(root / folder, split),
        evaluator="vos",
        merge="soft",
        memory=True,
        **more,
    )


def _video_objects() -> Iterable[Dataset]:
    youtube = {"protocols": ("youtube-vos",), "score_threshold": 0.4}
    mose = {"protocols": ("vos-benchmark",), "score_threshold": 0.4}
    for kind, split in (("train", "train"), ("val", "valid")):
        for year in (18, 19):
            name = f"ytbvos{year}"
            yield _vos_row(f"{name}-{kind}", name, name, split, clips.read_ytbvos, **youtube)
        for suffix, folder in (("", "mose"), ("v2", "mose_v2")):
            yield _vos_row(f"mose{suffix}-{kind}", folder, folder, split, clips.read_mose, **mose)
        for suffix, folder in (("", "lvos"), ("v2", "lvos_v2")):
            yield _vos_row(
                f"vos-lvos{suffix}-{kind}",
                folder,
                folder,
                split,
                clips.read_lvos,
                files=(f"{folder}/{split}", f"{folder}/{kind}"),
                protocols=("lvos",),
                score_threshold=0.5,
            )
        for year, folder in ((16, "DAVIS2016"), (17, "DAVIS")):
            yield _davis_row(f"davis{year}-{kind}", year, folder, kind)
    yield _davis_row("davis17-test-dev", 17, "DAVIS", "test-dev")
    yield Dataset(
        name="ovis-train",
        task=Task.VOS,
        split="train",
        release="ovis",
        files=("ovis/annotations/train.json", "ovis/annotations_train.json"),
        read=_read_ovis,
    )


def _davis_row(name: str, year: int, folder: str, split: str) -> Dataset:
    return _vos_row(
        name,
        f"davis{year}",
        folder,
        split,
        partial(_read_davis, year=2000 + year),
        files=tuple(f"{folder}/ImageSets/{part}/{split}.txt" for part in (2000 + year, "480p")),
        protocols=("davis17-semi",),
        score_threshold=0.3,
    )


def _read_davis(folder: Path, split: str, year: int) -> Sequence[Any]:
    return clips.read_davis(folder, year, split)


def _read_ovis(root: Path) -> Sequence[Any]:
    path = root / "ovis/annotations/train.json"
    path = path if path.exists() else root / "ovis/annotations_train.json"
    return clips.read_youtube_vis(path, root / "ovis/train")


def _referring_clips() -> Iterable[Dataset]:
    for kind, split in (("train", "train"), ("val", "valid"), ("val_u", "valid_u")):
        use: Split = "train" if split == "train" else "test"
        row = Dataset(
            name=f"mevis-{kind}",
            task=Task.RVOS,
            split=use,
            release="mevis",
            files=(f"mevis/{split}/meta_expressions.json",),
            read=partial(_read_clips, reader=referring_clips.read_mevis, split=split),
            evaluator="rvos",
            protocols=("mevis",),
            score_threshold=0.3,
            merge="each",
            memory=True,
        )
        yield row
        if split != "valid_u":
            yield replace(
                row,
                name=f"refytvos-{kind}",
                release="refytvos",
                files=(f"ref-youtube-vos/meta_expressions/{split}/meta_expressions.json",),
                read=partial(_read_clips, reader=referring_clips.read_refytvos, split=split),
                protocols=("ref-youtube-vos",),
            )
    for number in range(len(referring_clips.REF_DAVIS_SETS)):
        yield Dataset(
            name=f"refdavis-val-{number}",
            task=Task.RVOS,
            split="test",
            release="refdavis",
            files=("ref-davis/davis_text_annotations",),
            read=partial(_read_refdavis, number=number),
            evaluator="rvos",
            protocols=("ref-davis17",),
            merge="soft",
        )


def _read_clips(
    root: Path, reader: Callable[[Path, str], Sequence[Any]], split: str
) -> Sequence[Any]:
    folder = "mevis" if reader is referring_clips.read_mevis else "ref-youtube-vos"
    return reader(root / folder, split)


def _read_refdavis(root: Path, number: int) -> Sequence[Any]:
    return referring_clips.read_refdavis(root / "ref-davis", root / "DAVIS", number)


ROWS: tuple[Dataset, ...] = (
    *_detection(),
    *_captions(),
    *_referring(),
    *_few_shot(),
    *_video_objects(),
    *_referring_clips(),
)
