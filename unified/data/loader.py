"""Batches from several datasets: one dataset per batch, one aspect, and a stream that can resume.

What a batch holds follows from the seed and its number alone, not from workers, ranks or time: a
global batch is planned, and every rank makes its share. Where every process has a dataset of its
own, it follows from the number of processes too. Sample number i of batch n has its own random
generator.
"""

from __future__ import annotations

import copy
import logging
import signal
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from unified.data.catalog import load_records
from unified.data.formats.records import Record
from unified.data.mappers import TestMapper, TrainMapper
from unified.data.packing import pack, unpack
from unified.data.samples import Sample, sample_name
from unified.errors import ConfigError, InputError
from unified.tasks import TASKS

logger = logging.getLogger(__name__)

MAX_BROKEN = 20  # different samples that may be skipped in one run
MAX_TRIES = 10  # neighbours tried in place of one broken sample
LAST_STEP = 20  # seconds that a worker lives on after SIGTERM


@dataclass(frozen=True)
class Source:
    """One dataset to train on.

    Attributes:
        name: for messages.
        records: what ``mapper`` turns into samples.
        ratio: of batches drawn from it, relative to the other sources.
        batch_size: samples per global batch, over all ranks.
    """

    name: str
    records: Sequence[Record]
    mapper: TrainMapper
    ratio: float = 1.0
    batch_size: int = 1


@dataclass(frozen=True)
class SampleKey:
    """Which sample to make: source, aspect group, place in the group, and seeds."""

    source: int
    group: int
    position: int
    seed: tuple[int, ...]
    batch_seed: tuple[int, ...]


class BatchPlan:
    """An endless sequence of global batches of sample keys.

    A source is drawn by ratio, then an aspect group (wide, tall) by its size; the group is walked
    through in a random order that is new in every round.

    Args:
        num_shares: equal shares of a global batch, each with a source and group of its own.
    """

    def __init__(self, sources: Sequence[Source], seed: int, num_shares: int = 1) -> None:
        self.seed, self.num_shares = seed, num_shares
        self.batch_sizes = [source.batch_size for source in sources]
        ratios = np.array([source.ratio for source in sources], dtype=np.float64)
        self.shares = ratios / ratios.sum()
        self.groups = [aspect_groups(source.records) for source in sources]
        self.state: dict[str, Any] = {"batch": 0, "drawn": [[0] * len(g) for g in self.groups]}
        self._orders: dict[tuple[int, int], tuple[int, np.ndarray]] = {}

    def next_batch(self) -> list[list[SampleKey]]:
        """The keys of the next global batch by shares."""
        number = self.state["batch"]
        shares = [self._share(number, index) for index in range(self.num_shares)]
        self.state["batch"] = number + 1
        return shares

    def _share(self, number: int, index: int) -> list[SampleKey]:
        seed = (self.seed, number) if self.num_shares == 1 else (self.seed, number, index)
        rng = np.random.default_rng(seed)
        source = int(rng.choice(len(self.shares), p=self.shares))
        sizes = np.array([len(group) for group in self.groups[source]], dtype=np.float64)
        group = int(rng.choice(len(sizes), p=sizes / sizes.sum()))
        return [
            SampleKey(
                source=source,
                group=group,
                position=self._next_position(source, group),
                seed=(*seed, place),
                batch_seed=seed,
            )
            for place in range(self.batch_sizes[source] // self.num_shares)
        ]

    def _next_position(self, source: int, group: int) -> int:
        drawn = self.state["drawn"][source][group]
        self.state["drawn"][source][group] = drawn + 1
        turn, place = divmod(drawn, len(self.groups[source][group]))
        known, order = self._orders.get((source, group), (-1, np.zeros(0, dtype=np.int64)))
        if known != turn:
            rng = np.random.default_rng([self.seed, source, group, turn])
            order = rng.permutation(len(self.groups[source][group]))
            self._orders[source, group] = (turn, order)
        return int(order[place])


def aspect_groups(records: Sequence[Record]) -> list[np.ndarray]:
    """Indices of the wide and of the tall records; only groups that have any."""
    wide = np.array([record["width"] > record["height"] for record in records], dtype=bool)
    groups = [np.flatnonzero(wide), np.flatnonzero(~wide)]
    return [group for group in groups if len(group)]


@dataclass(frozen=True)
class Made:
    """A sample, or None if all tries failed, and the records that were skipped on the way."""

    sample: Sample | None
    broken: tuple[str, ...]


class _Samples(TorchDataset[Made]):
    """Turns keys into samples; what a worker process holds."""

    def __init__(self, sources: Sequence[Source], groups: Sequence[Sequence[np.ndarray]]) -> None:
        self.sources = sources
        self.groups = groups

    def __getitem__(self, key: SampleKey) -> Made:
        source, group = self.sources[key.source], self.groups[key.source][key.group]
        broken: list[str] = []
        for attempt in range(min(MAX_TRIES, len(group))):
            record = source.records[int(group[(key.position + attempt) % len(group)])]
            try:
                sample = source.mapper(
                    record, np.random.default_rng(key.seed), np.random.default_rng(key.batch_seed)
                )
                return Made(sample, tuple(broken))
            except InputError as error:
                broken.append(f"{sample_name(record)} ({error})")
        return Made(None, tuple(broken))


class TrainLoader:
    """Iterates over the batches of this rank, for ever; a batch is a list of samples.

    ``state_dict`` tells where the stream is after the last batch handed out, however many batches
    the workers have prepared beyond it.
    """

    def __init__(
        self,
        sources: Sequence[Source],
        *,
        seed: int,
        num_workers: int = 0,
        rank: int = 0,
        world_size: int = 1,
        max_broken: int = MAX_BROKEN,
        one_dataset_per: str = "step",
    ) -> None:
        """
        Args:
            one_dataset_per: "step", or "process" for a dataset, hence a task, of its own for every
                process, as in the reference.

        Raises:
            ConfigError: there is no source, a ratio is not positive, a batch cannot be divided, or
                ``one_dataset_per`` is neither.
        """
        _check_sources(sources, world_size)
        if one_dataset_per not in ("step", "process"):
            raise ConfigError(
                f"DATALOADER.ONE_DATASET_PER is {one_dataset_per!r}: choose 'step' or 'process'"
            )
        self.plan = BatchPlan(sources, seed, world_size if one_dataset_per == "process" else 1)
        self.sources = sources
        self.num_workers = num_workers
        self.rank, self.world_size = rank, world_size
        self.max_broken = max_broken
        self.broken: set[str] = set()
        self._state = copy.deepcopy(self.plan.state)

    def __iter__(self) -> Iterator[list[Sample]]:
        self.plan.state = copy.deepcopy(self._state)
        states: deque[dict[str, Any]] = deque()
        loader: DataLoader[Any] = DataLoader(
            _Samples(self.sources, self.plan.groups),
            batch_sampler=_Batches(self, states),
            num_workers=self.num_workers,
            collate_fn=pack if self.num_workers else list,
            worker_init_fn=_set_up_worker,
            generator=torch.Generator(),  # so that the global random state stays as it is
        )
        for content in loader:
            batch: list[Made] = unpack(content) if self.num_workers else content
            for made in batch:
                self._report(made)
            self._state = states.popleft()
            yield [made.sample for made in batch if made.sample is not None]

    def state_dict(self) -> dict[str, Any]:
        """Where the stream is; small, made of plain numbers and lists."""
        return {
            **copy.deepcopy(self._state),
            "seed": self.plan.seed,
            "sizes": [len(source.records) for source in self.sources],
            "shares": self.plan.num_shares,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continues where ``state_dict`` was taken; takes effect at the next ``iter``.

        Raises:
            ConfigError: the state is of other datasets, another seed or other shares.
        """
        before, current = {"shares": 1, **state}, self.state_dict()  # old checkpoints lack shares
        for key in ("seed", "sizes", "shares"):
            if before[key] != current[key]:
                raise ConfigError(
                    f"the stream to resume has {key} {before[key]}, this one {current[key]}: "
                    "resume with the same datasets, SEED and DATALOADER.ONE_DATASET_PER, and where "
                    "that is 'process' with as many processes"
                )
        self._state = copy.deepcopy({key: state[key] for key in ("batch", "drawn")})

    def _report(self, made: Made) -> None:
        for name in made.broken:
            if name not in self.broken:
                self.broken.add(name)
                logger.warning("skipped broken sample %d: %s", len(self.broken), name)
        if made.sample is None or len(self.broken) > self.max_broken:
            raise InputError(
                f"{len(self.broken)} samples could not be used, at most {self.max_broken} and "
                f"fewer than {MAX_TRIES} in a row may fail; the last is {made.broken[-1]}; find "
                "them with `python tools/data.py check NAME`"
            )


class _Batches:
    """The keys of this rank, batch by batch; remembers the plan's state after each."""

    def __init__(self, loader: TrainLoader, states: deque[dict[str, Any]]) -> None:
        self.loader = loader
        self.states = states

    def __iter__(self) -> Iterator[list[SampleKey]]:
        loader = self.loader
        while True:
            shares = loader.plan.next_batch()
            self.states.append(copy.deepcopy(loader.plan.state))
            if len(shares) == loader.world_size:
                yield shares[loader.rank]
                continue
            size = len(shares[0]) // loader.world_size
            yield shares[0][loader.rank * size : (loader.rank + 1) * size]


def _set_up_worker(worker: int) -> None:
    torch.set_num_threads(1)
    # It ends with the process that it works for, which may finish a step after SIGTERM.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, lambda *_: signal.alarm(LAST_STEP))


def _check_sources(sources: Sequence[Source], world_size: int) -> None:
    if not sources:
        raise ConfigError("no dataset to train on: set DATASETS.TRAIN")
    for source in sources:
        if source.ratio <= 0:
            raise ConfigError(f"the ratio of {source.name} is {source.ratio}: expected above 0")
        if source.batch_size < 1 or source.batch_size % world_size:
            raise ConfigError(
                f"the batch of {source.name} has {source.batch_size} samples: expected a positive "
                f"multiple of the {world_size} processes"
            )


def train_records(name: str) -> Sequence[Record]:
    """The records of a training set, packed so that worker processes share their memory.

    Images without an object are left out, except where a sentence refers to nothing.
    """
    from detectron2.data import DatasetFromList

    records = load_records(name)
    used = [record for record in records if _has_target(record)]
    logger.info(
        "%s: %d samples, %d without objects left out", name, len(used), len(records) - len(used)
    )
    if not used:
        raise InputError(f"dataset {name} shows no object in any sample")
    packed: Sequence[Record] = DatasetFromList(used, copy=False)
    return packed


def _has_target(record: Record) -> bool:
    if "annotations" not in record or TASKS[record["task"]].references == ("text",):
        return True
    return any(not annotation.get("iscrowd") for annotation in record["annotations"])


def build_test_loader(
    name: str, mapper: TestMapper, *, num_workers: int = 0, rank: int = 0, world_size: int = 1
) -> DataLoader[list[Sample]]:
    """The samples of this rank, image by image: those of one image together."""
    images: dict[str, list[Record]] = {}
    for record in load_records(name):
        images.setdefault(record["file_name"], []).append(record)
    groups = list(images.values())
    bounds = [len(groups) * part // world_size for part in (rank, rank + 1)]
    samples = _TestSamples(groups[bounds[0] : bounds[1]], mapper)
    return DataLoader(
        samples,
        batch_size=None,
        num_workers=num_workers,
        worker_init_fn=_set_up_worker,
        collate_fn=_as_it_is,
    )


def _as_it_is(samples: list[Sample]) -> list[Sample]:
    return samples


class _TestSamples(TorchDataset[list[Sample]]):
    def __init__(self, groups: Sequence[Sequence[Record]], mapper: TestMapper) -> None:
        self.groups = groups
        self.mapper = mapper

    def __len__(self) -> int:
        return len(self.groups)

    def __getitem__(self, index: int) -> list[Sample]:
        return self.mapper(self.groups[index])
