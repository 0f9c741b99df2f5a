"""docs/finetune.md as it stands there, typed in a folder with tiny sets, for a tiny model."""

from __future__ import annotations

import ast
import importlib.util
import json
import re
import shlex
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

import unified
from unified.checkpoint import read_weights, write_weights
from unified.data.catalog import load_records
from unified.data.formats.files import write_json
from unified.data.synthetic.clip_sets import make_clips
from unified.data.synthetic.coco_sets import CATEGORIES, add_scene
from unified.data.synthetic.world import make_scene
from unified.data.synthetic.writing import CocoFile, save_jpeg
from unified.engine.config import load_config
from unified.inference.video_io import VideoWriter
from unified.label_maps import write_label_map

ROOT = Path(__file__).parents[4]
GUIDE = (ROOT / "docs/finetune.md").read_text(encoding="utf-8")
RECIPES = [ROOT / f"configs/lite/finetune_{name}.yaml" for name in ("images", "clips")]
START = "start.safetensors"
# fmt: off
MODEL = [
    "MODEL.DEVICE", "cpu", "MODEL.UNIREF.BACKBONE_WEIGHTS", "",
    "MODEL.UNIREF.TEXT_ENCODER.WEIGHTS", "", "MODEL.UNIREF.MASK_ENCODER.WIDTH", "8",
    "MODEL.UNIREF.HIDDEN_DIM", "64", "MODEL.UNIREF.FEEDFORWARD_DIM", "64",
    "MODEL.UNIREF.ENCODER_LAYERS", "1", "MODEL.UNIREF.DECODER_LAYERS", "2",
    "MODEL.UNIREF.NUM_QUERIES", "10",
    "INFERENCE.IMAGE_SHORT_SIDE", "64", "INFERENCE.VIDEO_SHORT_SIDE", "64",
    "INFERENCE.MAX_SIZE", "96",
]
TRAINING = [
    "INPUT.MIN_SIZE_TRAIN", "(48,)", "INPUT.MAX_SIZE_TRAIN", "80", "DATALOADER.NUM_WORKERS", "0",
    "SOLVER.MAX_ITER", "2", "SOLVER.IMS_PER_BATCH", "2",
]
# fmt: on


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder: what the guide expects a user to have, and weights to start from."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DETECTRON2_DATASETS", raising=False)
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    own = tmp_path / "datasets/own"
    coco = CocoFile(CATEGORIES)
    for number in range(6):
        scene = make_scene(np.random.default_rng(number))
        add_scene(coco, scene, own / "my_images/images", f"{number}.jpg")
    write_json(own / "my_images/export.json", coco.content())
    save_jpeg(tmp_path / "photo.jpg", scene.draw()[0])
    for name in ("swan", "dog", "car"):
        clip = replace(next(make_clips(0, name, 1)), name=name)
        clip.save_images(own / "my_clips/frames")
        clip.save_label_maps(own / "my_clips/masks")
    with VideoWriter(tmp_path / "clip.mp4", fps=5, size=clip.scene.size) as writer:
        for image in clip.images[:3]:
            writer.write(image)
    write_label_map(tmp_path / "first.png", clip.label_maps[0])
    model = unified.load(RECIPES[0], device="cpu", options=[*MODEL, "MODEL.WEIGHTS", ""])
    write_weights(tmp_path / START, model.state_dict())
    return tmp_path


def test_the_guide_works_as_typed(folder: Path) -> None:
    for name, text in registrations().items():
        (folder / f"datasets/own/{name}.yaml").write_text(text)
    images, clips, loading, sentences = blocks("python")
    run_snippet(images, "HELD_OUT = 10", "HELD_OUT = 2")
    run_snippet(clips)
    run_snippet(sentences)
    assert_nothing_is_shared()
    for arguments in commands():
        run_command(arguments)
    found = re.search(r'unified\.load\("(.*?)", weights="(.*?)"\)', loading)
    assert found is not None
    model = unified.load(found[1], found[2], "cpu", MODEL)
    assert_trained_but_for_what_is_frozen(model.state_dict(), read_weights(Path(START)))
    for kind, protocol in (("images", "uniref"), ("clips", "vos-benchmark")):
        before, after = (scores(kind, protocol, when) for when in ("before", "after"))
        assert before and before.keys() == after.keys()
        *_, last = (folder / f"output/my_{kind}/evaluation.json").read_text().splitlines()
        for key, value in after.items():
            logged = json.loads(last)[f"my_{kind}_val/{protocol}/{key}"]
            assert logged == pytest.approx(value, abs=1e-6, nan_ok=True)
    evaluated = json.loads((folder / "output/my_sentences/evaluation.json").read_text())
    assert {"my_clips_val", "my_sentences_val"} <= {key.partition("/")[0] for key in evaluated}
    assert (folder / "output/photo/masks/photo.png").exists()
    assert (folder / "output/clip/masks/00002.png").exists()


def test_the_values_of_the_guide_are_those_of_both_recipes() -> None:
    rows = re.findall(r"^\| (`[A-Z].*?) \| (.*?) \|", GUIDE, flags=re.MULTILINE)
    assert len(rows) >= 8
    for recipe in RECIPES:
        cfg = load_config(recipe)
        for names, values in rows:
            found = [value_of(cfg, key) for key in re.findall("`(.*?)`", names)]
            stated = values.split("; of clips ")  # one for both, or each its own
            value = stated[-1 if recipe.stem == "finetune_clips" else 0]
            assert found == ast.literal_eval(f"[{value}]"), f"{recipe.name}: {names}"


def test_the_sets_of_the_recipes_are_registered_in_the_guide() -> None:
    splits = {
        name: "train" if "split: train" in text else "test"
        for name, text in registrations().items()
    }
    for recipe in RECIPES:
        cfg = load_config(recipe)
        assert [splits[name] for name in cfg.DATASETS.TRAIN] == ["train"]
        assert [splits[name] for name in cfg.DATASETS.TEST] == ["test"]


def blocks(language: str) -> list[str]:
    found: list[str] = re.findall(rf"```{language}\n(.*?)```", GUIDE, flags=re.DOTALL)
    return found


def registrations() -> dict[str, str]:
    """name of a set -> its yaml file, as printed in the guide."""
    pattern = r"# datasets/own/(\w+)\.yaml\n(.*)"
    found = [re.fullmatch(pattern, text, re.DOTALL) for text in blocks("yaml")]
    return {match[1]: match[2] for match in found if match is not None}


def commands() -> list[list[str]]:
    lines = "".join(blocks("bash")).replace("\\\n", " ").splitlines()
    return [shlex.split(line) for line in lines]


def run_snippet(code: str, old: str = "", new: str = "") -> None:
    assert old in code
    exec(code.replace(old, new), {})


def run_command(arguments: Sequence[str]) -> None:
    """Runs a command of the guide; only the model, its weights and sizes are other ones."""
    python, tool, *rest = arguments
    assert python == "python"
    if tool == "tools/train_net.py":
        rest += [*MODEL, *TRAINING]
        rest += [] if "MODEL.WEIGHTS" in rest else ["MODEL.WEIGHTS", START]
    elif tool != "tools/data.py":
        rest += ["--opts", *MODEL]
    assert load_tool(tool).main(rest) == 0, shlex.join(arguments)


@cache
def load_tool(path: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(Path(path).stem, ROOT / path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_nothing_is_shared() -> None:
    """No image, and no mask of a frame, is both trained on and held out."""
    train, val = load_records("my_images"), load_records("my_images_val")
    assert len({r["file_name"] for r in train}) == 4 and len({r["file_name"] for r in val}) == 2
    assert not {r["file_name"] for r in train} & {r["file_name"] for r in val}
    objects = sum(len(record["annotations"]) for record in [*train, *val])
    export = json.loads(Path("datasets/own/my_images/export.json").read_text())
    assert objects == len(export["annotations"])
    for name in ("my_clips", "my_sentences"):
        for record, other in zip(load_records(name), load_records(f"{name}_val"), strict=True):
            seen, unseen = masked_frames(record), masked_frames(other)
            assert len(seen) == len(unseen) == 4 and max(seen) < min(unseen)


def masked_frames(record: dict[str, Any]) -> set[str]:
    pairs = zip(record["frame_names"], record["mask_files"], strict=True)
    return {frame for frame, mask in pairs if mask is not None}


def assert_trained_but_for_what_is_frozen(
    trained: dict[str, torch.Tensor], start: dict[str, torch.Tensor]
) -> None:
    assert trained.keys() == start.keys()
    moved = {key for key, value in trained.items() if not torch.equal(value, start[key])}
    assert {"head", "fusion", "backbone", "text_encoder"} <= {key.split(".")[0] for key in moved}
    assert not [key for key in moved if key.startswith("text_encoder.bert.")]


def scores(kind: str, protocol: str, when: str) -> dict[str, float]:
    path = Path(f"output/my_{kind}_{when}/inference/my_{kind}_val/{protocol}/summary.json")
    numbers = json.loads(path.read_text())["numbers"]
    return {key: value for key, value in numbers.items() if value is not None}


def value_of(cfg: Any, key: str) -> Any:
    for part in key.split("."):
        cfg = cfg[part]
    return list(cfg) if isinstance(cfg, tuple) else cfg
