"""The operator of deformable attention: kernels against the plain formula, and what compilers see.

The kernels run in Triton's interpreter, in a process of its own: Triton decides on import whether
it compiles. Where there is a GPU they run compiled, too.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from unified.modeling.deform_sum import deformable_sum, gradients, sample_and_sum, sum_of_grids
from unified.modeling.transformer import DeformableTransformer, TokenLayout

ROOT = Path(__file__).parents[3]
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPES = ((6, 8), (2, 3))
SIDES = [side for shape in SHAPES for side in shape]
CASES = {
    "float32": (torch.float32, 5),
    "bfloat16": (torch.bfloat16, 8),
    "float16": (torch.float16, 4),
}
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")

DEVICES = ("cpu", pytest.param("cuda", marks=(pytest.mark.gpu, needs_gpu)))


def random_inputs(
    dtype: torch.dtype = torch.float32,
    dim: int = 8,
    *,
    batch: int = 2,
    queries: int = 5,
    shapes: tuple[tuple[int, int], ...] = SHAPES,
    points: int = 2,
    heads: int = 2,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """grad, value, locations from -0.4 to 1.4, weights that sum to 1."""
    generator = torch.Generator().manual_seed(dim)
    value = torch.randn(batch, sum(h * w for h, w in shapes), heads, dim, generator=generator)
    layout = (batch, queries, heads, len(shapes), points)
    locations = torch.rand(*layout, 2, generator=generator) * 1.8 - 0.4
    weights = torch.rand(layout, generator=generator).flatten(3).softmax(-1).view(layout)
    grad = torch.randn(batch, queries, heads * dim, generator=generator)
    return grad.to(dtype), value.to(dtype), locations, weights


def by_formula(
    grad: Tensor, value: Tensor, shapes: tuple[tuple[int, int], ...], *samples: Tensor
) -> list[Tensor]:
    """Sum, and gradients of value, locations and weights, in float64."""
    leaves = [x.double().requires_grad_() for x in (value, *samples)]
    with pytest.MonkeyPatch.context() as patch:  # sum_of_grids works in float32
        patch.setattr(Tensor, "float", Tensor.double)
        total = sum_of_grids(leaves[0], shapes, leaves[1], leaves[2])
    total.backward(grad.double())
    return [total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]


def assert_equal(found: list[Tensor], expected: list[Tensor], dtype: torch.dtype) -> None:
    """Within 1e-5 of the largest number in single and 2e-2 in half precision."""
    tolerance = 1e-5 if dtype == torch.float32 else 2e-2
    assert [x.shape for x in found] == [x.shape for x in expected]
    assert [x.dtype for x in found] == [dtype, dtype, torch.float32, torch.float32]
    for mine, theirs in zip(found, expected, strict=True):
        difference = (mine.double() - theirs.double()).abs().max()
        assert difference <= tolerance * max(1.0, float(theirs.abs().max()))


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Tensor]]:
    """What the kernels give for the inputs of every case."""
    pytest.importorskip("triton", reason="needs Triton")
    file = tmp_path_factory.mktemp("triton") / "results.pt"
    code = f"""
import torch
from unified.modeling import deform_triton
shapes, inputs = {SHAPES}, torch.load({str(file)!r})
results = {{
    name: [deform_triton.forward(value, shapes, *rest),
           *deform_triton.backward(grad, value, shapes, *rest)]
    for name, (grad, value, *rest) in inputs.items()
}}
torch.save(results, {str(file)!r})
"""
    torch.save({name: random_inputs(*case) for name, case in CASES.items()}, file)
    environment = os.environ | {"TRITON_INTERPRET": "1", "PYTHONPATH": str(ROOT)}
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    return torch.load(file)


@pytest.mark.parametrize("name", CASES)
def test_interpreted_kernels_equal_the_formula(
    interpreted: dict[str, list[Tensor]], name: str
) -> None:
    grad, value, *samples = random_inputs(*CASES[name])
    expected = by_formula(grad, value, SHAPES, *samples)
    assert_equal(interpreted[name], expected, CASES[name][0])


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize(
    ("dtype", "dim"), [(torch.float32, 5), *((dtype, 32) for dtype in DTYPES)], ids=str
)
def test_compiled_kernels_equal_the_formula(dtype: torch.dtype, dim: int) -> None:
    shapes = ((20, 36), (10, 18), (5, 9), (3, 5))
    inputs = random_inputs(dtype, dim, queries=321, shapes=shapes, points=4, heads=8)
    grad, value, *samples = (x.to("cuda") for x in inputs)
    leaves = [x.clone().requires_grad_() for x in (value, *samples)]
    total = sample_and_sum(leaves[0], shapes, leaves[1], leaves[2])
    total.backward(grad)
    found = [total.detach(), *(leaf.grad for leaf in leaves if leaf.grad is not None)]
    assert_equal(found, by_formula(grad, value, shapes, *samples), dtype)


@pytest.mark.gpu
@needs_gpu
def test_kernel_stores_nothing_but_the_output() -> None:
    shapes = ((60, 108), (30, 54), (15, 27), (8, 14))
    inputs = random_inputs(dim=32, batch=1, queries=8617, shapes=shapes, points=4, heads=8)
    _, value, *samples = (x.to("cuda") for x in inputs)
    sample_and_sum(value, shapes, *samples)
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    total = sample_and_sum(value, shapes, *samples)
    assert torch.cuda.max_memory_allocated() - before <= total.nbytes + 1024


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_gradients_equal_the_formula(dtype: torch.dtype) -> None:
    grad, value, *samples = random_inputs(dtype)
    expected = by_formula(grad, value, SHAPES, *samples)
    found = [expected[0].to(dtype), *gradients(grad, value, SHAPES, *samples)]
    assert_equal(found, expected, dtype)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")
def test_operator_keeps_the_rules_of_torch(device: str) -> None:
    _, *tensors = (x.to(device) for x in random_inputs())
    value, locations, weights = (x.requires_grad_() for x in tensors)
    torch.library.opcheck(deformable_sum, (value, SIDES, locations, weights))


def make_encoder() -> DeformableTransformer:
    torch.manual_seed(0)
    return DeformableTransformer(
        dim=16, num_heads=2, encoder_layers=2, decoder_layers=1, feedforward_dim=32, num_levels=2
    ).eval()


class Encode(nn.Module):
    """Levels to encoder memory."""

    def __init__(self) -> None:
        super().__init__()
        self.transformer = make_encoder()

    def forward(self, *levels: Tensor) -> Tensor:
        masks = [level.new_zeros(level[:, 0].shape, dtype=torch.bool) for level in levels]
        return self.transformer.encode(levels, masks)[0]


def pyramid() -> list[Tensor]:
    generator = torch.Generator().manual_seed(3)
    return [torch.randn(1, 16, *shape, generator=generator) for shape in SHAPES]


def test_compiled_encoder_is_one_graph_and_answers_the_same() -> None:
    encode, levels = Encode(), pyramid()
    compiled = torch.compile(encode, backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(*levels), encode(*levels), atol=1e-5, rtol=1e-5)


def test_compiled_encoder_has_the_same_gradients() -> None:
    encode, levels = Encode(), pyramid()
    compiled = torch.compile(encode, backend="aot_eager", fullgraph=True)
    found = []
    for run in (encode, compiled):
        encode.zero_grad()
        (run(*levels) ** 2).sum().backward()
        found.append([p.grad.clone() for p in encode.transformer.encoder.parameters()])
    for eager, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, eager, atol=1e-4, rtol=1e-4)


def test_exported_encoder_holds_the_operator_once_per_layer() -> None:
    encode, levels = Encode(), tuple(pyramid())
    program = torch.export.export(encode, levels)
    targets = [node.target for node in program.graph.nodes]
    assert targets.count(torch.ops.unified.deformable_sum.default) == 2
    with torch.no_grad():
        torch.testing.assert_close(program.module()(*levels), encode(*levels))


@pytest.mark.parametrize("device", DEVICES)
def test_checkpointed_layer_has_the_same_gradients(device: str) -> None:
    layer = make_encoder().encoder.layers[0].to(device)
    layout = TokenLayout.from_masks(
        [torch.zeros(1, *shape, dtype=torch.bool, device=device) for shape in SHAPES]
    )
    tokens = torch.cat([level.flatten(2) for level in pyramid()], dim=2).transpose(1, 2).to(device)
    reference = torch.cat(layout.pixel_centres(), dim=1)[:, :, None].expand(-1, -1, 2, -1)
    found = []
    for again in (False, True):
        leaf = tokens.clone().requires_grad_()
        call = (leaf, torch.zeros_like(leaf), reference, layout)
        out = checkpoint(layer, *call, use_reentrant=False) if again else layer(*call)
        (out**2).sum().backward()
        found.append(leaf.grad)
    torch.testing.assert_close(found[1], found[0])
