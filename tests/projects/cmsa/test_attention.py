"""Cross-modal self-attention against its formula on pairs that are written out."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from projects.cmsa import attention
from projects.cmsa.attention import CrossModalSelfAttention, coordinates, words_first

VISUAL, WORD, GRID = 5, 6, (5, 4)


def make(reduced: int | None) -> CrossModalSelfAttention:
    torch.manual_seed(0)
    return CrossModalSelfAttention(
        visual_dim=VISUAL, word_dim=WORD, inner_dim=3, out_dim=4, reduced_dim=reduced
    ).double()


def inputs(num: int, batch: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    visual = torch.randn(batch, VISUAL, *GRID, generator=generator, dtype=torch.double)
    words = torch.randn(batch, num, WORD, generator=generator, dtype=torch.double)
    return visual, words, torch.zeros(batch, num, dtype=torch.bool)


def formula(layer: CrossModalSelfAttention, visual: Tensor, words: Tensor) -> Tensor:
    """One picture and one sentence, every pair written out: (C, H, W)."""
    height, width = GRID
    place = coordinates(*GRID, like=visual).unflatten(0, GRID)
    pixels = visual.movedim(0, -1)
    pairs = torch.stack(
        [torch.cat((pixels, w.expand(height, width, -1), place), dim=-1) for w in words]
    )  # (N, H, W, V + W + 8)
    if layer.reduce is not None:
        pairs = F.relu(F.linear(pairs, layer.reduce.weight, layer.reduce.bias))

    def project(part: torch.nn.Linear) -> Tensor:
        return F.relu(F.linear(pairs, part.weight, part.bias))

    def pooled(x: Tensor) -> Tensor:
        blocks = [
            x[n : n + 2, i : i + 2, j : j + 2].amax(dim=(0, 1, 2))
            for n in range(0, len(words), 2)
            for i in range(0, height, 2)
            for j in range(0, width, 2)
        ]
        return torch.stack(blocks)

    key, value = pooled(project(layer.key)), pooled(project(layer.value))
    weights = (project(layer.query).flatten(0, 2) @ key.T).softmax(dim=1)
    said = F.relu(layer.output(weights @ value)).unflatten(0, pairs.shape[:3])
    return F.relu(layer.project((said + pairs).mean(dim=0))).movedim(-1, 0)


each_kind = pytest.mark.parametrize("reduced", [None, 7])


@each_kind
@pytest.mark.parametrize("num", [1, 4, 5])
def test_it_is_the_formula(reduced: int | None, num: int) -> None:
    layer, (visual, words, mask) = make(reduced), inputs(num)
    torch.testing.assert_close(
        layer(visual, words, mask)[0], formula(layer, visual[0], words[0]), atol=1e-12, rtol=0
    )


@each_kind
def test_batch_equals_loop_wherever_the_padding_is(reduced: int | None) -> None:
    """Sentences of 5, 2 and 3 words, padded at the left, at the right and inside."""
    layer, (visual, words, mask) = make(reduced), inputs(5, batch=3)
    mask[1, :3] = True
    mask[2, 1], mask[2, 3] = True, True
    words = words.masked_fill(mask[..., None], 50.0)
    together = layer(visual, words, mask)
    for row in range(3):
        alone = formula(layer, visual[row], words[row][~mask[row]])
        torch.testing.assert_close(together[row], alone, atol=1e-12, rtol=0)


@each_kind
def test_training_computes_the_same_and_reaches_every_parameter(reduced: int | None) -> None:
    layer, (visual, words, mask) = make(reduced), inputs(3, batch=2)
    mask[1, 2] = True
    expected = layer.eval()(visual, words, mask)
    ours = layer.train()(visual.requires_grad_(), words.requires_grad_(), mask)
    torch.testing.assert_close(ours, expected, atol=1e-12, rtol=0)
    ours.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.any(), name
    assert visual.grad is not None and visual.grad.any()
    assert words.grad is not None and words.grad[0].any() and not words.grad[1, 2].any()


def test_computing_again_gives_the_same_gradients(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make(reduced=7).train()
    visual, words, padding = inputs(5, batch=2)
    gradients = []
    for limit in (0, attention.RECOMPUTE_FROM):
        monkeypatch.setattr(attention, "RECOMPUTE_FROM", limit)
        loss = layer(visual, words, padding).square().sum()
        gradients.append(torch.autograd.grad(loss, list(layer.parameters())))
    for again, kept in zip(*gradients, strict=True):
        assert torch.equal(again, kept)


def test_pairs_of_twenty_words_are_never_stored() -> None:
    """At 320 pixels, widths as published; 2008 channels of all pairs would be 257 MB alone."""
    layer = CrossModalSelfAttention(visual_dim=1000, word_dim=1000, inner_dim=8, out_dim=8)
    visual = torch.rand(1, 1000, 40, 40)
    words, mask = torch.rand(1, 20, 1000), torch.zeros(1, 20, dtype=torch.bool)
    largest = 0

    class Largest(TorchDispatchMode):
        def __torch_dispatch__(
            self, func: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            nonlocal largest
            result = func(*args, **(kwargs or {}))
            for x in result if isinstance(result, tuple) else (result,):
                if isinstance(x, Tensor):
                    largest = max(largest, x.numel())
            return result

    with torch.no_grad(), Largest():
        layer(visual, words, mask)
    assert 1600 * 2008 <= largest < 3 * 1600 * 2008


def test_words_come_first() -> None:
    mask = torch.tensor([[True, False, True, False], [True, True, True, False]])
    words, rest = words_first(torch.arange(8.0).reshape(2, 4, 1), mask)
    assert words[0, :, 0].tolist() == [1, 3] and words[1, 0, 0] == 7
    assert rest.tolist() == [[False, False], [False, True]]
