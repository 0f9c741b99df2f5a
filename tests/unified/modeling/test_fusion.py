"""The contract of every registered fusion layer; a new one is covered by being registered.

Those that systems bring are registered by finding the systems.
"""

from __future__ import annotations

import importlib

import pytest
import torch
from torch import Tensor

from unified.engine.system import find_systems
from unified.errors import ConfigError
from unified.modeling.fusion import FUSION_REGISTRY, FusionLayer, UniFusion, build_fusion
from unified.structures import Reference, join

for found in find_systems().values():
    for module in found.extensions:
        importlib.import_module(module)

DIM = 32
B, N = 3, 20


def open_layer(name: str, **options: object) -> FusionLayer:
    """A layer whose every zero-initialised weight is random, so that its gate is open."""
    torch.manual_seed(0)
    layer = build_fusion(name, dim=DIM, num_heads=4, head_dim=16, **options)
    with torch.no_grad():
        for parameter in layer.parameters():
            if not parameter.any():
                parameter.normal_(std=0.2)
    return layer.eval()


def reference(num: int, seed: int, *, lengths: tuple[int, ...] | None = None) -> Reference:
    """``num`` tokens for each of B images, of which ``lengths`` are no padding."""
    generator = torch.Generator().manual_seed(seed)
    padding_mask = torch.zeros(B, num, dtype=torch.bool)
    for row, length in enumerate(lengths or ()):
        padding_mask[row, length:] = True
    return Reference(
        keys=torch.randn(B, num, DIM, generator=generator),
        values=torch.randn(B, num, DIM, generator=generator),
        padding_mask=padding_mask,
        summary=torch.randn(B, DIM, generator=generator),
    )


def text() -> Reference:
    """Keys are values, few tokens, uneven lengths."""
    words = reference(7, seed=1, lengths=(7, 3, 5))
    return Reference(words.keys, words.keys, words.padding_mask, words.summary)


def mask() -> Reference:
    return reference(N, seed=2, lengths=(N, 12, N))


KINDS = {"text": (text,), "mask": (mask,), "both": (text, mask)}


def tokens() -> Tensor:
    return torch.randn(B, N, DIM, generator=torch.Generator().manual_seed(3))


def references(kind: str) -> list[Reference]:
    return [make() for make in KINDS[kind]]


each_layer = pytest.mark.parametrize("name", sorted(FUSION_REGISTRY))
each_kind = pytest.mark.parametrize("kind", KINDS)


@each_layer
def test_identity_without_references(name: str) -> None:
    assert torch.equal(open_layer(name)(tokens(), []), tokens())


@each_layer
@each_kind
def test_identity_at_initialisation(name: str, kind: str) -> None:
    layer = build_fusion(name, dim=DIM, num_heads=4, head_dim=16)
    assert torch.equal(layer(tokens(), references(kind)), tokens())


@each_layer
@each_kind
def test_references_change_the_tokens_and_keep_their_shape(name: str, kind: str) -> None:
    layer = open_layer(name)
    fused = layer(tokens(), references(kind))
    assert fused.shape == tokens().shape and fused.isfinite().all()
    change = (fused - tokens()).abs().mean()
    assert change > 1e-2 if layer.inputs else change == 0


@each_layer
def test_order_of_references_is_irrelevant(name: str) -> None:
    layer, given = open_layer(name), [text(), mask(), reference(4, seed=5)]
    torch.testing.assert_close(
        layer(tokens(), given), layer(tokens(), given[::-1]), atol=1e-5, rtol=0
    )


@each_layer
@each_kind
def test_padding_changes_nothing(name: str, kind: str) -> None:
    """Neither what stands on padding nor how much of it there is."""
    layer = open_layer(name)

    def padded(original: Reference, extra: int) -> Reference:
        garbage = torch.full((B, extra, DIM), 50.0)
        keys, values = (
            torch.cat([x.masked_fill(original.padding_mask[..., None], -30.0), garbage], dim=1)
            for x in (original.keys, original.values)
        )
        padding_mask = torch.cat(
            [original.padding_mask, torch.ones(B, extra, dtype=torch.bool)], dim=1
        )
        return Reference(keys, values, padding_mask, original.summary)

    expected = layer(tokens(), references(kind))
    for extra in (0, 9):
        ours = layer(tokens(), [padded(one, extra) for one in references(kind)])
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=0)


@each_layer
@each_kind
def test_batch_equals_loop(name: str, kind: str) -> None:
    layer, batch = open_layer(name), references(kind)
    together = layer(tokens(), batch)
    for image in range(B):
        row = slice(image, image + 1)
        alone = layer(tokens()[row], [one[row] for one in batch])
        torch.testing.assert_close(together[row], alone, atol=1e-5, rtol=0)


@each_layer
@each_kind
def test_gradient_reaches_every_parameter_and_what_the_layer_reads(name: str, kind: str) -> None:
    layer = open_layer(name).train()
    image = tokens().requires_grad_()
    given = references(kind)
    leaves, others = [image], []
    for one in given:
        for field in ("keys", "values", "summary"):
            leaf = getattr(one, field).requires_grad_()
            (leaves if field in layer.inputs else others).append(leaf)
    fused = layer(image, given)
    (fused * torch.randn(fused.shape, generator=torch.Generator().manual_seed(0))).sum().backward()
    for key, parameter in layer.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().sum() > 0, key
    for leaf in leaves:
        assert leaf.grad is not None and leaf.grad.abs().sum() > 0
    assert all(leaf.grad is None for leaf in others)


@each_layer
@each_kind
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_stays_close_to_float32(name: str, kind: str, dtype: torch.dtype) -> None:
    layer = open_layer(name)
    expected = layer(tokens(), references(kind))
    with torch.no_grad(), torch.autocast("cpu", dtype=dtype):
        ours = layer(tokens(), references(kind))
    assert ours.isfinite().all()
    assert (ours.float() - expected).abs().max() < 0.02 * expected.abs().max() + 0.02


@each_layer
def test_a_reference_of_another_width_is_refused(name: str) -> None:
    narrow = torch.randn(B, N, DIM // 2)
    with pytest.raises(ConfigError, match="reference has 32 channels, features have 16"):
        open_layer(name)(narrow, [text()])


@each_layer
@pytest.mark.parametrize("backend", ["sdpa", "eager"])
def test_a_frame_joined_with_itself_says_nothing_new(name: str, backend: str) -> None:
    """Attention to a doubled set of tokens is attention to the set: the first video frame."""
    layer = open_layer(name, backend=backend)
    once, twice = layer(tokens(), [mask()]), layer(tokens(), [join([mask(), mask()])])
    torch.testing.assert_close(once, twice, atol=1e-5, rtol=0)


def test_unifusion_is_its_formula() -> None:
    layer = open_layer("UniFusion")
    assert isinstance(layer, UniFusion)
    words, image = text(), tokens()
    expected = image.clone()
    attention = layer.attention
    for row in range(B):
        keep = ~words.padding_mask[row]
        query = attention.q_proj(layer.norm_query(image[row]))
        key = attention.k_proj(layer.norm_key(words.keys[row][keep]))
        value = attention.v_proj(words.values[row][keep])
        heads = []
        for head in range(4):
            part = slice(16 * head, 16 * (head + 1))
            weights = (query[:, part] @ key[:, part].T / 16**0.5).softmax(dim=-1)
            heads.append(weights @ value[:, part])
        attended = attention.out_proj(torch.cat(heads, dim=1))
        shift, scale, gate = layer.modulation(words.summary[row]).chunk(3)
        expected[row] += gate * (attended * (1 + scale) + shift)
    torch.testing.assert_close(layer(image, [words]), expected, atol=1e-5, rtol=0)


def test_film_adds_the_tokens_scaled_by_the_mean_of_the_values() -> None:
    layer = open_layer("FilmUniFusion")
    plain = build_fusion("UniFusion", dim=DIM, num_heads=4, head_dim=16).eval()
    state = layer.state_dict()
    plain.load_state_dict({k: v for k, v in state.items() if not k.startswith("film.")})
    words = text()
    means = torch.stack([words.values[i, :n].mean(dim=0) for i, n in enumerate((7, 3, 5))])
    scale = torch.nn.functional.silu(means) @ state["film.1.weight"].T + state["film.1.bias"]
    normal = torch.nn.functional.layer_norm(
        tokens(), (DIM,), state["norm_query.weight"], state["norm_query.bias"]
    )
    torch.testing.assert_close(
        layer(tokens(), [words]), plain(tokens(), [words]) + normal * scale[:, None]
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_attention_alone_in_half_precision(dtype: torch.dtype) -> None:
    """As the reference runs: everything in float32 but queries, keys and values."""
    expected = open_layer("UniFusion")(tokens(), references("both"))
    with torch.no_grad():
        ours = open_layer("UniFusion", attention_dtype=dtype)(tokens(), references("both"))
    assert ours.dtype == torch.float32
    torch.testing.assert_close(ours, expected, atol=3e-2, rtol=0)


def test_attention_dropout_only_in_training() -> None:
    layer = open_layer("UniFusion", dropout=0.5)
    assert torch.equal(layer(tokens(), [text()]), layer(tokens(), [text()]))
    layer.train()
    assert not torch.equal(layer(tokens(), [text()]), layer(tokens(), [text()]))


def test_unknown_name() -> None:
    known = r"'Concat' is unknown: registered are \[.*'NoFusion', .*'UniFusion'"
    with pytest.raises(ConfigError, match=known):
        build_fusion("Concat")
