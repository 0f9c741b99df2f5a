"""What CPUs compute in another order gives the same numbers, with and without padding."""

from __future__ import annotations

import pytest
import torch

from unified.modeling import attention, deform_attn
from unified.modeling.attention import attend, attend_alike
from unified.modeling.deform_attn import MultiScaleDeformableAttention
from unified.modeling.fusion import CrossAttention
from unified.modeling.mask_encoder import convolve
from unified.modeling.transformer import Encoder, EncoderLayer, TokenLayout

DIM = 32


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def padding(batch: int, length: int) -> torch.Tensor:
    mask = torch.zeros(batch, length, dtype=torch.bool)
    mask[-1, length // 2 :] = True
    return mask


def build_attention() -> CrossAttention:
    layer = CrossAttention(dim=DIM, num_heads=4, head_dim=DIM)
    for parameter in layer.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return layer.eval()


def test_folded_projections_give_what_the_formula_gives() -> None:
    layer = build_attention()
    query, key, value = torch.randn(2, 20, DIM), torch.randn(2, 30, DIM), torch.randn(2, 30, DIM)
    with torch.no_grad():
        folded = layer(query, key, value, padding(2, 30))
        layer.fold_on_cpu = False
        plain = layer(query, key, value, padding(2, 30))
    torch.testing.assert_close(folded, plain, rtol=1e-5, atol=1e-5)
    assert not torch.equal(folded, plain), "both took the same path: nothing was compared"


def test_folded_projections_in_bfloat16_are_as_close_as_the_formula_in_bfloat16() -> None:
    layer = build_attention()
    query, key, value = torch.randn(1, 200, DIM), torch.randn(1, 300, DIM), torch.randn(1, 300, DIM)
    with torch.no_grad():
        exact = layer(query, key, value, padding(1, 300))
        layer.dtype = torch.bfloat16
        folded = layer(query, key, value, padding(1, 300))
        layer.backend = "eager"
        formula = layer(query, key, value, padding(1, 300))
    limit = 2 * (formula - exact).pow(2).mean().sqrt()
    assert 0 < (folded - exact).pow(2).mean().sqrt() < limit


@pytest.mark.parametrize("pays", [True, False])
def test_bfloat16_is_used_where_it_pays(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, pays: bool
) -> None:
    """Where it does not, one line says so, and float32 gives the answer."""
    times = iter([1.0, 0.9 if pays else 2.5] * 4)
    monkeypatch.setattr(attention, "_seconds", lambda *_: next(times))
    attention.bfloat16_pays.cache_clear()
    query, key = (torch.randn(1, 2, n, 16).bfloat16() for n in (9, 12))
    found = attend(query, key, key)
    attend(query, key, key)
    attention.bfloat16_pays.cache_clear()
    wide = attend(query.float(), key.float(), key.float()).bfloat16()
    assert found.dtype == torch.bfloat16 and torch.equal(found, wide) != pays
    assert caplog.messages == (
        []
        if pays
        else [
            "attention in bfloat16 takes 2.5 times as long as in float32 on this processor: "
            "float32 is used for it"
        ]
    )


def test_objects_of_one_frame_share_weights_where_bfloat16_does_not_pay(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As in float32, whose answer it is."""
    once, sizes = attention._weights_once, []
    monkeypatch.setattr(attention, "bfloat16_pays", lambda: False)
    monkeypatch.setattr(attention, "_weights_once", lambda *x: sizes.append(len(x[2])) or once(*x))
    query, key, value = (torch.randn(b, 2, n, 16).bfloat16() for b, n in ((1, 9), (1, 12), (3, 12)))
    mask = padding(1, 12).expand(3, -1)
    found = attend_alike(query, key, value, mask)
    wide = attend_alike(query.float(), key.float(), value.float(), mask).bfloat16()
    assert torch.equal(found, wide) and sizes == [3, 3]


def test_gradients_take_the_plain_path_and_reach_every_parameter() -> None:
    layer = build_attention()
    output = layer(
        torch.randn(1, 5, DIM), torch.randn(1, 7, DIM), torch.randn(1, 7, DIM), padding(1, 7)
    )
    output.square().sum().backward()
    for name, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name


@pytest.mark.parametrize("block_entries", [1, 1 << 10, 1 << 24])
def test_blocks_of_rows_change_nothing(monkeypatch: pytest.MonkeyPatch, block_entries: int) -> None:
    monkeypatch.setattr(attention, "_CPU_BLOCK_ENTRIES", block_entries)
    query, key, value = (torch.randn(2, 3, length, DIM).bfloat16() for length in (50, 70, 70))
    for mask in (None, padding(2, 70)):
        blocks = attend(query, key, value, mask)
        formula = attend(query, key, value, mask, backend="eager")
        torch.testing.assert_close(blocks.float(), formula.float(), rtol=0, atol=2e-2)


def test_large_scores_keep_their_differences_in_bfloat16() -> None:
    # All scores of a row are near 200, where bfloat16 steps by 1: only differences can be kept.
    shift = torch.zeros(DIM)
    shift[0] = 200 * DIM**0.5
    key = torch.randn(1, 1, 90, DIM)
    query = torch.randn(1, 1, 40, DIM)
    query[..., 0], key[..., 0] = 1.0, 0.0
    value = torch.randn(1, 1, 90, DIM).bfloat16()
    moved = attend(query.bfloat16(), (key + shift).bfloat16(), value)
    plain = attend(query.bfloat16(), key.bfloat16(), value)
    torch.testing.assert_close(moved.float(), plain.float(), rtol=0, atol=2e-2)


def test_feed_forward_by_parts_gives_what_the_whole_gives() -> None:
    layer = EncoderLayer(
        dim=DIM, feedforward_dim=64, num_heads=4, num_levels=1, num_points=2, dropout=0.0
    )
    layout = TokenLayout.from_masks([torch.zeros(2, 6, 7, dtype=torch.bool)])
    tokens, position = torch.randn(2, 42, DIM), torch.randn(2, 42, DIM)
    reference = torch.rand(2, 42, 1, 2)
    whole = layer(tokens, position, reference, layout)
    layer.cpu_part = 10
    parts = layer(tokens, position, reference, layout)
    torch.testing.assert_close(parts, whole, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("head_dim", [8, DIM])
def test_objects_of_one_frame_get_what_they_get_alone(head_dim: int) -> None:
    layer = CrossAttention(dim=DIM, num_heads=2, head_dim=head_dim).eval()
    query, key = torch.randn(1, 300, DIM), torch.randn(1, 40, DIM)
    values, mask = torch.randn(3, 40, DIM), padding(1, 40)
    with torch.no_grad():
        together = layer(query, key, values, mask.expand(3, -1))
        alone = [layer(query, key, value[None], mask) for value in values]
    torch.testing.assert_close(together, torch.cat(alone), rtol=1e-5, atol=1e-6)


def test_weights_of_one_frame_are_computed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, values = build_attention(), torch.randn(3, 40, DIM)
    query, key, mask = torch.randn(1, 30, DIM), torch.randn(1, 40, DIM), padding(1, 40)
    monkeypatch.setattr(attention, "attend", None)
    with torch.no_grad():
        layer(query, key, values, mask.expand(3, -1))
    with pytest.raises(TypeError):  # of other padding each
        layer(query, key, values, padding(3, 40))


def test_a_part_that_repeats_one_image_is_convolved_once() -> None:
    conv = torch.nn.Conv2d(5, 4, 3, padding=1, stride=2)
    own, shared = torch.randn(3, 2, 9, 8), torch.randn(1, 3, 9, 8)
    with torch.no_grad():
        ours = convolve(conv, own, shared.expand(3, -1, -1, -1))
        expected = conv(torch.cat((own, shared.repeat(3, 1, 1, 1)), dim=1))
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def stirred(module: torch.nn.Module) -> torch.nn.Module:
    """In eval mode, with weights that leave nothing out."""
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return module.eval()


SHAPES = ((6, 7), (3, 4), (2, 2))


@pytest.mark.parametrize("sides", [2, 4], ids=["points", "boxes"])
@pytest.mark.parametrize("cost", [0, 1 << 30], ids=["tokens are summed", "values are summed"])
def test_samples_are_summed_on_a_cpu_as_they_are_to_learn(
    monkeypatch: pytest.MonkeyPatch, sides: int, cost: int
) -> None:
    """Before or after the projection; references reach beyond the image on all sides."""
    monkeypatch.setattr(deform_attn, "_COST_OF_A_SAMPLE", cost)
    layer = stirred(MultiScaleDeformableAttention(dim=DIM, num_levels=3, num_points=3))
    query, tokens = torch.randn(2, 9, DIM), torch.randn(2, 58, DIM)
    reference = torch.rand(2, 9, 3, sides) * 1.4 - 0.2
    inputs = query, reference, tokens, SHAPES, padding(2, 58)
    with torch.no_grad():
        found = layer(*inputs)
    torch.testing.assert_close(found, layer(*inputs), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("alike", [False, True], ids=["padding differs", "of one image"])
def test_an_encoder_gives_on_a_cpu_what_it_gives_to_learn(alike: bool) -> None:
    options = {"dim": DIM, "feedforward_dim": 64, "num_heads": 4, "num_points": 2, "dropout": 0.0}
    encoder = stirred(Encoder(2, num_levels=3, **options))
    masks = [torch.zeros(1 if alike else 2, *shape, dtype=torch.bool) for shape in SHAPES]
    for mask in masks:
        mask[-1, :, -1] = True
    layout = TokenLayout.from_masks([mask.expand(2, -1, -1) for mask in masks])
    tokens, position = torch.randn(2, 58, DIM), torch.randn(len(masks[0]), 58, DIM)
    with torch.no_grad():
        found = encoder(tokens, position, layout)
    torch.testing.assert_close(found, encoder(tokens, position, layout), rtol=1e-4, atol=1e-4)


class Wrapped(torch.nn.Module):
    """As torch and others wrap layers."""

    def __init__(self, layer: torch.nn.Module) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, *inputs: object) -> torch.Tensor:
        answer: torch.Tensor = self.layer(*inputs)
        return answer


@pytest.mark.parametrize(("num", "asked"), [(1, 0), (3, 1)])
def test_what_position_adds_is_known_before_for_several_images_alone(
    monkeypatch: pytest.MonkeyPatch, num: int, asked: int
) -> None:
    """The first layer is not asked, as it is wrapped, but it is not left out."""
    calls, ahead = [], MultiScaleDeformableAttention.token_sampling
    monkeypatch.setattr(
        MultiScaleDeformableAttention, "token_sampling", lambda *x: calls.append(0) or ahead(*x)
    )
    options = {"dim": DIM, "feedforward_dim": 64, "num_heads": 4, "num_points": 2, "dropout": 0.0}
    encoder = stirred(Encoder(2, num_levels=3, **options))
    encoder.layers[0] = Wrapped(encoder.layers[0])
    layout = TokenLayout.from_masks(
        [torch.zeros(num, *shape, dtype=torch.bool) for shape in SHAPES]
    )
    tokens, position = torch.randn(num, 58, DIM), torch.randn(1, 58, DIM)
    with torch.no_grad():
        found = encoder(tokens, position, layout)
    assert len(calls) == asked
    torch.testing.assert_close(found, encoder(tokens, position, layout), rtol=1e-4, atol=1e-4)


def test_keys_that_all_ignore_are_left_out() -> None:
    query, key, value = (torch.randn(2, 3, length, DIM) for length in (20, 30, 30))
    mask = torch.arange(30)[None].expand(2, -1) % 7 == 6
    with torch.no_grad():
        found = attend(query, key, value, mask)
    torch.testing.assert_close(found, attend(query, key, value, mask, backend="eager"))
