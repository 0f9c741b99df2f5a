"""The table of protocols: what each published way of counting is called and how it is scored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from unified.errors import ConfigError
from unified.evaluation import clips, images, results, videos
from unified.evaluation.report import Origin, Report, Request, Scores, Split, find_origin, make_card
from unified.evaluation.videos import VideoScoring
from unified.metrics import iou


@dataclass(frozen=True)
class Protocol:
    """One way of counting.

    Attributes:
        task: vos, rvos, ris, fss, detection or semantic.
        benchmark: printed on the card.
        rule: the choices that change the number, printed on the card.
        score: counts.
        options: those that it reads, of split, meta, unseen, classes, ignore and class-agnostic.
    """

    task: str
    benchmark: str
    rule: str
    score: Callable[[Request], Scores]
    options: tuple[str, ...] = ("split",)


def _lvos(task: videos.LvosTask, *, skip_ends: bool) -> VideoScoring:
    make: dict[videos.LvosTask, clips.MakeClips] = {
        "semi-supervised": clips.sequences,
        "unsupervised_multiple": clips.proposals,
        "unsupervised_single": partial(clips.sequences, check_ids=False),
    }
    return VideoScoring(
        clips=partial(clips.spanned_sequences, skip_ends=skip_ends, make=make[task]),
        tracks=partial(videos.spanned, task=task, skip_ends=skip_ends),
        numbers=videos.lvos_numbers,
        notes=videos.absent_half,
    )


def _expressions(make: clips.MakeClips, tracks: videos.MakeTracks) -> VideoScoring:
    return VideoScoring(clips=make, tracks=tracks, numbers=videos.mean_numbers, sample="expression")


def _visible(*, skip_ends: bool) -> VideoScoring:
    return VideoScoring(
        clips=partial(clips.sequences, skip_ends=skip_ends),
        tracks=partial(videos.visible, skip_ends=skip_ends),
        numbers=videos.mean_numbers,
    )


HALVES = ("split", "meta", "unseen")  # of benchmarks with seen and unseen objects
LABELS = ("split", "classes", "ignore")
WHOLE_FILE: tuple[str, ...] = ()  # annotation files are scored as they are
CATEGORIES = ("class-agnostic",)

PROTOCOLS: dict[str, Protocol] = {
    "davis17-semi": Protocol(
        "vos",
        "DAVIS 2016, 2017",
        "objects of frame 0, first and last frame skipped, void is background",
        VideoScoring(
            clips=partial(clips.sequences, skip_ends=True),
            tracks=videos.semi_supervised,
            numbers=videos.davis_numbers,
        ),
    ),
    "davis17-unsup": Protocol(
        "vos",
        "DAVIS 2017 unsupervised",
        "all frames, void ignored, up to 20 proposals assigned by mean J&F, extra ones free",
        VideoScoring(
            clips=clips.proposals,
            tracks=videos.unsupervised,
            numbers=videos.davis_numbers,
        ),
    ),
    "vos-benchmark": Protocol(
        "vos",
        "any label maps",
        "objects from their first frame on, first and last frame of the video skipped",
        _visible(skip_ends=True),
    ),
    "vos-all-frames": Protocol(
        "vos", "any label maps", "objects from their first frame on", _visible(skip_ends=False)
    ),
    "sav": Protocol(
        "vos",
        "SA-V",
        "one folder per object, first and last frame skipped",
        VideoScoring(
            clips=clips.object_folders,
            tracks=partial(videos.visible, skip_ends=True),
            numbers=videos.mean_numbers,
        ),
    ),
    "youtube-vos": Protocol(
        "vos",
        "YouTube-VOS",
        "G = mean of J and F over seen and unseen classes, the frame that introduces an object "
        "skipped; the server's program was never published",
        VideoScoring(
            clips=clips.classed_sequences,
            tracks=partial(videos.visible, skip_ends=False, skip_prompt=True),
            numbers=videos.youtube_vos_numbers,
            notes=videos.absent_half,
        ),
        HALVES,
    ),
    "lvos": Protocol(
        "vos",
        "LVOS",
        "mean of seen and unseen videos, first and last frame of each object's span skipped",
        _lvos("semi-supervised", skip_ends=True),
        HALVES,
    ),
    "lvos-bundled": Protocol(
        "vos",
        "LVOS",
        "the older evaluator bundled with UniRef: mean of seen and unseen videos, no frame skipped",
        _lvos("semi-supervised", skip_ends=False),
        HALVES,
    ),
    "lvos-unsup-multiple": Protocol(
        "vos",
        "LVOS unsupervised",
        "mean of seen and unseen videos, no frame skipped, proposals assigned by mean J&F",
        _lvos("unsupervised_multiple", skip_ends=False),
        HALVES,
    ),
    "lvos-unsup-single": Protocol(
        "vos",
        "LVOS unsupervised",
        "mean of seen and unseen videos, no frame skipped, every object against all foreground",
        _lvos("unsupervised_single", skip_ends=False),
        HALVES,
    ),
    "ref-davis17": Protocol(
        "rvos",
        "Ref-DAVIS17",
        "as davis17-unsup, mean over the expression sets anno_0 to anno_3",
        VideoScoring(
            clips=clips.annotator_sets,
            tracks=videos.unsupervised,
            numbers=videos.davis_numbers,
            notes=videos.expression_sets,
        ),
    ),
    "ref-youtube-vos": Protocol(
        "rvos",
        "Ref-YouTube-VOS",
        "J&F per expression over all annotated frames, mean over expressions",
        _expressions(clips.expressions, videos.expression),
        ("split", "meta"),
    ),
    "mevis": Protocol(
        "rvos",
        "MeViS",
        "J&F per expression over all frames, union of its objects, missing prediction is 0",
        _expressions(clips.mevis_expressions, videos.mevis_expression),
    ),
    "lavt": Protocol(
        "ris",
        "RefCOCO/+/g",
        "P@X counts IoU >= X, two empty masks count 0",
        partial(images.score_referring, rule=iou.LAVT),
    ),
    "cris": Protocol(
        "ris",
        "RefCOCO/+/g",
        "P@X counts IoU > X in 32 bits, 1e-6 in the union; its paper calls mIoU IoU",
        partial(images.score_referring, rule=iou.CRIS),
    ),
    "uniref": Protocol(
        "ris",
        "RefCOCO/+/g",
        "P@X counts IoU > X, samples without ground truth left out",
        partial(images.score_referring, rule=iou.UNIREF),
    ),
    "uniref-box": Protocol(
        "ris",
        "RefCOCO/+/g boxes",
        "box P@X counts IoU > X of the best scored box",
        results.score_referring_boxes,
        WHOLE_FILE,
    ),
    "grefcoco": Protocol(
        "ris",
        "gRefCOCO",
        "ReLA: a right refusal counts 1 in gIoU, Pr@X counts IoU >= X over expressions with target",
        images.score_generalized,
    ),
    "grefcoco-box": Protocol(
        "ris",
        "gRefCOCO boxes",
        "Pr@(F1=1), score >= 0.7, greedy matching by generalized IoU >= 0.5",
        results.score_generalized_boxes,
        WHOLE_FILE,
    ),
    "hsnet": Protocol(
        "fss",
        "FSS-1000, PASCAL-5i, COCO-20i",
        "class mIoU and FB-IoU, areas summed per class, classes without episode count 0",
        images.score_few_shot,
    ),
    "fss-per-image": Protocol(
        "fss",
        "FSS-1000",
        "UniRef: mean IoU over images, not classes",
        partial(images.score_referring, rule=iou.UNIREF, sample="image"),
    ),
    "youtube-vis": Protocol(
        "detection", "YouTube-VIS, OVIS", "AP of mask tubes", results.score_youtube_vis, WHOLE_FILE
    ),
    "coco-mask": Protocol(
        "detection",
        "COCO",
        "AP of masks, 100 detections",
        partial(results.score_coco, boxes=False),
        CATEGORIES,
    ),
    "coco-box": Protocol(
        "detection",
        "COCO",
        "AP of boxes, 100 detections",
        partial(results.score_coco, boxes=True),
        CATEGORIES,
    ),
    "mmseg": Protocol(
        "semantic",
        "semantic segmentation",
        "areas summed over images, 255 ignored, classes that nobody drew left out",
        partial(images.score_semantic, reduce_zero_label=False),
        LABELS,
    ),
    "mmseg-reduce-zero": Protocol(
        "semantic",
        "ADE20K",
        "as mmseg, label 0 of the ground truth ignored and the others lowered by one",
        partial(images.score_semantic, reduce_zero_label=True),
        LABELS,
    ),
}

TASKS = tuple(dict.fromkeys(protocol.task for protocol in PROTOCOLS.values()))


def default_protocol(task: str) -> str:
    """The first protocol of a task in the table."""
    return next(name for name, protocol in PROTOCOLS.items() if protocol.task == task)


def evaluate(
    name: str, request: Request, *, task: str | None = None, weights: Path | None = None
) -> Report:
    """Scores predictions under a protocol and puts the card beside the numbers.

    Args:
        name: key of ``PROTOCOLS``.
        request: what to score.
        task: if given, the protocol must be one of this task.
        weights: checkpoint that made the predictions, for its sha256 on the card.

    Raises:
        ConfigError: no such protocol, or of another task, or an option that it does not read.
        InputError: the files cannot be scored, or the weights do not exist.
    """
    origin = find_origin(request.prediction, weights)
    if task not in (None, find_protocol(name).task):
        fitting = [n for n, p in PROTOCOLS.items() if p.task == task]
        raise ConfigError(f"no protocol {name!r} of task {task}: choose from {', '.join(fitting)}")
    protocol = find_protocol(name)
    _check_options(name, protocol, request)
    split = request.split
    if split == Split():
        split = Split(note=f"all of {request.truth}")
    return make_report(name, protocol.score(request), split, origin)


def _check_options(name: str, protocol: Protocol, request: Request) -> None:
    """Raises a ``ConfigError`` for an option that changes nothing; the card would say it did."""
    given = {
        "split": request.split.names,
        "meta": request.meta,
        "unseen": request.unseen,
        "classes": request.num_classes,
        "ignore": request.ignore,
        "class-agnostic": request.class_agnostic or None,
    }
    for option, value in given.items():
        if value is not None and option not in protocol.options:
            raise ConfigError(
                f"{name} does not read --{option}, which would change nothing: leave it out"
            )


def find_protocol(name: str) -> Protocol:
    """The protocol of a name.

    Raises:
        ConfigError: it is not in the table.
    """
    if name not in PROTOCOLS:
        raise ConfigError(f"no protocol {name!r}: choose from {', '.join(PROTOCOLS)}")
    return PROTOCOLS[name]


def make_report(name: str, scores: Scores, split: Split, origin: Origin) -> Report:
    """Puts the card beside the numbers of a protocol."""
    protocol = find_protocol(name)
    card = make_card(
        scores,
        benchmark=protocol.benchmark,
        protocol=name,
        rule=protocol.rule,
        split=split,
        origin=origin,
    )
    return Report(scores, card)
