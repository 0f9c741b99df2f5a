"""The stream: right shares, one task per batch, the same for every split of the work, resumable."""

from __future__ import annotations

import itertools
import json
import logging
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unified.data.augmentation import Augmentation
from unified.data.catalog import load_records
from unified.data.loader import Source, TrainLoader, build_test_loader, train_records
from unified.data.mappers import TestMapper, TrainMapper
from unified.data.samples import Sample, sample_name
from unified.errors import ConfigError, InputError

AUGMENTATION = Augmentation(short_sides=(32, 40), max_size=60, crop_range=(30, 60))
NAMES = ("refcoco-unc-train", "fss-1000-train", "ytbvos18-train")

# Two workers on a machine, or in a container, with one core.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def _sources(**changes: object) -> list[Source]:
    mapper = TrainMapper(augmentation=AUGMENTATION)
    ratios = (1.0, 0.5, 0.5)
    return [
        Source(name, load_records(name), mapper, ratio=ratio, batch_size=4, **changes)  # type: ignore[arg-type]
        for name, ratio in zip(NAMES, ratios, strict=True)
    ]


def _take(loader: TrainLoader, count: int) -> list[list[Sample]]:
    return list(itertools.islice(loader, count))


def _same(a: list[list[Sample]], b: list[list[Sample]]) -> bool:
    pairs = [
        (x, y) for batch, other in zip(a, b, strict=True) for x, y in zip(batch, other, strict=True)
    ]
    return all(
        x["name"] == y["name"]
        and torch.equal(x["image"], y["image"])
        and torch.equal(x["instances"].gt_masks.tensor, y["instances"].gt_masks.tensor)
        for x, y in pairs
    )


def test_batches_are_of_one_dataset_and_one_aspect(data_root: Path) -> None:
    for batch in _take(TrainLoader(_sources(), seed=0), 12):
        assert len(batch) == 4
        assert len({sample["dataset"] for sample in batch}) == 1
        assert len({sample["width"] > sample["height"] for sample in batch}) == 1
        assert len({"reference_masks" in sample for sample in batch}) == 1


def test_ratios_and_rounds(data_root: Path) -> None:
    plan = TrainLoader(_sources(), seed=3).plan
    batches = [plan.next_batch()[0] for _ in range(600)]
    counts = Counter(keys[0].source for keys in batches)
    for source, share in enumerate((0.5, 0.25, 0.25)):
        assert abs(counts[source] / 600 - share) < 0.06
    # Within a group every record comes once before any comes again.
    drawn: dict[tuple[int, int], list[int]] = {}
    for key in itertools.chain.from_iterable(batches):
        drawn.setdefault((key.source, key.group), []).append(key.position)
    for (source, group), positions in drawn.items():
        size = len(plan.groups[source][group])
        assert sorted(positions[:size]) == list(range(size))


def test_processes_may_have_datasets_of_their_own(data_root: Path) -> None:
    """As in the reference, where one optimiser step mixes tasks."""
    ranks = [
        TrainLoader(_sources(), seed=3, rank=rank, world_size=2, one_dataset_per="process")
        for rank in range(2)
    ]
    steps = [list(pair) for pair in zip(*(_take(loader, 12) for loader in ranks), strict=True)]
    for step in steps:
        for batch in step:
            assert len(batch) == 2
            assert len({sample["dataset"] for sample in batch}) == 1
            assert len({sample["width"] > sample["height"] for sample in batch}) == 1
    datasets = [tuple(batch[0]["dataset"] for batch in step) for step in steps]
    assert any(first != second for first, second in datasets)
    assert any(first == second for first, second in datasets)
    names = [[sample["name"] for batch in step for sample in batch] for step in steps]
    assert any(len(set(step)) == 4 for step in names), "shares do not repeat each other"


def test_a_stream_of_processes_resumes_and_is_that_of_a_step_where_there_is_one(
    data_root: Path,
) -> None:
    options: dict[str, Any] = {"seed": 5, "one_dataset_per": "process"}
    assert _same(
        _take(TrainLoader(_sources(), seed=5), 4), _take(TrainLoader(_sources(), **options), 4)
    )
    options |= {"rank": 1, "world_size": 2}
    loader = TrainLoader(_sources(), **options)
    stream = iter(loader)
    for _ in range(3):
        next(stream)
    resumed = TrainLoader(_sources(), **options)
    resumed.load_state_dict(loader.state_dict())
    assert _same(_take(resumed, 4), list(itertools.islice(stream, 4)))


def test_one_dataset_per_what(data_root: Path) -> None:
    with pytest.raises(ConfigError, match="ONE_DATASET_PER is 'gpu': choose 'step' or 'process'"):
        TrainLoader(_sources(), seed=0, one_dataset_per="gpu")


def test_workers_do_not_change_the_stream(data_root: Path) -> None:
    alone = _take(TrainLoader(_sources(), seed=1), 6)
    helped = _take(TrainLoader(_sources(), seed=1, num_workers=2), 6)
    assert _same(alone, helped)
    assert not _same(alone, _take(TrainLoader(_sources(), seed=2), 6))


def test_ranks_share_the_global_batch(data_root: Path) -> None:
    whole = _take(TrainLoader(_sources(), seed=1), 5)
    parts = [_take(TrainLoader(_sources(), seed=1, rank=r, world_size=2), 5) for r in (0, 1)]
    joined = [left + right for left, right in zip(*parts, strict=True)]
    assert _same(whole, joined)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_resume_is_exact(num_workers: int, data_root: Path) -> None:
    """Also with workers, which have prepared more batches than were handed out."""
    whole = _take(TrainLoader(_sources(), seed=1, num_workers=num_workers), 9)
    first = TrainLoader(_sources(), seed=1, num_workers=num_workers)
    _take(first, 4)
    state = json.loads(json.dumps(first.state_dict()))
    second = TrainLoader(_sources(), seed=1, num_workers=num_workers)
    second.load_state_dict(state)
    assert _same(whole[4:], _take(second, 5))


def test_state_of_other_data_is_refused(data_root: Path) -> None:
    state = TrainLoader(_sources(), seed=1).state_dict()
    with pytest.raises(ConfigError, match="has seed 1, this one 2"):
        TrainLoader(_sources(), seed=2).load_state_dict(state)
    with pytest.raises(ConfigError, match="sizes"):
        TrainLoader(_sources()[:2], seed=1).load_state_dict(state)


def test_state_of_other_shares_is_refused(data_root: Path) -> None:
    options: dict[str, Any] = {"seed": 1, "world_size": 2}
    shared = TrainLoader(_sources(), **options)
    apart = TrainLoader(_sources(), **options, one_dataset_per="process")
    with pytest.raises(ConfigError, match=r"shares 2, this one 1.*ONE_DATASET_PER"):
        shared.load_state_dict(apart.state_dict())
    old = shared.state_dict()
    del old["shares"]
    shared.load_state_dict(old)
    with pytest.raises(ConfigError, match="shares 1, this one 2"):
        apart.load_state_dict(old)


def test_global_random_state_is_left_alone(data_root: Path) -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    _take(TrainLoader(_sources(), seed=1, num_workers=1), 2)
    assert torch.equal(before[0], torch.get_rng_state())
    np.testing.assert_array_equal(before[1], np.random.get_state()[1])


def _with_broken(count: int, tmp_path: Path) -> list[Source]:
    broken = tmp_path / "broken.jpg"
    broken.write_bytes(b"not a picture")
    source = _sources()[0]
    records = [
        {**record, "file_name": str(broken), "expression_id": index} if index < count else record
        for index, record in enumerate(source.records)
    ]
    return [Source(source.name, records, source.mapper, batch_size=4)]


@pytest.mark.parametrize("num_workers", [0, 1])
def test_broken_samples_are_reported_and_replaced(
    num_workers: int, data_root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sources = _with_broken(2, tmp_path)
    rounds = 2 * len(sources[0].records) // 4 + 2
    with caplog.at_level(logging.WARNING):
        batches = _take(TrainLoader(sources, seed=0, num_workers=num_workers), rounds)
    assert all(len(batch) == 4 for batch in batches)
    assert not any("broken.jpg" in sample["name"] for batch in batches for sample in batch)
    messages = [record.getMessage() for record in caplog.records]
    assert len(messages) == 2  # each once, although each came several times
    assert all("refcoco-unc-train" in m and "broken.jpg" in m for m in messages)


def test_too_many_broken_samples_end_the_run(data_root: Path, tmp_path: Path) -> None:
    few = TrainLoader(_with_broken(4, tmp_path), seed=0, max_broken=2)
    with pytest.raises(InputError, match=r"[34] samples could not.*broken\.jpg"):
        _take(few, 50)
    everything = _with_broken(10_000, tmp_path)
    with pytest.raises(InputError, match="fewer than 10 in a row"):
        _take(TrainLoader(everything, seed=0, num_workers=1), 1)


def test_wrong_settings_are_refused(data_root: Path) -> None:
    with pytest.raises(ConfigError, match=r"DATASETS\.TRAIN"):
        TrainLoader([], seed=0)
    with pytest.raises(ConfigError, match="multiple of the 3 processes"):
        TrainLoader(_sources(), seed=0, world_size=3)


def test_training_records_leave_out_empty_images(data_root: Path) -> None:
    records = train_records("coco_2017_train")
    assert len(records) == len(load_records("coco_2017_train"))
    generalised = train_records("grefcoco-unc-train")
    assert any(not record["annotations"] for record in generalised)


def test_test_loader_shares_images_in_order(data_root: Path) -> None:
    def names(**share: int) -> list[list[str]]:
        loader = build_test_loader("refcoco-unc-val", TestMapper(), **share)
        return [[sample["name"] for sample in samples] for samples in loader]

    whole = names()
    parts = [names(rank=rank, world_size=3) for rank in range(3)]
    assert whole == list(itertools.chain(*parts))
    records = load_records("refcoco-unc-val")
    assert len(whole) == len({record["file_name"] for record in records}) < len(records)
    assert sorted(itertools.chain(*whole)) == sorted(map(sample_name, records))
