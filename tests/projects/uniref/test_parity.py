"""Recorded runs of the reference on its full R50 video model.

The files are recordings of the reference implementation; those of det, ground and fss1 hold every
tenth of the recorded masks, those of detpad and groundpad every fifth. How far a float may be off
is in noise.json: the recording's own difference between float32 and float64, ten times.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from projects.uniref.model import UniRef
from projects.uniref.parity import (
    compare_recorded,
    kind_of,
    load_recorded_weights,
    replay,
)
from projects.uniref.parity.parts import replay_call
from projects.uniref.parity.recorded import RECORDED_NOISE, make_weight
from projects.uniref.parity.ties import recorded_order
from unified.engine.config import load_config
from unified.engine.models import CONFIGS
from unified.engine.system import system
from unified.errors import CheckpointError, InputError
from unified.parity import Comparison, NoiseFloor, read_arrays

DATA = Path(__file__).parents[2] / "data" / "uniref"
KINDS = {
    "det": "call",
    "detpad": "call",
    "features": "features",
    "fss1": "call",
    "ground": "call",
    "groundpad": "call",
    "maskenc": "maskenc",
    "msdeform": "msdeform",
    "post_ris": "post",
    "text": "text",
    "unifusion": "unifusion",
    "video_rvos_refdavis": "video",
    "video_vos": "video",
    "video_vos_pad": "video",
    "vos": "call",
}
VIDEOS = [name for name, kind in KINDS.items() if kind == "video"]
NOISE = NoiseFloor.beside(RECORDED_NOISE)

Arrays = dict[str, np.ndarray]
Replayed = Callable[[str], tuple[Arrays, Arrays]]


@pytest.fixture(scope="module")
def r50() -> UniRef:
    """The model with the recorded weights, loaded through the official layout."""
    model = system("UniRef").build(load_config(CONFIGS / "video_joint_r50.yaml"))
    manifest = json.loads((DATA / "manifest_r50.json").read_text())
    load_recorded_weights(model, {}, manifest)
    return model


@pytest.fixture(scope="module")
def replayed(r50: UniRef) -> Replayed:
    """Recorded and our arrays of a file, replayed once."""
    done: dict[str, tuple[Arrays, Arrays]] = {}

    def get(name: str) -> tuple[Arrays, Arrays]:
        if name not in done:
            arrays = read_arrays(DATA / f"golden_{name}.npz")
            with controller_bias(r50, arrays):
                done[name] = arrays, replay(r50, arrays)
        arrays, ours = done[name]
        return dict(arrays), {key: array.copy() for key, array in ours.items()}

    return get


@contextmanager
def controller_bias(model: UniRef, arrays: Arrays) -> Iterator[None]:
    """With the bias that some recordings set so that their masks are not trivial."""
    bias = model.mask_head.controller.layers[-1].bias
    built = float(bias[-1].detach())
    with torch.no_grad():
        bias[-1] = float(arrays.get("in/controller_last_bias", built))
        yield
        bias[-1] = built


def judge(name: str, arrays: Arrays, ours: Arrays) -> dict[str, Comparison]:
    return {r.name: r for r in compare_recorded(f"golden_{name}", arrays, ours, NOISE)}


def failed(results: dict[str, Comparison]) -> list[str]:
    return [name for name, result in results.items() if not result.passed]


@pytest.mark.parametrize("name", KINDS)
def test_a_recorded_run_replays(replayed: Replayed, name: str) -> None:
    arrays, ours = replayed(name)
    assert kind_of(arrays) == KINDS[name]
    results = judge(name, arrays, ours)
    assert failed(results) == [], "\n".join(map(str, results.values()))
    recorded = {key.removeprefix("out/") for key in arrays if key.startswith("out/")}
    assert set(results) == recorded


@pytest.mark.parametrize("name", VIDEOS)
def test_a_clip_replays_with_another_number_of_threads(r50: UniRef, name: str) -> None:
    """Rounding differs with the number of threads, and a clip carries it on in its memory."""
    arrays, threads = read_arrays(DATA / f"golden_{name}.npz"), torch.get_num_threads()
    torch.set_num_threads(2 if threads == 1 else 1)
    try:
        with controller_bias(r50, arrays):
            results = judge(name, arrays, replay(r50, arrays))
    finally:
        torch.set_num_threads(threads)
    assert failed(results) == [], "\n".join(map(str, results.values()))


@pytest.mark.parametrize("name", ["ground", "post_ris", "text", "unifusion", "vos"])
def test_one_wrong_number_fails_its_array_alone(replayed: Replayed, name: str) -> None:
    arrays, ours = replayed(name)
    for key in [key.removeprefix("out/") for key in arrays if key.startswith("out/")]:
        wrong = {**ours, key: ours[key].copy()}
        value = wrong[key].reshape(-1)[-1:]
        if value.dtype.kind == "f":
            # Beyond the allowance from wherever the replay is; the other arrays are untouched.
            value += 4 * NOISE.allowed(f"golden_{name}", key, arrays[f"out/{key}"])
        elif key == "masks":
            wrong[key][..., :2, :] ^= 1
        else:
            value[...] = ~value if value.dtype == bool else value + 1
        results = judge(name, arrays, wrong)
        assert failed(results) == [key], str(results[key])


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_numbers_that_are_none_fail(replayed: Replayed, bad: float) -> None:
    arrays, ours = replayed("ground")
    ours["pred_logits"][0, 7, 0] = bad
    assert failed(judge("ground", arrays, ours)) == ["pred_logits"]


def test_tied_proposals_are_taken_in_the_recorded_order(replayed: Replayed, r50: UniRef) -> None:
    """Another order of the closest two is found again, if they count as tied and only then."""
    arrays, ours = replayed("ground")
    load_recorded_weights(r50, arrays)
    best = np.sort(ours["enc_class"][0, :, 0])[::-1][:300]
    gaps = -np.diff(best)
    rank = int(np.where(gaps > 0, gaps, np.inf).argmin())
    token, other = (int(index) for index in ours["topk_idx"][0, rank : rank + 2])

    def exchange(_: object, __: object, logits: Tensor) -> Tensor:
        logits = logits.clone()
        logits[0, [token, other]] = logits[0, [other, token]]
        return logits

    handle = r50.head.class_embed[-1].register_forward_hook(exchange)
    recording = replay(r50, {k: v for k, v in arrays.items() if k != "out/pred_logits"})
    handle.remove()
    assert list(recording["topk_idx"][0, rank : rank + 2]) == [other, token]
    logits = torch.from_numpy(recording["pred_logits"])
    for tied, same in ((2 * gaps[rank], True), (0.5 * gaps[rank], False)):
        with torch.no_grad(), recorded_order(r50, logits, tied):
            again = replay_call(r50, arrays)
        found = np.allclose(again["pred_logits"], recording["pred_logits"], atol=1e-5)
        assert found == same, tied


@pytest.mark.parametrize("kept", [0.0, -0.1], ids=["exact", "reversed"])
def test_groups_of_ties_are_taken_in_the_recorded_order(
    replayed: Replayed, r50: UniRef, kept: float
) -> None:
    """Proposals of which several in a row tie, exactly or in the opposite order."""
    arrays, ours = replayed("ground")
    recorded, grid = arrays["out/pred_logits"], 2e-4
    best = np.sort((ours["enc_class"][0, :, 0] / grid).round())[::-1][:300]
    assert np.unique(best, return_counts=True)[1].max() >= 3

    def round_off(_: object, __: object, logits: Tensor) -> Tensor:
        rounded = (logits / grid).round() * grid
        return rounded + kept * (logits - rounded)

    handle = r50.head.class_embed[-1].register_forward_hook(round_off)
    try:
        with torch.no_grad():
            taken = replay_call(r50, arrays)["pred_logits"].numpy()
            with recorded_order(r50, torch.from_numpy(recorded), tied=grid / 2):
                found = replay_call(r50, arrays)
    finally:
        handle.remove()
    assert np.abs(taken - recorded).max() > 1e-2
    assert np.array_equal(found["topk_idx"].numpy(), arrays["out/topk_idx"])
    assert np.abs(found["pred_logits"].numpy() - recorded).max() < 1e-4


def test_an_array_that_nobody_replays_is_an_error(replayed: Replayed) -> None:
    arrays, ours = replayed("text")
    with pytest.raises(InputError, match=r"golden_text: no replay .* arrays surprise"):
        judge("text", {**arrays, "out/surprise": np.zeros(1)}, ours)
    inputs = {key: array for key, array in arrays.items() if key.startswith("in/")}
    with pytest.raises(InputError, match="none at all"):
        judge("text", inputs, ours)


def test_another_shape_is_an_error(replayed: Replayed) -> None:
    arrays, ours = replayed("text")
    with pytest.raises(InputError, match="words: recorded shape"):
        judge("text", {**arrays, "out/words": arrays["out/words"][:1]}, ours)


def test_a_file_of_no_kind() -> None:
    arrays = {"a": np.zeros(1), "b": np.zeros(1)}
    assert kind_of(arrays) is None
    with pytest.raises(InputError, match=r"expected a recorded file .* got the arrays a, b"):
        replay(torch.nn.Identity(), arrays)


@pytest.mark.parametrize("damage", ["missing", "text", "truncated", "npy", "objects"])
def test_unreadable_files(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "run.npz"
    if damage == "text":
        path.write_text("no arrays")
    elif damage == "truncated":
        path.write_bytes((DATA / "golden_text.npz").read_bytes()[:20000])
    elif damage == "npy":
        with open(path, "wb") as file:
            np.save(file, np.zeros(3))
    elif damage == "objects":
        np.savez(path, x=np.array([{}], dtype=object))
    with pytest.raises(InputError, match=r"run\.npz cannot be read"):
        read_arrays(path)


def test_a_manifest_of_another_model_is_refused(r50: UniRef) -> None:
    manifest = {"detr.detr.unknown.weight": [[2, 2], "float32"]}
    with pytest.raises(CheckpointError, match="belong to another model"):
        load_recorded_weights(r50, {}, manifest)


def test_the_recipe_of_the_weights() -> None:
    """By kind of entry, in the order of the rules."""
    assert (make_weight("a.running_var", (1000,)) >= 0.5).all()
    assert np.abs(make_weight("a.running_mean", (1000,)).std() - 0.1) < 0.01
    assert abs(make_weight("a.norm.weight", (1000,)).mean() - 1) < 0.02
    assert abs(make_weight("a.norm.bias", (1000,)).std() - 0.02) < 2e-3
    assert abs(make_weight("text_encoder.embeddings.x.weight", (100, 50)).std() - 0.02) < 2e-3
    assert abs(make_weight("detr.detr.query_embed.weight", (100, 50)).std() - 0.5) < 0.02
    assert abs(make_weight("a.conv.weight", (64, 16, 3, 3)).std() - 1 / 12) < 2e-3
    assert abs(make_weight("detr.controller.layers.2.weight", (99, 64)).std() - 0.025) < 2e-3
    for name in ("bbox_embed.3.layers.0.weight", "class_embed.6.weight"):
        alias = make_weight(f"detr.detr.transformer.decoder.{name}", (4, 4))
        assert np.array_equal(alias, make_weight(f"detr.detr.{name}", (4, 4)))
        assert alias.dtype == np.float32
    other = make_weight("detr.detr.class_embed.5.weight", (4, 4))
    assert not np.array_equal(other, make_weight("detr.detr.class_embed.6.weight", (4, 4)))
