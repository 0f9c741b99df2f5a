"""tools/train_chooser.py looks at its sets before it loads or trains anything."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import pytest

from unified.data.synthetic.releases import RELEASES

ROOT = Path(__file__).parents[2]


def run(*arguments: str) -> int:
    spec = importlib.util.spec_from_file_location("chooser", ROOT / "tools/train_chooser.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    code: int = module.main([*arguments, "--model", "none", "--output", "chooser.safetensors"])
    return code


def test_wrong_sets_are_found_before_the_model_is_loaded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    for name in ("refcoco", "fss1000"):
        RELEASES[name](tmp_path, 2, 0)
    objects = tmp_path / "own/objects.json"
    objects.parent.mkdir()
    absent = {"id": 1, "file_name": "a.png", "height": 8, "width": 8, "expressions": ["the dog"]}
    content = {"images": [absent], "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    objects.write_text(json.dumps(content))
    (tmp_path / "own/absent.yaml").write_text(
        "task: ris\nsplit: test\nimages: .\nannotations: objects.json\n"
    )
    good = "refcoco-unc-train"
    for given, error in (
        (("--sets", good, "--choose", "none"), "none"),
        (("--sets", good, "--choose", "fss-1000-test"), "fss-1000-test has no sentences"),
        (("--sets", good, "--choose", "absent"), "no sentence of absent means an object"),
        (("--sets", good, "--choose", "refcoco-unc-val"), "model 'none' is unknown"),
    ):
        assert run(*given) == 2
        assert error in capsys.readouterr().err
