"""The examples of docs/own_data.md, run as they stand there."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from unified.data.augmentation import Augmentation
from unified.data.catalog import find_dataset, load_records, register_datasets
from unified.data.check import check_dataset
from unified.data.formats.records import target_mask
from unified.data.loader import Source, TrainLoader
from unified.data.mappers import TrainMapper
from unified.data.synthetic.world import make_scene
from unified.data.synthetic.writing import save_jpeg
from unified.errors import ConfigError, InputError
from unified.label_maps import write_label_map, write_mask

GUIDE = (Path(__file__).parents[3] / "docs/own_data.md").read_text()


def _examples() -> dict[str, str]:
    """name of the dataset -> yaml, as printed in the guide."""
    found = re.findall(r"`own/(\w+)\.yaml`:\n\n```yaml\n(.*?)```", GUIDE, flags=re.DOTALL)
    return dict(found)


def _json_examples() -> list[dict]:
    return [json.loads(text) for text in re.findall(r"```json\n(.*?)```", GUIDE, flags=re.DOTALL)]


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The yaml files of the guide, with files as it describes them."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name, text in _examples().items():
        (folder / f"{name}.yaml").write_text(text)
    instances, _, sentences, captions, expressions = _json_examples()
    rng = np.random.default_rng(0)
    save_jpeg(folder / "birds/images/a.jpg", np.zeros((96, 128, 3), dtype=np.uint8))
    (folder / "birds/instances.json").write_text(json.dumps(instances))
    (folder / "birds/expressions.json").write_text(json.dumps(sentences))
    save_jpeg(folder / "walks/images/a.jpg", np.zeros((96, 128, 3), dtype=np.uint8))
    (folder / "walks/captions.json").write_text(json.dumps(captions))
    for name in ("cells", "street"):
        scene = make_scene(rng, num_frames=2)
        for frame in range(2):
            image, labels = scene.draw(frame)
            save_jpeg(folder / f"{name}/frames/clip1/{frame:05d}.jpg", image)
            write_label_map(folder / f"{name}/masks/clip1/{frame:05d}.png", labels)
    (folder / "street/meta_expressions.json").write_text(json.dumps(expressions))
    for number in (1, 2, 3):
        image, labels = make_scene(rng).draw()
        save_jpeg(folder / f"logos/acme/{number}.jpg", image)
        write_mask(folder / f"logos/acme/{number}.png", labels == 1)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    return folder


def test_guide_has_an_example_of_at_most_five_lines_per_kind() -> None:
    examples = _examples()
    assert set(examples) == {"birds", "crows", "walks", "cells", "street", "logos"}
    assert all(len(text.strip().splitlines()) <= 5 for text in examples.values())


@pytest.mark.parametrize("name", ["birds", "walks", "cells", "street", "logos"])
def test_own_data_is_read_checked_and_trained_on(name: str, own: Path) -> None:
    records = load_records(name)
    assert check_dataset(name).num_records == len(records) >= 1
    augmentation = Augmentation(short_sides=(48,), max_size=80, crop_range=(30, 60))
    source = Source(name, records, TrainMapper(augmentation=augmentation), batch_size=2)
    batch = next(iter(TrainLoader([source], seed=0)))
    num_objects = 0 if name == "walks" else 1
    assert all(len(sample["instances"]) == num_objects for sample in batch)
    assert all(sample["dataset"] == name for sample in batch)


def test_own_names_are_registered(own: Path) -> None:
    from detectron2.data import DatasetCatalog, MetadataCatalog

    register_datasets(["birds", "cells"])
    assert MetadataCatalog.get("birds").task == "ris"
    told = [record["expressions"] for record in DatasetCatalog.get("birds")]
    assert told == [["the small bird on the left", "bird near the water"]]


def test_split_decides_what_a_record_is(own: Path) -> None:
    for name in ("birds", "cells"):
        path = own / f"{name}.yaml"
        path.write_text(path.read_text().replace("train", "test"))
    assert [record["expressions"] for record in load_records("birds")] == [
        ["the small bird on the left"],
        ["bird near the water"],
    ]
    assert load_records("cells")[0]["first_frames"]


@pytest.mark.parametrize("split", ["train", "test"])
def test_sentences_of_an_image_are_about_several_objects_or_none(split: str, own: Path) -> None:
    content, extra, *_ = _json_examples()
    whole = {**extra, "id": 3, "expressions": ["both birds"]}
    content["images"] += [extra, whole]
    bird = content["annotations"][0]
    others = [{**bird, "id": number, "image_id": 3} for number in (2, 3)]
    content["annotations"] += [{**other, "expressions": []} for other in others]
    (own / "birds/instances.json").write_text(json.dumps(content))
    path = own / "birds.yaml"
    path.write_text(path.read_text().replace("train", split))
    records = load_records("birds")
    counts = {text: len(r["annotations"]) for r in records for text in r["expressions"]}
    assert counts["the red bird"] == 0 and counts["both birds"] == 2
    assert counts["bird near the water"] == 1
    if split == "test":
        assert sorted(record["expression_id"] for record in records) == [0, 1, 2, 3]
        return
    augmentation = Augmentation(short_sides=(48,), max_size=80)
    for record in records:
        rngs = (np.random.default_rng(0) for _ in range(2))
        sample = TrainMapper(augmentation=augmentation)(record, *rngs)
        assert len(sample["instances"]) == (sample["expression"] != "the red bird")


@pytest.mark.parametrize("split", ["train", "test"])
def test_sentences_of_a_file_of_their_own_are_read_and_trained_on(split: str, own: Path) -> None:
    path = own / "crows.yaml"
    path.write_text(path.read_text().replace("train", split))
    records = load_records("crows")
    assert check_dataset("crows").num_records == len(records) == 2
    told = {text: [a["id"] for a in r["annotations"]] for r in records for text in r["expressions"]}
    assert told == {"the crow": [1], "the white crow": []}
    if split == "train":
        mapper = TrainMapper(augmentation=Augmentation(short_sides=(48,), max_size=80))
        rngs = (np.random.default_rng(0) for _ in range(2))
        samples = [mapper(record, *rngs) for record in records[:1]]
        assert [len(sample["instances"]) for sample in samples] == [1]


def test_black_and_white_masks_are_one_object(own: Path) -> None:
    for path in sorted((own / "street/masks/clip1").iterdir()):
        write_mask(path, np.arange(96 * 128).reshape(96, 128) % 7 == 0)
        save_jpeg(
            own / f"street/frames/clip1/{path.stem}.jpg", np.zeros((96, 128, 3), dtype=np.uint8)
        )
    assert check_dataset("street").num_records == 1
    assert target_mask(load_records("street")[0], 1).sum() == 96 * 128 // 7 + 1  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("task: ris", "task: rsi"), "expected one of"),
        (("split: train\n", ""), "'split' is missing"),
        (("images:", "pictures:"), "'images' is missing"),
        (("split: train", "split: val"), "expected train or test"),
        (("ris\nsplit: train", "caption\nsplit: test"), "a set for caption cannot be scored"),
        (("task: ris", "task: ["), "not valid yaml"),
        (("task: ris", "task:\tris"), r"not valid yaml: .*cannot start any token.*line 1[^\n]*$"),
    ],
)
def test_wrong_yaml_says_what_is_wrong(change: tuple[str, str], message: str, own: Path) -> None:
    path = own / "birds.yaml"
    path.write_text(path.read_text().replace(*change))
    with pytest.raises(ConfigError, match=message) as error:
        find_dataset("birds")
    assert str(path) in str(error.value)


def test_missing_sentences_and_files_are_named(own: Path) -> None:
    content = json.loads((own / "birds/instances.json").read_text())
    del content["annotations"][0]["expressions"]
    (own / "birds/instances.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="'expressions' per annotation"):
        load_records("birds")
    (own / "cells/masks/clip1/00000.png").unlink()
    (own / "cells/frames/clip1/00001.jpg").unlink()
    with pytest.raises(InputError, match=r"00001\.jpg is missing"):
        load_records("cells")


def test_row_of_the_guide_reads_a_known_format(made_root: Path, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(.*?)```", GUIDE, flags=re.DOTALL)
    names: dict[str, Any] = {}
    exec(code, names)
    (tmp_path / "animals").symlink_to(made_root / "mose")
    row = names["row"]
    assert all((tmp_path / file).exists() for file in row.files)
    assert len(row.read(tmp_path)) == len(list((made_root / "mose/train/JPEGImages").iterdir()))
