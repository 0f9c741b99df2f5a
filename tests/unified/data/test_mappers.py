"""Every training set gives samples of its task; every test set gives what an evaluator needs."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unified.data.augmentation import Augmentation, View
from unified.data.catalog import CATALOG, load_records
from unified.data.formats.records import annotation_mask, frame_masks
from unified.data.mappers import TestMapper, TrainMapper
from unified.data.samples import Sample
from unified.errors import InputError
from unified.inference.image_io import read_image
from unified.tasks import TASKS, Task

AUGMENTATION = Augmentation(
    short_sides=(48, 64), max_size=96, crop_range=(30, 60), pre_crop_sides=(70, 90), colour=0.1
)
PLAIN = Augmentation(short_sides=(96,), max_size=400, flip=0, crop=0)
TRAINING = [name for name, row in CATALOG.items() if row.split == "train"]
TESTING = [name for name, row in CATALOG.items() if row.split == "test"]


def _sample(mapper: TrainMapper, record: dict, seed: int, batch: int = 0) -> Sample:
    return mapper(record, np.random.default_rng(seed), np.random.default_rng(batch))


@pytest.mark.parametrize("name", TRAINING)
def test_training_sample_has_the_keys_of_its_task(name: str, data_root: Path) -> None:
    records, row = load_records(name), CATALOG[name]
    mapper = TrainMapper(augmentation=AUGMENTATION)
    kinds = set()
    for seed in range(8):
        sample = _sample(mapper, records[seed % len(records)], seed, batch=seed)
        height, width = sample["image"].shape[1:]
        assert sample["image"].dtype == torch.uint8 and max(height, width) <= 96
        assert (sample["task"], sample["dataset"]) == (row.task, name)
        instances = sample["instances"]
        assert instances.image_size == (height, width)
        assert instances.gt_masks.tensor.shape == (len(instances), height, width)
        assert instances.gt_masks.tensor.flatten(1).any(dim=1).all()
        assert row.task is Task.DETECTION or (instances.gt_classes == 0).all()
        if row.task is not Task.DETECTION and not name.startswith("grefcoco"):
            assert len(instances) == TASKS[row.task].has_masks
        present = {"text"} if "expression" in sample else set()
        if "reference_masks" in sample:
            present.add("mask")
            for image, mask in zip(
                sample["reference_images"], sample["reference_masks"], strict=True
            ):
                assert image.shape[1:] == mask.shape and mask.dtype == torch.bool and mask.any()
        assert present <= set(TASKS[row.task].references)
        kinds.add(frozenset(present))
    still = name.startswith("video-")
    if row.task is Task.RVOS and not still:
        assert kinds == {frozenset({"text"}), frozenset({"text", "mask"})}
    elif row.task is Task.RVOS:
        assert kinds == {frozenset({"text"})}
    else:
        assert kinds == {frozenset(TASKS[row.task].references)}


@pytest.mark.parametrize("name", TESTING)
def test_test_sample_has_what_is_judged(name: str, data_root: Path) -> None:
    record, task = load_records(name)[-1], CATALOG[name].task
    if task in (Task.VOS, Task.RVOS):
        assert task is Task.RVOS or record["first_frames"]
        return
    (sample,) = TestMapper()([record])
    assert sample["image"].shape == (record["height"], record["width"], 3)
    if task is Task.DETECTION:
        return
    assert sample["target"].shape == (record["height"], record["width"])
    if task is Task.FSS:
        assert len(sample["supports"]) == 1
        assert sample["void"].shape == sample["target"].shape
        assert not (sample["void"] & sample["target"]).any()
    else:
        assert sample["expression"] == record["expressions"][0]


def test_flip_swaps_whole_words_only(data_root: Path) -> None:
    record = dict(load_records("refcoco-unc-train")[0])
    record["expressions"] = ["the bright star on the left"]
    always = Augmentation(short_sides=(96,), max_size=400, flip=1.0, crop=0)
    flipped = _sample(TrainMapper(augmentation=always), record, 0)
    plain = _sample(TrainMapper(augmentation=PLAIN), record, 0)
    assert flipped["expression"] == "the bright star on the right"
    assert plain["expression"] == "the bright star on the left"
    assert torch.equal(flipped["image"].flip(2), plain["image"])
    masks = [sample["instances"].gt_masks.tensor for sample in (flipped, plain)]
    assert torch.equal(masks[0].flip(2), masks[1])


def test_ordinal_sentence_is_not_cropped(data_root: Path) -> None:
    record = dict(load_records("refcoco-unc-train")[0])
    always = Augmentation(short_sides=(96,), max_size=400, flip=0, crop=1.0, crop_range=(30, 50))
    shape = torch.Size(_sample(TrainMapper(augmentation=PLAIN), record, 0)["image"].shape)
    record["expressions"] = ["the second star"]
    kept = [_sample(TrainMapper(augmentation=always), record, s)["image"].shape for s in range(8)]
    assert set(kept) == {shape}
    record["expressions"] = ["the red star"]
    cropped = [_sample(TrainMapper(augmentation=always), record, s)["image"] for s in range(8)]
    assert any(not torch.equal(cropped[0], other) for other in cropped[1:])


def test_clip_frames_are_near_in_order_and_show_the_same_object(data_root: Path) -> None:
    """Frames are recognised by their pixels: nothing is changed but the size."""
    record = load_records("ytbvos18-train")[0]
    height, width = record["height"], record["width"]
    same = Augmentation(short_sides=(min(height, width),), max_size=400, flip=0, crop=0)
    frames = [read_image(path).transpose(2, 0, 1) for path in record["file_names"]]
    distances = set()
    for seed in range(20):
        sample = _sample(TrainMapper(augmentation=same, frame_range=2), record, seed)
        places = []
        for image, mask in (
            (sample["reference_images"][0], sample["reference_masks"][0]),
            (sample["image"], sample["instances"].gt_masks.tensor[0]),
        ):
            place = next(i for i, f in enumerate(frames) if np.array_equal(f, image.numpy()))
            masks = frame_masks(record, place).items()
            places.append((place, [n for n, m in masks if np.array_equal(m, mask.numpy())]))
        (first, reference_ids), (second, target_ids) = places
        assert reference_ids == target_ids and len(target_ids) == 1
        distances.add(second - first)
    assert distances <= {0, 1, 2} and {1, 2} & distances


def test_batch_agrees_on_its_references(data_root: Path) -> None:
    records = load_records("refytvos-train")
    mapper = TrainMapper(augmentation=AUGMENTATION)
    kinds = []
    for batch in range(30):
        present = {
            "reference_masks" in _sample(mapper, records[i % len(records)], i, batch)
            for i in range(3)
        }
        assert len(present) == 1
        kinds.append(present.pop())
    assert 0.3 < np.mean(kinds) < 0.9  # the mask stays with probability 0.6


def test_a_batch_may_share_one_size(data_root: Path) -> None:
    records = load_records("refcoco-unc-train")
    sides = (64, 96, 128)
    for per_batch, most in ((True, 1), (False, 3)):
        augmentation = Augmentation(short_sides=sides, max_size=400, crop=0, per_batch=per_batch)
        mapper = TrainMapper(augmentation=augmentation)
        batches = [
            {
                min(_sample(mapper, records[i % len(records)], i, batch)["image"].shape[1:])
                for i in range(12)
            }
            for batch in range(8)
        ]
        assert max(len(batch) for batch in batches) == most
        assert set.union(*batches) == set(sides)


def test_k_supports(data_root: Path) -> None:
    record = load_records("fss-1000-train")[0]
    mapper = TrainMapper(augmentation=AUGMENTATION, num_supports=[5])
    assert len(_sample(mapper, record, 0)["reference_images"]) == 5
    test = TestMapper(num_supports=5)
    (sample,) = test(load_records("fss-1000-val")[:1])
    assert len(sample["supports"]) == 5
    for support in sample["supports"]:
        assert support.mask.any() and support.mask.shape == support.image.shape[:2]
    varied = TrainMapper(augmentation=AUGMENTATION, num_supports=[1, 3])
    batches = [
        {len(_sample(varied, record, i, b)["reference_masks"]) for i in range(3)} for b in range(8)
    ]
    assert all(len(numbers) == 1 for numbers in batches)
    assert set.union(*batches) == {1, 3}
    few = {**load_records("fss-1000-val")[0], "supports": []}
    with pytest.raises(InputError, match="0 supports: 5 expected"):
        test([few])


def test_supports_are_cropped_in_training_too(data_root: Path) -> None:
    record = load_records("fss-1000-train")[0]
    shares = []
    for margins in ((math.inf,), (0.1,), (0.1, math.inf)):
        mapper = TrainMapper(augmentation=PLAIN, num_supports=[5], support_margins=margins)
        samples = [_sample(mapper, record, seed) for seed in range(4)]
        masks = [mask for sample in samples for mask in sample["reference_masks"]]
        shares.append(np.array([float(mask.float().mean()) for mask in masks]))
    whole, cropped, mixed = shares
    assert (cropped > 1.5 * whole).all()
    from_whole = mixed == whole
    assert (from_whole | (mixed == cropped)).all() and 0 < from_whole.sum() < len(mixed)


def test_detection_keeps_classes_and_boxes(data_root: Path) -> None:
    record = load_records("objects365_v2_train")[0]
    sample = _sample(TrainMapper(augmentation=PLAIN), record, 0)
    expected = [annotation["category_id"] for annotation in record["annotations"]]
    assert sample["instances"].gt_classes.tolist() == expected
    named = [annotation["category_name"] for annotation in record["annotations"]]
    assert sample["class_names"] == tuple(named) and all(named)
    scale = sample["image"].shape[1] / record["height"]
    x, y, w, h = record["annotations"][0]["bbox"]
    box = sample["instances"].gt_boxes.tensor[0]
    assert torch.allclose(box, torch.tensor([x, y, x + w, y + h]) * scale, atol=1.0)
    mask = sample["instances"].gt_masks.tensor[0]
    left, top, right, bottom = (int(value) for value in box)
    assert mask[top : bottom + 1, left : right + 1].all()
    assert mask.sum() == mask[top : bottom + 1, left : right + 1].sum()


@pytest.mark.parametrize("name", ["grefcoco-unc-train", "mevis-train"])
def test_no_crop_removes_one_of_several_referents(name: str, data_root: Path) -> None:
    """The crop is told of each object by itself, not only of all of them as one."""
    small_crops = Augmentation(
        short_sides=(96,), max_size=160, flip=0.0, crop=1.0, crop_range=(40, 90)
    )
    seen: list[tuple[int, ...]] = []

    class Watch(Augmentation):
        def apply(self, view: View, *args: Any, **options: Any) -> View:
            seen.append(tuple(options["keep"].sum(axis=(1, 2))))
            return super().apply(view, *args, **options)

    mapper = TrainMapper(augmentation=Watch(**vars(small_crops)))
    for record in load_records(name):
        if len(record.get("target_ids", record.get("annotations", ()))) > 1:
            for seed in range(3):
                sample = _sample(mapper, record, seed)
                assert len(sample["instances"]) == 1
    assert any(len(sizes) > 1 for sizes in seen) and all(min(sizes) > 0 for sizes in seen)


def test_several_and_no_targets_become_one_mask_or_none(data_root: Path) -> None:
    mapper = TrainMapper(augmentation=PLAIN)
    records = load_records("grefcoco-unc-train")
    assert {0, 1} < {len(record["annotations"]) for record in records}, "none, one and several"
    for record in records:
        sample = _sample(mapper, record, 0)
        assert len(sample["instances"]) == min(len(record["annotations"]), 1)
        if len(record["annotations"]) > 1:
            size = record["height"], record["width"]
            union = np.any([annotation_mask(a, *size) for a in record["annotations"]], axis=0)
            share = sample["instances"].gt_masks.tensor.float().mean().item()
            assert abs(share - union.mean()) < 0.01


def test_broken_files_are_named(data_root: Path, tmp_path: Path) -> None:
    record = dict(load_records("refcoco-unc-train")[0])
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(Path(record["file_name"]).read_bytes()[:500])
    mapper = TrainMapper(augmentation=AUGMENTATION)
    with pytest.raises(InputError, match=r"broken\.jpg cannot be read"):
        _sample(mapper, {**record, "file_name": str(broken)}, 0)
    with pytest.raises(InputError, match="as the annotations say"):
        _sample(mapper, {**record, "height": 7}, 0)
