"""What all evaluators of Detectron2 do here: collect, write, score, report.

Every evaluator writes what was predicted, so that ``tools/evaluate.py`` can repeat the number, and
a report with its card per protocol.
"""

from __future__ import annotations

import logging
import shutil
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from detectron2.data import DatasetCatalog, MetadataCatalog
from detectron2.evaluation import DatasetEvaluator
from detectron2.utils import comm

from unified.data.formats.records import Record
from unified.errors import ConfigError
from unified.evaluation.protocols import make_report
from unified.evaluation.report import Origin, Scores, Split

logger = logging.getLogger(__name__)

Sample = Mapping[str, Any]
PREDICTIONS, GROUND_TRUTH = "predictions", "ground_truth"


class ProtocolEvaluator(DatasetEvaluator):
    """Collects samples on every rank and scores them, under every protocol of a dataset, on one.

    Subclasses add to ``samples`` in ``process`` and count in ``score``.

    Attributes:
        known_protocols: those that ``score`` counts.
        default_protocols: for datasets whose metadata has no ``protocols``, such as those that are
            registered for other projects.
    """

    known_protocols: ClassVar[tuple[str, ...]] = ()
    default_protocols: ClassVar[tuple[str, ...]] = ()

    def __init__(self, dataset: str, output_dir: Path | str, origin: Origin | None = None) -> None:
        """
        Args:
            dataset: registered name; its metadata may have ``protocols``.
            output_dir: predictions and reports go here, in a folder of the dataset's name.
            origin: what predicts, for the card.

        Raises:
            ConfigError: it is not known how to count.
        """
        self.dataset = dataset
        self.folder = Path(output_dir) / dataset
        self.origin = origin or Origin()
        self.metadata = MetadataCatalog.get(dataset)
        self.protocols = tuple(self.metadata.get("protocols") or self.default_protocols)
        if not self.protocols:
            raise ConfigError(f"dataset {dataset} has no protocols: set them in its metadata")
        if unknown := [name for name in self.protocols if name not in self.known_protocols]:
            raise ConfigError(
                f"dataset {dataset} asks for protocol {unknown[0]!r}, its evaluator_type counts by "
                f"{', '.join(self.known_protocols)}"
            )
        self.samples: list[Any] = []

    def reset(self) -> None:
        """Forgets samples, also those of an earlier run on disk."""
        self.samples = []
        if comm.is_main_process():
            for name in (PREDICTIONS, GROUND_TRUTH):
                shutil.rmtree(self.folder / name, ignore_errors=True)
        comm.synchronize()

    def process(self, inputs: Sequence[Sample], outputs: Any) -> None:
        """Takes a batch of samples of the test loader and what the model says about each."""
        raise NotImplementedError

    def score(self, protocol: str) -> Scores:
        """Counts ``samples``, which hold those of all ranks now."""
        raise NotImplementedError

    def write_results(self) -> None:
        """Writes what belongs to all samples together, before they are scored."""

    def can_score(self) -> bool:
        """Whether the dataset has ground truth."""
        return True

    def evaluate(self) -> OrderedDict[str, dict[str, float]]:
        """Protocol -> numbers in percent, on the main process; empty elsewhere."""
        gathered = comm.gather(self.samples, dst=0)
        comm.synchronize()
        found: OrderedDict[str, dict[str, float]] = OrderedDict()
        if not comm.is_main_process():
            return found
        self.samples = [sample for samples in gathered for sample in samples]
        self.write_results()
        if not self.can_score():
            logger.info("%s has no ground truth: predictions are in %s", self.dataset, self.folder)
            return found
        for name in self.protocols:
            report = make_report(name, self.score(name), Split(note=self.dataset), self.origin)
            report.write(self.folder / name)
            logger.info("%s\n%s\n%s", self.dataset, report.table(), report.card.line())
            found[name] = dict(report.scores.numbers)
        return found

    def _records(self) -> list[Record]:
        return DatasetCatalog.get(self.dataset)

    def _with_released_classes(self) -> list[dict[str, Any]]:
        """Samples that are results, their classes as in the annotation file, not from 0."""
        to_contiguous = self.metadata.get("thing_dataset_id_to_contiguous_id") or {}
        ids = {new: old for old, new in to_contiguous.items()}
        return [
            {**s, "category_id": ids.get(s["category_id"], s["category_id"])} for s in self.samples
        ]
