"""Times the operator of deformable attention against its plain formula, on a GPU, in one process.

    python tests/unified/modeling/benchmark_deform_sum.py

Self-attention of the encoder at the sizes of UniRef: B 1, 8 heads of 32 channels, strides 8 to 64,
4 points. Medians of milliseconds, and the memory above that of the inputs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

import torch
from torch import Tensor

from unified.modeling.deform_sum import sample_and_sum, sum_of_grids

Sample = Callable[[Tensor, Sequence[tuple[int, int]], Tensor, Tensor], Tensor]
SIZES = ((480, 864), (800, 1344))


def make_inputs(size: tuple[int, int], dtype: torch.dtype) -> tuple[list, Tensor, Tensor, Tensor]:
    """Shapes, values, locations some pixels from each query's own, weights."""
    shapes = [(-(-size[0] // stride), -(-size[1] // stride)) for stride in (8, 16, 32, 64)]
    generator = torch.Generator("cuda").manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator, device="cuda")

    centres = []
    for height, width in shapes:
        y, x = ((torch.arange(n, device="cuda") + 0.5) / n for n in (height, width))
        centres.append(torch.cartesian_prod(y, x).flip(1))
    centres = torch.cat(centres)  # (N, 2)
    num = len(centres)
    pixels = torch.tensor([(w, h) for h, w in shapes], device="cuda")[:, None]
    locations = centres[None, :, None, None, None] + 3 * normal(1, num, 8, 4, 4, 2) / pixels
    weights = normal(1, num, 8, 16).softmax(-1).view(1, num, 8, 4, 4)
    return shapes, normal(1, num, 8, 32).to(dtype), locations, weights


def milliseconds(work: Callable[[], object], repeats: int = 30) -> float:
    """The median over single calls, after warm-up, of the GPU's time, not that of launching."""
    for _ in range(5):
        work()
    laps = []
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(8_000_000)  # about 4 ms, in which all is queued
        start.record()
        work()
        end.record()
        end.synchronize()
        laps.append(start.elapsed_time(end))
    return sorted(laps)[repeats // 2]


def peak_megabytes(work: Callable[[], object]) -> float:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return (torch.cuda.max_memory_allocated() - before) / 2**20


def measure(sample: Sample, size: tuple[int, int], dtype: torch.dtype) -> list[float]:
    """ms forward, ms forward and backward, MB forward, MB forward and backward."""
    shapes, *tensors = make_inputs(size, dtype)
    leaves = [x.clone().requires_grad_() for x in tensors]
    grad = torch.randn_like(sample(tensors[0], shapes, *tensors[1:]))

    def both() -> None:
        for leaf in leaves:
            leaf.grad = None
        sample(leaves[0], shapes, *leaves[1:]).backward(grad)

    def forward() -> None:
        with torch.no_grad():
            sample(tensors[0], shapes, *tensors[1:])

    times = [milliseconds(work) for work in (forward, both)]
    return times + [peak_megabytes(work) for work in (forward, both)]


def main() -> None:
    print(torch.cuda.get_device_name(), torch.__version__)
    print("size       dtype     formula / kernel: forward ms, both ms, forward MB, both MB")
    for size in SIZES:
        for dtype in (torch.float32, torch.bfloat16):
            plain, kernel = (
                measure(sample, size, dtype) for sample in (sum_of_grids, sample_and_sum)
            )
            cells = [
                f"{p:8.3f} /{k:7.3f} = {p / k:5.1f}x" for p, k in zip(plain, kernel, strict=True)
            ]
            print(f"{size[0]}x{size[1]:<5}", f"{dtype}".removeprefix("torch."), *cells)


if __name__ == "__main__":
    main()
