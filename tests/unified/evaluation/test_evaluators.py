"""Evaluators on sets in the released formats: scored from memory and scored from disk, alike."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.structures import Boxes, Instances

from unified.data.catalog import CATALOG, load_records, register_datasets
from unified.data.formats.records import frame_masks, target_mask
from unified.data.mappers import TestMapper
from unified.data.synthetic.releases import RELEASES
from unified.errors import ConfigError
from unified.evaluation.evaluators import EVALUATORS, best_instance, build_evaluator
from unified.evaluation.protocols import PROTOCOLS, evaluate
from unified.evaluation.reading import read_split
from unified.evaluation.records import coco_truth
from unified.evaluation.report import Origin, Request, Split
from unified.mask_files import read_ids
from unified.structures import FrameResult

NAMES = (
    "refcoco-unc-val",
    "grefcoco-unc-val",
    "coco_2017_val",
    "fss-1000-test",
    "davis17-val",
    "vos-lvos-val",
    "ytbvos18-val",
    "refytvos-val",
    "mevis-val_u",
    "refdavis-val-0",
)


@pytest.fixture(scope="module")
def made_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("datasets")
    for release in dict.fromkeys(CATALOG[name].release for name in NAMES):
        RELEASES[release](root, 2, 0)
    return root


@pytest.fixture(autouse=True)
def data_root(made_root: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setitem(os.environ, "DETECTRON2_DATASETS", str(made_root))
    register_datasets()
    yield made_root


def spoil(mask: np.ndarray, seed: int) -> np.ndarray:
    """A prediction that is neither right nor far off."""
    shift = np.random.default_rng(seed).integers(-4, 5, size=2)
    return np.roll(mask, tuple(shift), axis=(0, 1))


def predict_images(name: str, folder: Path, mapper: TestMapper) -> dict[str, dict[str, float]]:
    evaluator = build_evaluator(name, folder)
    evaluator.reset()
    for seed, record in enumerate(load_records(name)):
        (sample,) = mapper([record])
        mask = spoil(np.asarray(sample["target"]), seed)
        found = Instances(mask.shape)
        rows, columns = np.nonzero(mask if mask.any() else np.ones((1, 1)))
        box = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found.pred_boxes = Boxes(torch.tensor([[0, 0, 1, 1], box], dtype=torch.float32))
        found.scores = torch.tensor([0.1, 0.9])
        found.pred_masks = torch.from_numpy(np.stack([np.zeros_like(mask), mask]))
        found.pred_classes = torch.zeros(2, dtype=torch.int64)
        evaluator.process([sample], [{"instances": found}])
    return evaluator.evaluate()


@pytest.mark.parametrize(
    ("name", "folder_protocols"),
    [
        ("refcoco-unc-val", ["uniref"]),
        ("grefcoco-unc-val", ["grefcoco"]),
        ("fss-1000-test", ["hsnet", "fss-per-image"]),
    ],
)
def test_images_agree_with_the_written_folders(
    name: str, folder_protocols: list[str], tmp_path: Path
) -> None:
    numbers = predict_images(name, tmp_path, TestMapper())
    folder = tmp_path / name
    assert set(numbers) == set(CATALOG[name].protocols)
    for protocol in folder_protocols:
        split = Split()
        if protocol == "hsnet":
            classes = dict.fromkeys(str(r["class_id"]) for r in load_records(name))
            split = Split(tuple(classes), name)
        request = Request(folder / "ground_truth", folder / "predictions", split)
        assert dict(evaluate(protocol, request).scores.numbers) == numbers[protocol]
        assert (folder / protocol / "summary.json").is_file()
    values = [v for found in numbers.values() for v in found.values()]
    assert any(0 < value < 100 for value in values)


def test_masks_of_folds_are_judged_at_the_published_size(data_root: Path, tmp_path: Path) -> None:
    name = "pascal-5i-val-0"
    RELEASES["pascal5i"](data_root, 2, 0)
    evaluator = build_evaluator(name, tmp_path)
    evaluator.reset()
    (height, width), half = (60, 90), np.zeros((60, 90), bool)
    half[:, :45] = True
    found = Instances((height, width))
    found.pred_boxes, found.scores = Boxes(torch.tensor([[0.0, 0, 45, 60]])), torch.ones(1)
    found.pred_masks = torch.from_numpy(half)[None]
    target = half.copy()
    target[30:] = False
    class_id = load_records(name)[0]["class_id"]
    sample = {"target": target, "void": np.zeros_like(half), "class_id": class_id, "supports": (1,)}
    evaluator.process([sample], [{"instances": found}])
    (written,) = (tmp_path / name / "predictions").rglob("*.png")
    assert read_ids(written).shape == (400, 400)
    assert (read_ids(written) > 0).sum() == 400 * 200
    (episode, _, _), *_ = evaluator.samples
    assert episode.intersection[1] == 200 * 200 and episode.union[1] == 400 * 200
    notes = evaluator.score("hsnet").notes
    for words in ("1-shot", "400 x 400", "1000 episodes drawn by seed 0"):
        assert any(words in note for note in notes), words


def test_sentences_are_written_for_looking_at_the_worst_cases(tmp_path: Path) -> None:
    name = "refcoco-unc-val"
    predict_images(name, tmp_path, TestMapper())
    folder = tmp_path / name
    rows = evaluate("uniref", Request(folder / "ground_truth", folder / "predictions")).scores.rows
    said = {r["expressions"][0] for r in load_records(name)}
    assert {row.sentence for row in rows} == said


def test_boxes_are_those_of_the_annotations(tmp_path: Path) -> None:
    numbers = predict_images("refcoco-unc-val", tmp_path, TestMapper())
    assert 0 < numbers["uniref-box"]["mIoU"] < 100


def result(label_map: np.ndarray) -> FrameResult:
    return FrameResult(label_map, scores={}, boxes={}, areas={}, masks={1: label_map > 0})


def clip_frames(record: Mapping[str, Any], seed: int) -> Iterator[FrameResult]:
    """Spoiled masks; frames without ground truth repeat the last one that has it."""
    label_map = np.zeros((record["height"], record["width"]), np.uint8)
    for t in range(len(record["frame_names"])):
        has_truth = "tracks" in record or record["mask_files"][t] is not None
        if has_truth and "expression_id" in record:
            label_map = spoil(target_mask(record, t), seed + t).astype(np.uint8)
        elif has_truth:
            label_map = np.zeros_like(label_map)
            for number, mask in frame_masks(record, t).items():
                label_map[spoil(mask, seed + number)] = number
        yield result(label_map)


def predict_clips(name: str, folder: Path) -> dict[str, dict[str, float]]:
    evaluator = build_evaluator(name, folder)
    evaluator.reset()
    for seed, record in enumerate(load_records(name)):
        evaluator.process([record], clip_frames(record, seed))
    return evaluator.evaluate()


def davis(root: Path) -> dict[str, Any]:
    split = read_split(root / "DAVIS/ImageSets/2017/val.txt", None)
    return {"truth": root / "DAVIS/Annotations/480p", "split": split}


def lvos(root: Path) -> dict[str, Any]:
    meta = next(path for path in (root / "lvos").rglob("*_meta.json") if "train" not in path.name)
    inside = next(p for p in (root / "lvos/valid", root / "lvos/val") if p.is_dir())
    return {"truth": inside, "meta": meta, "unseen": root / "lvos/unseen_videos.txt"}


def refytvos(root: Path) -> dict[str, Any]:
    folder = root / "ref-youtube-vos"
    expressions = folder / "meta_expressions"
    split = read_split(
        expressions / "valid/meta_expressions.json", expressions / "test/meta_expressions.json"
    )
    return {"truth": folder / "valid", "split": split}


def mevis(root: Path) -> dict[str, Any]:
    return {"truth": root / "mevis/valid_u"}


@pytest.mark.parametrize(
    ("name", "release"),
    [
        ("davis17-val", davis),
        ("vos-lvos-val", lvos),
        ("refytvos-val", refytvos),
        ("mevis-val_u", mevis),
    ],
)
def test_clips_agree_with_the_release_and_the_written_folders(
    name: str, release: Callable[[Path], dict[str, Any]], data_root: Path, tmp_path: Path
) -> None:
    numbers = predict_clips(name, tmp_path)
    (protocol,) = CATALOG[name].protocols
    request = Request(prediction=tmp_path / name / "predictions", **release(data_root))
    report = evaluate(protocol, request)
    assert dict(report.scores.numbers) == numbers[protocol]
    assert 0 < next(iter(numbers[protocol].values())) < 100


def test_sentences_of_one_clip_share_its_label_maps(data_root: Path, tmp_path: Path) -> None:
    name = "refdavis-val-0"
    evaluator = build_evaluator(name, tmp_path)
    evaluator.reset()
    clips = {record["clip_id"]: record for record in load_records(name)}
    for seed, record in enumerate(clips.values()):
        without_sentence = {k: v for k, v in record.items() if k != "expression_id"}
        evaluator.process([record], clip_frames(without_sentence, seed))
    numbers = evaluator.evaluate()["ref-davis17"]
    split = read_split(data_root / "DAVIS/ImageSets/2017/val.txt", None)
    request = Request(
        data_root / "DAVIS/Annotations_unsupervised/480p", tmp_path / name / "predictions", split
    )
    assert dict(evaluate("ref-davis17", request).scores.numbers) == numbers
    assert 0 < numbers["J&F-Mean"] < 100


def test_sets_without_ground_truth_only_write_masks(tmp_path: Path) -> None:
    assert predict_clips("ytbvos18-val", tmp_path) == {}
    record = load_records("ytbvos18-val")[0]
    written = sorted((tmp_path / "ytbvos18-val/predictions" / record["clip_id"]).iterdir())
    assert [path.stem for path in written] == record["frame_names"]


def test_detection_finds_everything_it_is_given(tmp_path: Path) -> None:
    name = "tiny_detection_of_this_test"
    records = load_records("coco_2017_val")
    DatasetCatalog.register(name, lambda: records)
    metadata = MetadataCatalog.get(name)
    metadata.set(evaluator_type="coco", protocols=("coco-mask", "coco-box"))
    evaluator = build_evaluator(name, tmp_path)
    evaluator.reset()
    mapper = TestMapper()
    truth = coco_truth(records, None)
    for record in records:
        mine = [a for a in record["annotations"] if not a.get("iscrowd")]
        found = Instances((record["height"], record["width"]))
        boxes = torch.tensor([a["bbox"] for a in mine], dtype=torch.float64).reshape(-1, 4)
        boxes[:, 2:] += boxes[:, :2]
        found.pred_boxes = Boxes(boxes)
        found.scores = torch.ones(len(mine))
        found.pred_classes = torch.tensor([a["category_id"] for a in mine], dtype=torch.int64)
        evaluator.process(mapper([record]), [{"instances": found}])
    assert len(truth["annotations"]) == sum(len(r["annotations"]) for r in records)
    assert evaluator.score("coco-box").numbers["AP"] == pytest.approx(100)
    without_classes = build_evaluator(name, tmp_path, Origin(class_agnostic=True))
    without_classes.samples = [{**s, "category_id": 0} for s in evaluator.samples]
    merged = without_classes.score("coco-box")
    assert merged.numbers["AP"] == pytest.approx(100)
    assert any("merged" in note for note in merged.notes)
    DatasetCatalog.remove(name)
    MetadataCatalog.remove(name)


def test_no_instance_is_an_empty_mask() -> None:
    empty = Instances((4, 5))
    empty.pred_boxes = Boxes(torch.zeros(0, 4))
    empty.scores = torch.zeros(0)
    empty.pred_masks = torch.zeros(0, 4, 5, dtype=torch.bool)
    mask, score, box = best_instance(empty, (4, 5))
    assert (mask.shape, mask.any(), score, sum(box)) == ((4, 5), False, 0.0, 0.0)


def test_every_test_set_of_the_catalog_can_be_scored() -> None:
    for row in CATALOG.values():
        if row.split == "test":
            assert row.evaluator in EVALUATORS
            assert row.protocols
            assert set(row.protocols) <= set(PROTOCOLS)
            # it counts every box of a sentence, and models answer with one
            assert "grefcoco-box" not in row.protocols
    with pytest.raises(ConfigError, match="cannot be evaluated"):
        build_evaluator("ovis-train", ".")
