"""The benchmark on a tiny model: what is compared is equal, and the report says what it should."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from projects.uniref.baseline import ReferenceAlgorithm
from projects.uniref.system import SYSTEM
from tests.projects.uniref.tiny import make_uniref
from unified.inference import benchmark as benchmarks
from unified.inference.benchmark import moving_rectangles
from unified.inference.image_io import write_image
from unified.inference.profiling import VERB_STAGES, StageTimer, median_milliseconds, stage_names
from unified.label_maps import write_label_map

ROOT = Path(__file__).parents[4]
# fmt: off
TINY = [
    "--config-file", str(ROOT / "configs/lite/uniref_lite.yaml"), "--device", "cpu",
    "--size", "64x96", "--threads", "1", "--frames", "2", "--opts",
    "MODEL.UNIREF.BACKBONE_WEIGHTS", "", "MODEL.UNIREF.TEXT_ENCODER.WEIGHTS", "",
    "MODEL.UNIREF.HIDDEN_DIM", "64", "MODEL.UNIREF.FUSION.HEAD_DIM", "64",
    "MODEL.UNIREF.ENCODER_LAYERS", "1", "MODEL.UNIREF.DECODER_LAYERS", "1",
    "INFERENCE.MEMORY_INTERVAL", "1",
]
# fmt: on


def load_tool() -> Callable[[list[str]], int]:
    """``main`` of the tool."""
    spec = importlib.util.spec_from_file_location("benchmark", ROOT / "tools/benchmark.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.main


def benchmark(tmp_path: Path, *arguments: str, options: Sequence[str] = ()) -> dict[str, Any]:
    """The report of a run that ends well; the number of threads is as before."""
    threads = torch.get_num_threads()
    try:
        main = load_tool()
        assert main([*arguments, "--json", str(tmp_path / "report.json"), *TINY, *options]) == 0
    finally:
        torch.set_num_threads(threads)
    return json.loads((tmp_path / "report.json").read_text())


def test_the_baseline_remembers_every_frame_whatever_ours_does(tmp_path: Path) -> None:
    rarely = ("INFERENCE.MEMORY_INTERVAL", "9")
    report = benchmark(tmp_path, "video", "--objects", "1", "--baseline", options=rarely)
    assert report["largest_difference"]["score"] > 1e-5
    assert report["memory_interval"] == 9 and report["baseline"]["memory_interval"] == 1


@pytest.mark.parametrize("mode", ["video", "image"])
def test_baseline_and_ours_give_the_same_masks(tmp_path: Path, mode: str) -> None:
    report = benchmark(tmp_path, mode, "--objects", "2", "--baseline")
    assert (report["mode"], report["size"], report["objects"]) == (mode, [64, 96], 2)
    assert report["environment"].keys() == {"device", "threads", "torch", "python"}
    assert report["environment"]["threads"] == 1
    for name in ("ours", "baseline"):
        milliseconds = report[name]["milliseconds"]
        assert milliseconds.keys() == {*stage_names(SYSTEM.stages), "total"}
        assert all(time > 0 for time in milliseconds.values()), (name, milliseconds)
        assert report[name]["objects_per_second"] > 0
        assert report[name]["peak_mb"] > 0
    difference = report["largest_difference"]
    assert difference["different_pixels"] == 0
    assert difference["probability"] < 1e-4
    assert difference["score"] < 1e-5
    assert report["speed_up"] > 0


def test_attention_in_bfloat16_is_ours_alone(tmp_path: Path) -> None:
    options = ["MODEL.UNIREF.FUSION.ATTENTION_DTYPE", "bfloat16"]
    report = benchmark(tmp_path, "video", "--baseline", options=options)
    assert set(options) <= set(report["options"])
    assert report["largest_difference"]["probability"] > 1e-4, "both ran in the same precision"


def test_without_baseline_there_is_nothing_to_compare(tmp_path: Path) -> None:
    report = benchmark(tmp_path, "video")
    assert "baseline" not in report and "speed_up" not in report and "ours" in report


def test_frames_are_timed_by_the_clock_in_whole_periods_of_memory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two frames are asked for, of which memory is renewed on every third."""
    summary, laps = benchmarks.summary, []
    monkeypatch.setattr(
        benchmarks, "summary", lambda timed, **x: laps.extend(timed) or summary(timed, **x)
    )
    report = benchmark(tmp_path, "video", options=("INFERENCE.MEMORY_INTERVAL", "3"))
    assert len(laps) == 3 and report["memory_interval"] == 3
    assert sum("references" in lap.seconds for lap in laps) == 1
    assert report["ours"]["milliseconds"]["references"] > 0
    clock = report["clock"]
    assert clock["milliseconds"] > 0
    assert clock["frames_per_second"] == pytest.approx(1000 / clock["milliseconds"], rel=0.05)


def test_baseline_does_the_work_that_ours_saves() -> None:
    ours = make_uniref()
    baseline = ReferenceAlgorithm(ours.eval())
    for name, parameter in baseline.named_parameters():
        assert parameter is ours.get_parameter(name), name
    assert baseline.head is not ours.head
    image = ours.preprocess([torch.rand(3, 64, 96) * 255])
    calls: list[int] = []
    hook = ours.backbone.register_forward_hook(lambda *_: calls.append(1))
    for model, passes in ((ours, 1), (baseline, 2)):
        calls.clear()
        with torch.no_grad():
            features = model.encode_image(image)
            masks = torch.zeros(1, 64, 96, dtype=torch.bool)
            masks[:, 10:40, 20:50] = True
            model.segment(features, [model.encode_mask(image, features, masks)])
        assert len(calls) == passes
    hook.remove()


def test_a_stage_inside_another_one_pauses_it(monkeypatch: pytest.MonkeyPatch) -> None:
    now = iter(range(100))
    monkeypatch.setattr("time.perf_counter", lambda: float(next(now)))
    timer = StageTimer()
    with timer.stage("outer"), timer.stage("inner"), timer.stage("outer"):
        pass
    assert timer.lap() == {"outer": 3.0, "inner": 2.0}
    assert timer.lap() == {}


def test_a_table_has_the_stages_of_the_verbs_and_of_the_system() -> None:
    assert stage_names({}) == ("decode", "backbone", "references", "masks", "merge", "write")
    own = {"mix": "mixing", "head.forward": "head", "head.last": "mixing"}
    expected = ("decode", "backbone", "references", "mixing", "head", "masks", "merge", "write")
    assert stage_names(own) == expected
    laps = [{"head": 0.001 * frame, "decode": 0.5} for frame in (1, 2, 9)]
    table = median_milliseconds(laps, ("decode", "head", "masks"))
    assert table == {"decode": 500.0, "head": 2.0, "masks": 0.0, "total": 502.0}


def test_work_of_some_frames_of_a_period_counts() -> None:
    laps = [{"head": 0.001 * ms} for ms in (1, 1, 30, 1, 1, 30, 2, 90, 30)]
    assert median_milliseconds(laps, ("head",), 3) == {"head": 10.67, "total": 10.67}


def test_watching_ends() -> None:
    model = make_uniref()
    timer = StageTimer()
    with timer.watch(model, SYSTEM.stages):
        assert "segment" in vars(model) and "encode" in vars(model.head.transformer)
    assert (
        not {path.rpartition(".")[2] for path in {**VERB_STAGES, **SYSTEM.stages}}
        & vars(model).keys()
    )
    assert "forward" not in vars(model.head)


def test_a_clip_brings_its_size_and_its_objects(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for folder in ("frames", "masks"):
        (tmp_path / folder).mkdir()
    for number in range(4):
        image, (first, second) = moving_rectangles(number, (48, 80), 2)
        write_image(tmp_path / f"frames/{number}.png", image)
        write_label_map(tmp_path / f"masks/{number}.png", (first + 2 * second).astype(np.uint8))
    clip = ("--clip", str(tmp_path / "frames"), str(tmp_path / "masks"))
    report = benchmark(tmp_path, "video", *clip)
    assert (report["size"], report["objects"]) == ([48, 80], 2)
    ours = report["ours"]
    rate = 2000 / ours["milliseconds"]["total"]
    assert ours["objects_per_second"] == pytest.approx(rate, rel=0.01)
    assert report["weights"] == "random" and "iou" not in ours
    with pytest.raises(SystemExit):
        load_tool()(["image", *clip])
    assert "image takes no --clip" in capsys.readouterr().err
    for number in (2, 3):
        (tmp_path / f"frames/{number}.png").unlink()
    threads = torch.get_num_threads()
    try:
        assert load_tool()(["video", *clip, *TINY]) == 2
    finally:
        torch.set_num_threads(threads)
    assert "no frame is left to time" in capsys.readouterr().err


def test_the_table_of_systems_has_a_row_of_a_model(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main, file = load_tool(), tmp_path / "rows.json"
    arguments = ["systems", "--model", "uniref-lite", "--threads", "1", "--frames", "1"]
    assert main([*arguments, "--json", str(file)]) == 0
    header, _, row = capsys.readouterr().out.splitlines()
    assert header.count("|") == row.count("|")
    measured = json.loads(file.read_text())["uniref-lite"]
    assert measured["multiply_adds"] > 1e9 and measured["parameters"] > 1e7
    assert 0.3 < measured["ratio"] < 3  # of itself
    assert 200 < measured["peak_mb"] < 4000
    assert main(["systems", "--model", "uniref-swin-l"]) == 2
    assert "has no row in the table: choose among" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["systems", "--max-size", "320"])
    assert "systems takes no --max-size" in capsys.readouterr().err
