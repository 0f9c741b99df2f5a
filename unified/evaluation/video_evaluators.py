"""The evaluator of clips: masks of objects and of sentences."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

from unified.data.formats.records import Record
from unified.evaluation import clips
from unified.evaluation.clips import Clip
from unified.evaluation.protocol_evaluator import PREDICTIONS, ProtocolEvaluator, Sample
from unified.evaluation.protocols import PROTOCOLS
from unified.evaluation.records import RecordTruth, annotated_frames
from unified.evaluation.report import Problems, Request, Scores
from unified.evaluation.videos import VideoScoring
from unified.label_maps import write_label_map, write_mask
from unified.structures import FrameResult


class VideoEvaluator(ProtocolEvaluator):
    """VOS and RVOS: writes masks as frames come, then scores the files.

    Objects that compete for pixels (``merge`` "soft") make one label map per frame, whatever the
    number of sentences; otherwise every sentence has a folder of binary masks.
    """

    known_protocols: ClassVar[tuple[str, ...]] = tuple(
        name for name, protocol in PROTOCOLS.items() if isinstance(protocol.score, VideoScoring)
    )

    def process(self, inputs: Sequence[Sample], outputs: Iterable[FrameResult]) -> None:
        """Takes one clip.

        Args:
            inputs: its records. Where each sentence is judged alone, the first one is object 1, the
                second object 2, ...
            outputs: its frames in order, read once.
        """
        folder = self.folder / PREDICTIONS
        for name, frame in zip(inputs[0]["frame_names"], outputs, strict=True):
            if self.metadata.merge == "each":
                for number, record in enumerate(inputs, start=1):
                    write_mask(folder / self._place(record) / f"{name}.png", frame.masks[number])
            else:
                write_label_map(folder / self._place(inputs[0]) / f"{name}.png", frame.label_map)
        self.samples += [self._place(record) for record in inputs]

    def can_score(self) -> bool:
        """Whether there is ground truth beyond the masks that are given to the model."""
        return any(
            set(annotated_frames(record)) - set(record.get("first_frames", {}).values())
            for record in self._records()
        )

    def score(self, protocol: str) -> Scores:
        """Scores the files written by all ranks against the records of the dataset."""
        scoring = PROTOCOLS[protocol].score
        assert isinstance(scoring, VideoScoring)
        made = {self._place(record): record for record in self._records()}
        expected = [self._clip(record, protocol) for record in made.values()]
        request = Request(Path(), self.folder / PREDICTIONS, num_workers=os.cpu_count() or 1)
        scores = scoring.score(expected, request, Problems(allowed=False))
        number = len({clip.sequence for clip in expected})
        return replace(scores, notes=(f"clips: {number}", *scores.notes))

    def _place(self, record: Sample) -> str:
        one_sentence = self.metadata.merge == "each" and "expression_id" in record
        return str(record["clip_id"]) + (f"/{record['expression_id']}" if one_sentence else "")

    def _clip(self, record: Record, protocol: str) -> Clip:
        sentence = self.metadata.merge == "each" and "expression_id" in record
        frames = tuple(record["frame_names"][i] for i in annotated_frames(record))
        clip = Clip(
            sequence=record["clip_id"],
            item=record["expression_id"] if sentence else "",
            frames=frames,
            truth=RecordTruth(record, sentence=sentence),
            prediction=self.folder / PREDICTIONS / self._place(record),
            binary=sentence,
            check_ids="expression_id" not in record,
            unseen_ids=frozenset(record["unseen_ids"]) if "unseen_ids" in record else None,
        )
        if "frame_ranges" in record:
            return clips.with_spans(clip, record["frame_ranges"], protocol == "lvos")
        return clip
