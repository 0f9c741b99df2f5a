"""Training of the small model against the clock: pictures in a file, scenes, questions, losses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from projects.sam.context import Context
from projects.sam.mask_encoder import PatchMaskEncoder
from projects.sam.mobile import train as training
from projects.sam.mobile.asking import Asker, mask_losses
from projects.sam.mobile.bank import SceneBank, Sizes
from projects.sam.mobile.pictures import GRID, Picture, collect, load, save
from projects.sam.mobile.plans import FRAMES, about_place
from projects.sam.mobile.scenes import SceneMaker
from projects.sam.model import SamUniFusion
from tests.projects.sam.test_fusion import make_small
from tests.projects.sam.tiny import DIM, SIDE
from unified.checkpoint import read_weights
from unified.errors import InputError
from unified.modeling.backbones import build_backbone

SIZE = (384, 512)  # of the pictures on their canvas
DEVICE = torch.device("cpu")


def picture(seed: int = 0, clip: tuple[str, int] = ("", 0)) -> Picture:
    """A red square at the left and a blue one at the right, on grey."""
    image = np.full((*SIZE, 3), 128, np.uint8)
    masks = []
    for x, colour in ((40, (255, 0, 0)), (300 + 20 * seed, (0, 0, 255))):
        image[100:240, x : x + 140] = colour
        mask = np.zeros((GRID, GRID), bool)
        mask[50:120, x // 2 : x // 2 + 70] = True
        masks.append(mask)
    _, jpeg = cv2.imencode(".jpg", image[..., ::-1])
    names = ["#1", "#2"] if clip[0] else ["cup", "bowl"]
    sentences = {"the cup": (0,), "the right thing": (1,), "both": (0, 1), "the dog": ()}
    return Picture(jpeg.reshape(-1), SIZE, masks, names, sentences, clip)


def maker(seed: int = 0, *, pictures: int = 3, clips: int = 0) -> SceneMaker:
    stills = [picture(i) for i in range(pictures)]
    frames = [picture(0, ("walk", i)) for i in range(clips)]
    return SceneMaker([*stills, *frames], DEVICE, seed=seed, side=SIDE)


def mobile() -> SamUniFusion:
    """Tiny; ``Context`` sees classes of nothing, it is untrained."""
    context = Context(build_backbone("efficientnet_lite0", freeze_at=5), dim=DIM)
    model = make_small(context=context, mask_encoder=PatchMaskEncoder(dim=DIM))
    model.sam.freeze()
    model.sam.mask_decoder.requires_grad_(False)
    model.text_encoder.bert.requires_grad_(False)
    return model


def test_pictures_come_back_from_their_file(tmp_path: Path) -> None:
    given = [picture(), Picture(picture().jpeg, SIZE), picture(1, ("walk", 4))]
    save(given, tmp_path / "p.npz")
    for before, after in zip(given, load(tmp_path / "p.npz"), strict=True):
        assert np.array_equal(before.jpeg, after.jpeg) and before.size == after.size
        assert before.names == after.names and before.clip == after.clip
        assert before.sentences == after.sentences
        assert all(map(np.array_equal, before.masks, after.masks))


def test_what_is_no_file_of_pictures_is_said_so(tmp_path: Path) -> None:
    (tmp_path / "text.npz").write_text("pictures")
    with pytest.raises(InputError, match="cannot be read"):
        load(tmp_path / "text.npz")
    np.savez(tmp_path / "other.npz", jpegs=np.zeros(3))
    with pytest.raises(InputError, match="holds no pictures: make it with"):
        load(tmp_path / "other.npz")


def test_sets_that_speak_of_one_picture_are_joined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    own = tmp_path / "own"
    (own / "images").mkdir(parents=True)
    cv2.imwrite(str(own / "images/a.jpg"), np.zeros((60, 80, 3), np.uint8))
    boxes = {1: [10, 10, 30, 30], 2: [50, 20, 20, 20]}
    for name, task, expressions in (
        ("words", "ris", {1: ["left cup"], 2: ["bowl"]}),
        ("things", "detection", {1: [], 2: []}),
    ):
        annotations = [
            {
                "id": i,
                "image_id": 7,
                "category_id": i,
                "bbox": [x, y, w, h],
                "area": w * h,
                "iscrowd": 0,
                "segmentation": [[x, y, x + w, y, x + w, y + h, x, y + h]],
                **({"expressions": expressions[i]} if task == "ris" else {}),
            }
            for i, (x, y, w, h) in boxes.items()
        ]
        content = {
            "images": [{"id": 7, "file_name": "a.jpg", "height": 60, "width": 80}],
            "annotations": annotations,
            "categories": [{"id": 1, "name": "cup"}, {"id": 2, "name": "bowl"}],
        }
        (own / f"{name}.json").write_text(json.dumps(content))
        (own / f"{name}.yaml").write_text(
            f"task: {task}\nsplit: train\nimages: images\nannotations: {name}.json\n"
        )
    (found,) = collect(["words", "things"], 90)
    assert found.size == SIZE and found.names == ["cup", "bowl"]
    assert found.sentences == {
        "left cup": (0,),
        "bowl": (1,),
        "the cup": (0,),
        "the bowl": (1,),
    }
    rows, columns = np.nonzero(found.masks[0])
    assert (columns.min(), rows.min(), columns.max() + 1) == (32, 32, 128)


def test_a_whole_scene_is_the_picture() -> None:
    found = maker()
    while not (plan := found.draw(0.0, 0.0)).whole or plan.flipped:
        pass
    pixels, masks, classes, inside = found.render([plan])
    assert pixels.shape == (FRAMES, 3, SIDE, SIDE) and inside[0].sum() == 12 * 16
    cup = next(i for i, channel in enumerate(plan.channels) if channel.objects == (0,))
    expected = torch.from_numpy(found.pictures[plan.pictures[0]].masks[0][8::16, 8::16])
    assert torch.equal(masks[0, cup], expected)
    red, blue = pixels[0, 0] > 1.4 * pixels[0, 2], pixels[0, 2] > 1.4 * pixels[0, 0]
    assert red[20, 10] and blue[20, 50] and not pixels[:, :, 48:].any()
    assert found.names[int(classes[0, 0, 0])] in ("cup", "bowl") or classes[0, 0, 0] == 255


def test_masks_go_where_the_pixels_go() -> None:
    found = maker(3, clips=6)
    for _ in range(8):
        plan = found.draw(0.3, 0.0)
        pixels, masks, _, _ = found.render([plan])
        for index, channel in enumerate(plan.channels):
            if channel.objects not in ((0,), (1,)):
                continue
            theirs = 0 if channel.objects == (0,) else 2
            colour = pixels[:, theirs] / pixels.sum(dim=1).clamp(min=1)
            shown = colour[:, 2::4, 2::4] > 0.5
            assert ((shown & masks[:, index]).sum() + 8) >= 0.7 * masks[:, index].sum()


def test_what_is_pasted_hides_what_is_behind() -> None:
    found = maker(1)
    plans = [plan for plan in (found.draw(0.0, 1.0) for _ in range(6)) if plan.pastes]
    _, masks, _, _ = found.render(plans)
    for s, plan in enumerate(plans):
        own = len(plan.channels) - len(plan.pastes)
        frames = masks[FRAMES * s : FRAMES * (s + 1)]
        last = frames[:, own + len(plan.pastes) - 1]
        assert not (frames[:, :own] & last[:, None]).any()
        assert plan.channels[-1].pasted


def test_left_and_right_change_places_in_a_mirrored_scene() -> None:
    found = maker()
    while not (plan := found.draw(0.0, 0.0)).flipped:
        pass
    assert plan.sentence("the right thing") == "the left thing"


@pytest.mark.parametrize("text", ["man on the left", "the second cup", "closest dog", "top shelf"])
def test_sentences_about_places(text: str) -> None:
    assert about_place(text) and not about_place("the red cup that has a stop sign")


def test_losses_of_every_kind_reach_what_is_trained() -> None:
    torch.manual_seed(0)
    model = mobile().train()
    sizes = Sizes(bank=12, fresh=2, text=4, mask=4, both=2)
    bank = SceneBank(model, maker(pictures=4, clips=5), sizes)
    asker = Asker(model, bank)
    losses = asker.losses(0)
    kinds = {
        f"{kind}_{name}"
        for kind in ("text", "mask", "both")
        for name in ("mask", "score", "coarse")
    }
    assert losses.keys() == {*kinds, "names"}
    assert asker.losses(1).keys() == {k for k in losses if not k.startswith("both")}
    sum(losses.values()).backward()
    silent = {n for n, p in model.named_parameters() if p.requires_grad and p.grad is None}
    assert not silent
    assert asker.count(losses)["text_mask"] == 2


def test_old_scenes_make_room_for_new_ones() -> None:
    bank = SceneBank(mobile().train(), maker(pictures=4), Sizes(8, 2, 1, 1, 1))
    bank.refresh()
    before = dict(bank.scenes)
    bank.refresh()
    assert bank.made == 12 and set(bank.scenes) == {0, 1, 4, 5, 6, 7}
    assert all(bank.scenes[place] is before[place] for place in (4, 5, 6, 7))


def test_of_several_answers_the_best_counts() -> None:
    masks = torch.zeros(1, 8, 8, dtype=torch.bool)
    masks[:, :4] = True
    right = (masks.float() * 20 - 10)[:, None]
    logits = torch.cat([-right, right, torch.zeros_like(right)], dim=1)
    inside = torch.ones_like(masks)
    perfect = torch.tensor([[0.0, 1.0, 0.0]])
    found = mask_losses(logits, perfect, masks, inside)
    alone = mask_losses(-right, torch.zeros(1, 1), masks, inside)
    assert found["score"] == 0 and alone["score"] == 0
    assert 0.09 < found["mask"] / alone["mask"] * 3 < 0.14
    absent = mask_losses(logits, perfect * 0, masks & False, inside)
    assert absent["score"] == 0


def test_a_run_writes_its_losses_and_the_mean_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = mobile().train()
    before = {n: p.detach().clone() for n, p in model.named_parameters() if p.requires_grad}
    bank = SceneBank(model, maker(pictures=4), Sizes(bank=8, fresh=1, text=2, mask=2, both=1))
    monkeypatch.setattr(training, "_prepare", lambda options: (model, bank))
    monkeypatch.setattr(training, "LOG_EVERY", 2)
    output = tmp_path / "small.safetensors"
    training.main(
        [
            *("--config-file", "none.yaml", "--pictures", "none.npz", "--output", str(output)),
            *("--steps", "3", "--seconds", "1000"),
        ]
    )
    lines = [json.loads(line) for line in output.with_suffix(".jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [1, 2]
    assert lines[0].keys() >= {"seconds", "scenes", "text_mask", "both_mask", "norm", "names"}
    assert "both_mask" not in lines[1]  # asked every second time
    written = read_weights(output)
    assert written.keys() == before.keys()
    assert all(value.dtype == torch.float16 for value in written.values())
    assert any(not torch.equal(written[n].float(), before[n].half().float()) for n in written)


def test_a_run_ends_when_its_time_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = mobile().train()
    bank = SceneBank(model, maker(pictures=4), Sizes(bank=8, fresh=1, text=1, mask=1, both=1))
    monkeypatch.setattr(training, "_prepare", lambda options: (model, bank))
    output = tmp_path / "small.safetensors"
    arguments = ["--config-file", "none.yaml", "--pictures", "none.npz", "--output", str(output)]
    training.main([*arguments, "--seconds", "0"])
    assert output.is_file() and output.with_suffix(".jsonl").read_text() == ""


def test_a_gradient_that_is_no_number_changes_nothing() -> None:
    layer = torch.nn.Linear(2, 2)
    learner = training.Learner(layer)
    before = layer.weight.detach().clone()
    norm = learner.learn({"a": layer.weight.sum() * float("nan")}, spent=0.5)
    assert float(norm) == 0 and layer.weight.isfinite().all()
    torch.testing.assert_close(layer.weight, before, atol=1e-5, rtol=0)  # decay alone
