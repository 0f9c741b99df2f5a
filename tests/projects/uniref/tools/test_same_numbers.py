"""What the inference tools write, scored as files, is what evaluation says of the same weights."""

from __future__ import annotations

import importlib.util
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import unified
from projects.uniref.model import UniRef
from unified.data.catalog import find_dataset, load_records, register_datasets
from unified.data.formats.records import frame_masks
from unified.data.synthetic.releases import RELEASES
from unified.data.synthetic.world import make_scene
from unified.data.synthetic.writing import save_jpeg
from unified.engine.config import load_config
from unified.engine.models import CONFIGS
from unified.engine.testing import evaluate
from unified.label_maps import write_label_map, write_mask

ROOT = Path(__file__).parents[4]
CONFIG = CONFIGS / "lite/uniref_lite.yaml"
SIZES = ["INFERENCE.IMAGE_SHORT_SIDE", "96", "INFERENCE.VIDEO_SHORT_SIDE", "96"]
# Some of the sentences below are refused, others are not.
SIZES += ["INFERENCE.IMAGE_SCORE_THRESHOLD", "0.15", "INFERENCE.SCORE_THRESHOLD", "0.15"]
WEIGHTS = ["MODEL.WEIGHTS", "uniref_lite", "MODEL.DEVICE", "cpu"]
SERIAL = ["DATALOADER.NUM_WORKERS", "0"]
Predict = Callable[[Path, Mapping[str, Any], Path], None]


def run_tool(name: str, *arguments: str) -> None:
    spec = importlib.util.spec_from_file_location(f"{name}_tool", ROOT / f"tools/{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert module.main(list(arguments)) == 0


def infer(tool: str, output: Path, *arguments: str, dataset: str) -> None:
    """Runs a tool; a benchmark fixes the threshold, own data leaves it to the model."""
    threshold = find_dataset(dataset).score_threshold
    same = [] if threshold is None else [str(threshold)]
    keys = ("INFERENCE.SCORE_THRESHOLD", "INFERENCE.IMAGE_SCORE_THRESHOLD")
    options = [*SIZES, *(word for key in keys for value in same for word in (key, value))]
    run_tool(tool, *arguments, "--output", str(output), "--device", "cpu", "--opts", *options)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Own data of every kind, and two made releases."""
    root = tmp_path_factory.mktemp("sets")
    own, rng = root / "own", np.random.default_rng(3)
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for number in (1, 2):
        image, labels = make_scene(rng).draw()
        save_jpeg(own / f"pictures/images/{number}.jpg", image)
        height, width = labels.shape
        images.append(
            {"id": number, "file_name": f"{number}.jpg", "height": height, "width": width}
        )
        box = [0, 0, 2 * width // 3, height]
        corners = [0, 0, box[2], 0, box[2], height, 0, height]
        annotations.append(
            {
                "id": number,
                "image_id": number,
                "category_id": 1,
                "bbox": box,
                "area": box[2] * box[3],
                "iscrowd": 0,
                "segmentation": [corners],
                "expressions": ["the red thing", "the thing on the left"],
            }
        )
    categories = [{"id": 1, "name": "thing"}]
    content = {"images": images, "annotations": annotations, "categories": categories}
    (own / "pictures/instances.json").write_text(json.dumps(content))
    for number in (1, 2, 3, 4):
        image, labels = make_scene(rng).draw()
        side = 96 + 16 * number
        save_jpeg(own / f"logos/acme/{number}.jpg", image[:side])
        write_mask(own / f"logos/acme/{number}.png", labels[:side] == 1)
    scene = make_scene(rng, num_frames=4)
    for frame in range(4):
        image, labels = scene.draw(frame)
        save_jpeg(own / f"clips/frames/clip1/{5 * frame + 1:05d}.jpg", image)
        write_label_map(own / f"clips/masks/clip1/{5 * frame + 1:05d}.png", labels)
    sentences = {"0": {"exp": "the red thing", "obj_id": "1"}}
    sentences["1"] = {"exp": "the thing on the left", "obj_id": "1"}
    names = [f"{5 * frame + 1:05d}" for frame in range(4)]
    videos = {"videos": {"clip1": {"frames": names, "expressions": sentences}}}
    (own / "clips/meta.json").write_text(json.dumps(videos))
    clips = {"images": "clips/frames", "masks": "clips/masks"}
    sets: dict[str, dict[str, str]] = {
        "b_ris": {
            "task": "ris",
            "images": "pictures/images",
            "annotations": "pictures/instances.json",
        },
        "b_fss": {"task": "fss", "images": "logos"},
        "b_vos": {"task": "vos", **clips},
        "b_rvos": {"task": "rvos", **clips, "expressions": "clips/meta.json"},
    }
    for name, keys in sets.items():
        lines = [f"{key}: {value}" for key, value in {**keys, "split": "test"}.items()]
        (own / f"{name}.yaml").write_text("\n".join(lines))
    RELEASES["davis17"](root, 1, 0)
    return root


@pytest.fixture(autouse=True)
def data(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(root))


def sentences(folder: Path, record: Mapping[str, Any], scratch: Path) -> None:
    texts = [word for r in records_of(record) for word in ("--text", r["expressions"][0])]
    arguments = ["--input", record["file_name"], *texts, "--separate"]
    infer("infer_image", scratch, *arguments, dataset=record["dataset"])
    for place, each in enumerate(records_of(record)):
        name = f"{each['image_id']}_{each['expression_id']}.png"
        copy(scratch / f"masks/{Path(record['file_name']).stem}/{place + 1}.png", folder / name)


def examples(folder: Path, record: Mapping[str, Any], scratch: Path) -> None:
    support = record["supports"][0]
    pair = f"{support['file_name']}:{support['annotations'][0]['mask_file']}"
    arguments = ["--input", record["file_name"], "--support", pair]
    infer("infer_image", scratch, *arguments, dataset=record["dataset"])
    number = load_records(record["dataset"]).index(record)
    name = f"{record['class_id']}/00_{number:06d}.png"
    copy(scratch / f"masks/{Path(record['file_name']).stem}.png", folder / name)


def clip_sentences(folder: Path, record: Mapping[str, Any], scratch: Path) -> None:
    texts = [word for r in records_of(record) for word in ("--text", r["expression"])]
    frames = str(Path(record["file_names"][0]).parent)
    infer(
        *("infer_video", scratch, "--input", frames, *texts, "--separate"),
        dataset=record["dataset"],
    )
    for place, each in enumerate(records_of(record)):
        for name in record["frame_names"]:
            target = folder / each["clip_id"] / each["expression_id"] / f"{name}.png"
            copy(scratch / f"masks/{place + 1}/{name}.png", target)


def clip_masks(folder: Path, record: Mapping[str, Any], scratch: Path) -> None:
    given: dict[int, np.ndarray] = {}
    for number, frame in record["first_frames"].items():
        mask = frame_masks(record, frame)[number]  # type: ignore[arg-type]
        label_map = given.setdefault(frame, np.zeros(mask.shape, np.uint8))
        label_map[mask] = number
    arguments = ["--input", str(Path(record["file_names"][0]).parent)]
    for frame, label_map in given.items():
        file = folder.parent / f"given_{record['clip_id']}_{frame}.png"
        write_label_map(file, label_map)
        arguments += ["--mask-at", f"{frame}={file}"]
    infer("infer_video", scratch, *arguments, dataset=record["dataset"])
    for name in record["frame_names"]:
        copy(scratch / f"masks/{name}.png", folder / record["clip_id"] / f"{name}.png")


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, target)


def records_of(record: Mapping[str, Any]) -> list[Any]:
    """All records about the same image or clip."""
    key = "clip_id" if "clip_id" in record else "file_name"
    return [other for other in load_records(record["dataset"]) if other[key] == record[key]]


@pytest.mark.parametrize(
    ("name", "predict", "protocol", "truth"),
    [
        ("b_ris", sentences, "uniref", None),
        ("b_fss", examples, "fss-per-image", None),
        ("b_rvos", clip_sentences, "ref-youtube-vos", "own/clips"),
        ("b_vos", clip_masks, "vos-benchmark", "own/clips/masks"),
        ("davis17-val", clip_masks, "davis17-semi", "DAVIS/Annotations/480p"),
    ],
)
def test_tools_and_evaluation_say_the_same(
    name: str, predict: Predict, protocol: str, truth: str | None, root: Path, tmp_path: Path
) -> None:
    command = ["--config-file", str(CONFIG), "--eval-only", *WEIGHTS, *SIZES, *SERIAL]
    where = ["OUTPUT_DIR", str(tmp_path / "run"), "DATASETS.TEST", f"('{name}',)"]
    run_tool("train_net", *command, *where)
    folder = tmp_path / "run/inference" / name
    expected = json.loads((folder / protocol / "summary.json").read_text())

    pred = tmp_path / "pred"
    asked: set[str] = set()
    for number, record in enumerate(load_records(name)):
        key = record.get("clip_id", record.get("file_name"))
        if key not in asked:
            asked.add(key)
            predict(pred, record, tmp_path / f"out{number}")
    shutil.copy(tmp_path / "out0/results.json", tmp_path / "results.json")
    more = []
    if name == "b_rvos":
        more = ["--meta", str(root / "own/clips/meta.json")]
        truth = "own/clips/masks"
    elif name == "davis17-val":
        more = ["--split", str(root / "DAVIS/ImageSets/2017/val.txt")]
    ground_truth = folder / "ground_truth" if truth is None else root / truth
    arguments = ["--protocol", protocol, "--gt", str(ground_truth), "--pred", str(pred)]
    run_tool("evaluate", *arguments, *more, "--out", str(tmp_path / "scores"))
    found = json.loads((tmp_path / "scores/summary.json").read_text())
    assert found["numbers"] == expected["numbers"]
    assert any(value for value in expected["numbers"].values()), "there is something to compare"
    cards = found["card"], expected["card"]
    assert cards[0]["checkpoint_sha256"] == cards[1]["checkpoint_sha256"] is not None
    assert cards[0]["inference"] == cards[1]["inference"]


@contextmanager
def counted_passes(model: nn.Module) -> Iterator[list[int]]:
    """Batch sizes of the calls of ``encode_image``."""
    sizes: list[int] = []
    encode = model.encode_image

    def counted(images: Any) -> Any:
        sizes.append(len(images))
        return encode(images)

    object.__setattr__(model, "encode_image", counted)
    try:
        yield sizes
    finally:
        object.__delattr__(model, "encode_image")


@pytest.mark.parametrize(("mirror", "views"), [("True", 2), ("False", 1)])
def test_all_about_one_image_or_clip_share_a_backbone_pass(
    mirror: str, views: int, tmp_path: Path
) -> None:
    names = ("b_ris", "b_rvos", "b_vos")
    register_datasets(names)
    model: UniRef = unified.load(CONFIG, "uniref_lite", "cpu")
    passes = {}
    for name in names:
        options = ["INFERENCE.MIRROR", mirror, *SIZES, *SERIAL, "OUTPUT_DIR", str(tmp_path)]
        cfg = load_config(CONFIG, [*options, "DATASETS.TEST", f"('{name}',)"])
        with counted_passes(model) as sizes, torch.inference_mode():
            evaluate(cfg, model)
        passes[name] = len(sizes)
    assert passes == {"b_ris": 2 * views, "b_rvos": 4, "b_vos": 4}


def test_a_card_says_how_the_model_was_asked(tmp_path: Path, root: Path) -> None:
    cards = {}
    for mirror in ("True", "False"):
        where = ["OUTPUT_DIR", str(tmp_path / mirror), "DATASETS.TEST", "('b_fss',)"]
        command = ["--config-file", str(CONFIG), "--eval-only", *WEIGHTS, *SIZES, *SERIAL]
        run_tool("train_net", *command, *where, "INFERENCE.MIRROR", mirror)
        file = tmp_path / mirror / "inference/b_fss/fss-per-image/summary.json"
        cards[mirror] = json.loads(file.read_text())["card"]
        log = (tmp_path / mirror / "log.txt").read_text()
        line = "input 96 to 576, float32, " + "mirror image, " * (mirror == "True")
        line += "margin 0.15, threshold 0.15, chooser uniref_lite_chooser"
        assert f"inference {line} |" in log
    assert cards["True"]["inference"]["mirror"] and not cards["False"]["inference"]["mirror"]
    assert cards["True"]["checkpoint_sha256"] == cards["False"]["checkpoint_sha256"] is not None
