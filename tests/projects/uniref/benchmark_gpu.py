"""Runs the tests of a GPU and times R50 on it, in one go of under 8 minutes; prints markdown.

    python tests/projects/uniref/benchmark_gpu.py

Frames of 480x854 with 1, 5 and 10 objects by masks, weights made from key names, medians; a step of
training with two clips, and with two large images of examples; SAM 2.1 tiny of transformers beside
it. Needs no weights. Each part is a process of its own with a limit: a slow one costs no other.
--device cpu --tiny shows that all of it runs, but the kernel.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import cycle
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import numpy as np
import torch

ROOT = Path(__file__).resolve().parents[3]
LIMITS = {  # seconds
    **{"tests": 70, "operator": 40, "eager": 100, "compiled": 160, "training": 60, "sam2": 45}
}
GPU_TESTS = [f"tests/unified/modeling/test_{name}.py" for name in ("deform_sum", "attention")]
PYTEST = ["-q", "-m", "gpu", "-p", "no:cacheprovider", "-o", "filterwarnings=ignore"]
COMMANDS = {  # of parts that are programs of their own
    "tests": ["-m", "pytest", *PYTEST, *GPU_TESTS],
    "operator": ["tests/unified/modeling/benchmark_deform_sum.py"],
}
TEXT = "MODEL.UNIREF.TEXT_ENCODER"
OPTIONS = ["MODEL.WEIGHTS", "", f"{TEXT}.NAME", "", f"{TEXT}.WEIGHTS", ""]
OBJECTS = (1, 5, 10)
WARM_UP = 3


def parse_arguments() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--frames", type=int, default=15, help="timed frames")
    parser.add_argument("--tiny", action="store_true", help="small frames, few objects")
    parser.add_argument("--part", choices=tuple(LIMITS), help="only this one")
    return parser.parse_args()


def run(part: str) -> None:
    """A part as a process, ended at its limit."""
    print(f"\n## {part}\n", flush=True)
    command = [sys.executable, *COMMANDS.get(part, [*sys.argv, "--part", part])]
    start = time.perf_counter()
    try:
        code = subprocess.run(command, cwd=ROOT, timeout=LIMITS[part], check=False).returncode
        ended = f"exit status {code} after"
    except subprocess.TimeoutExpired:
        ended = "ended at its limit of"
    print(f"\n{part}: {ended} {time.perf_counter() - start:.0f} s", flush=True)


class Device:
    """What is asked of the device beside work."""

    def __init__(self, name: str) -> None:
        self.name = name
        self._module: Any = torch.get_device_module(name)

    def wait(self) -> None:
        """Until all that was asked for is done."""
        self._module.synchronize()

    def forget_peak(self) -> None:
        """Lets ``peak`` start again."""
        if self.name != "cpu":
            self._module.reset_peak_memory_stats()

    def peak(self) -> str:
        """MB of its memory."""
        if self.name == "cpu":
            return "not measured"
        return f"{self._module.max_memory_allocated() / 2**20:.0f}"

    def milliseconds(self, work: Callable[[], object], num: int) -> tuple[float, float]:
        """Median of ``num`` calls, and seconds of the calls before that warm up."""
        laps = []
        for _ in range(WARM_UP + num):
            self.wait()
            start = time.perf_counter()
            work()
            self.wait()
            laps.append(time.perf_counter() - start)
        return 1000 * statistics.median(laps[WARM_UP:]), sum(laps[:WARM_UP])


def make_model(options: argparse.Namespace, *, training: bool = False) -> Any:
    """R50, or the smallest of its kind, with made weights."""
    import unified
    from projects.uniref.system import benchmark_weights

    tiny = ["MODEL.UNIREF.ENCODER_LAYERS", "1", "MODEL.UNIREF.DECODER_LAYERS", "1"]
    changes = [*OPTIONS, *(tiny if options.tiny else [])]
    model: Any = unified.load(
        ROOT / "configs/video_joint_r50.yaml", device=options.device, options=changes
    )
    benchmark_weights(model)
    return model.train(training)


def time_frames(options: argparse.Namespace, ways: dict[str, dict[str, Any]]) -> None:
    """A row for each way and number of objects, and the launches of a frame with one."""
    from unified import VideoPredictor
    from unified.structures import Prompt

    device, model = Device(options.device), make_model(options)
    size = (64, 96) if options.tiny else (480, 854)
    rng = np.random.default_rng(0)
    frames = [rng.integers(0, 255, (*size, 3), np.uint8) for _ in range(3)]
    print("| objects | way | ms a frame | frames/s | warm-up, s | peak, MB |")
    print("|---|---|---|---|---|---|")
    for num in OBJECTS[: 2 if options.tiny else None]:
        for way, changes in ways.items():
            device.forget_peak()
            given = {"score_threshold": 0.0, "objects_per_pass": 16, "memory_interval": 1}
            predictor = VideoPredictor(model, short_side=size[0], **given, **changes)
            prompts = {i: Prompt(mask=m) for i, m in enumerate(masks(num, size), start=1)}
            predictor.step(frames[0], prompts)
            following = partial(follow, predictor, cycle(frames))
            found, warm_up = device.milliseconds(following, options.frames)
            print(
                f"| {num} | {way} | {found:.1f} | {1000 / found:.1f} | {warm_up:.1f} "
                f"| {device.peak()} |",
                flush=True,
            )
            if num == 1 and options.device != "cpu":
                count_launches(device, following)


def follow(predictor: Any, frames: Iterator[np.ndarray]) -> None:
    """One frame."""
    predictor.step(next(frames))


def masks(num: int, size: tuple[int, int]) -> Iterator[np.ndarray]:
    """Squares."""
    for index in range(num):
        mask = np.zeros(size, bool)
        top, left = 10 * index % (size[0] // 2), 8 * index % (size[1] // 2)
        mask[top : top + size[0] // 4, left : left + size[1] // 4] = True
        yield mask


def count_launches(device: Device, work: Callable[[], object]) -> None:
    """Prints kernels of the device, how long they work, and how often the host waits."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as found:
        work()
        device.wait()
    events = found.key_averages()
    kernels = [e for e in events if e.device_type == torch.autograd.DeviceType.CUDA]
    waits = sum(e.count for e in events if e.key in ("aten::_local_scalar_dense", "aten::nonzero"))
    busy = sum(e.self_device_time_total for e in kernels) / 1000
    print(
        f"\n{sum(e.count for e in kernels)} kernels, {busy:.1f} ms, {waits} waits\n",
        file=sys.stderr,
        flush=True,
    )


def time_training(options: argparse.Namespace) -> None:
    """A row for each size of two samples."""
    from unified.engine.config import load_config
    from unified.engine.meta_arch import SegmenterShell
    from unified.engine.optimizer import build_optimizer
    from unified.engine.system import system

    device, found = Device(options.device), system("UniRef")
    cfg = load_config(ROOT / "configs/video_joint_r50.yaml", OPTIONS)
    sizes = ((64, 96),) if options.tiny else ((480, 854), (800, 1333))
    print("| pictures | ms a step | warm-up, s | peak, MB |\n|---|---|---|---|")
    for size in sizes:
        device.forget_peak()
        model = make_model(options, training=True)
        shell = SegmenterShell(model, found.supervision(cfg)).train()
        optimizer = build_optimizer(cfg, model, found.parameter_group)
        batch = [sample(size, index) for index in range(2)]
        learning = partial(learn, shell, optimizer, batch, options.device)
        taken, warm_up = device.milliseconds(learning, max(1, options.frames // 2))
        print(
            f"| 2 of {size[0]}x{size[1]} | {taken:.0f} | {warm_up:.1f} | {device.peak()} |",
            flush=True,
        )


def learn(shell: Any, optimizer: Any, batch: list[dict[str, Any]], device: str) -> None:
    """One step in bfloat16."""
    with torch.autocast(device, dtype=torch.bfloat16):
        losses = shell(batch)
    torch.stack([x.float() for x in losses.values()]).sum().backward()
    optimizer.step()
    optimizer.zero_grad()


def sample(size: tuple[int, int], seed: int) -> dict[str, Any]:
    """One object of an image by its mask on another one."""
    from detectron2.structures import BitMasks, Boxes, Instances

    rng = torch.Generator().manual_seed(seed)
    (mask,) = (torch.from_numpy(mask) for mask in masks(1, size))
    truth = Instances(size)
    truth.gt_boxes = Boxes(torch.tensor([[0.0, 0.0, size[1] // 4, size[0] // 4]]))
    truth.gt_classes = torch.zeros(1, dtype=torch.int64)
    truth.gt_masks = BitMasks(mask[None])
    images = torch.randint(0, 256, (2, 3, *size), generator=rng, dtype=torch.uint8)
    return {
        "image": images[0],
        "instances": truth,
        "height": size[0],
        "width": size[1],
        "task": "vos",
        "reference_images": images[1:],
        "reference_masks": mask[None],
    }


def time_sam2(options: argparse.Namespace) -> None:
    """A row for each number of objects of transformers' SAM 2.1 tiny, random weights, bfloat16."""
    try:
        from transformers import Sam2VideoConfig, Sam2VideoModel
        from transformers.models.sam2_video import processing_sam2_video as processing
    except ImportError as error:
        print(f"left out, as transformers has no Sam2VideoModel here: {error}")
        return
    device = Device(options.device)
    model = Sam2VideoModel(Sam2VideoConfig()).eval().to(options.device, torch.bfloat16)
    print("| objects | way | ms a frame | frames/s |\n|---|---|---|---|")
    for num in OBJECTS[: 1 if options.tiny else None]:
        given = {"device": options.device, "dtype": torch.bfloat16}
        total = WARM_UP + 1 + (1 if options.tiny else options.frames)
        session = processing.Sam2VideoInferenceSession(
            video=torch.randn(total, 3, 1024, 1024, **given),
            video_height=480,
            video_width=854,
            inference_device=options.device,
            dtype=torch.bfloat16,
        )
        for index in range(num):
            mask = torch.zeros(1, 1, 1024, 1024, device=options.device)
            mask[..., 50 * index : 50 * index + 400, :] = 1
            session.add_mask_inputs(session.obj_id_to_idx(index + 1), 0, mask)
            session.obj_with_new_inputs.append(index + 1)
        with torch.inference_mode():
            model(session, frame_idx=0)
            numbers = iter(range(1, total))
            following = partial(follow_sam2, model, session, numbers)
            found, _ = device.milliseconds(following, total - WARM_UP - 1)
        print(f"| {num} | SAM 2.1 tiny, bfloat16 | {found:.1f} | {1000 / found:.1f} |", flush=True)


def follow_sam2(model: Any, session: Any, numbers: Iterator[int]) -> None:
    """One frame."""
    model(session, frame_idx=next(numbers))


def main() -> None:
    """All parts, or one."""
    options = parse_arguments()
    half = {"precision": "bfloat16"}
    if options.part is None:
        for part in LIMITS:
            run(part)
    elif options.part in COMMANDS:
        run(options.part)
    elif options.part == "eager":
        time_frames(options, {"bfloat16": half, "float32": {}})
    elif options.part == "compiled":
        time_frames(options, {"bfloat16, compiled": half | {"compile": True}})
    elif options.part == "training":
        time_training(options)
    else:
        time_sam2(options)


if __name__ == "__main__":
    main()
