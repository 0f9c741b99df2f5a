"""tools/calibrate.py on a made set, for a tiny untrained model."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

import unified
from unified import ImagePredictor
from unified.checkpoint import read_weights, write_weights
from unified.data.synthetic.releases import RELEASES

ROOT = Path(__file__).parents[4]
_SPEC = importlib.util.spec_from_file_location("calibrate", ROOT / "tools/calibrate.py")
assert _SPEC is not None and _SPEC.loader is not None
_TOOL = importlib.util.module_from_spec(_SPEC)
_SPEC.loader.exec_module(_TOOL)
TINY = {
    "_BASE_": str(ROOT / "configs/lite/uniref_lite.yaml"),
    "MODEL": {
        "DEVICE": "cpu",
        "UNIREF": {
            "BACKBONE_WEIGHTS": "",
            "TEXT_ENCODER": {"WEIGHTS": ""},
            "HIDDEN_DIM": 64,
            "ENCODER_LAYERS": 1,
            "DECODER_LAYERS": 2,
        },
    },
    "INFERENCE": {"IMAGE_SHORT_SIDE": 48, "MAX_SIZE": 80},
}


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Config and weights; a small set for both kinds of sentences."""
    RELEASES["refcoco"](tmp_path, 2, 0)
    monkeypatch.setenv("DETECTRON2_DATASETS", str(tmp_path))
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(TINY))
    model = unified.load(tmp_path / "tiny.yaml", device="cpu")
    generator = torch.Generator().manual_seed(0)  # without, all sentences score alike
    weights = {
        k: v + 0.3 * torch.randn(v.shape, generator=generator)
        if k.startswith(("head.", "fusion."))
        else v
        for k, v in model.state_dict().items()
    }
    write_weights(tmp_path / "a.safetensors", weights)
    return tmp_path / "tiny.yaml", tmp_path / "a.safetensors"


def command(files: tuple[Path, Path], *more: str) -> list[str]:
    start = ["--config-file", str(files[0]), "--weights", str(files[1]), "--device", "cpu"]
    return [*start, "--output", str(files[1].with_name("b.safetensors")), *more]


def test_the_wanted_share_of_true_sentences_is_kept(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    sets = ("--true", "refcoco-unc-val", "--absent", "refcoco-unc-testA")
    assert _TOOL.main(command(files, *sets, "--keep", "0.75", "--threshold", "0.4")) == 0
    assert "true sentences of refcoco-unc-val are kept" in capsys.readouterr().out
    before = read_weights(files[1])
    after = read_weights(files[1].with_name("b.safetensors"))
    changed = {key for key in before if not torch.equal(before[key], after[key])}
    assert changed == {"head.class_embed.1.bias"}
    model = unified.load(files[0], weights=files[1].with_name("b.safetensors"), device="cpu")
    predictor = ImagePredictor(model, short_side=48, max_size=80, mirror=True)
    found = _TOOL.logits(predictor, "refcoco-unc-val")
    kept = np.mean(found >= np.log(0.4 / 0.6))
    assert 0.75 <= kept < 0.75 + 1 / len(found)


def test_a_set_without_sentences_is_refused(
    files: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    RELEASES["fss1000"](files[0].parent, 2, 0)
    assert _TOOL.main(command(files, "--true", "fss-1000-test", "--absent", "refcoco-unc-val")) == 2
    assert "fss-1000-test has no sentences" in capsys.readouterr().err
    assert not files[1].with_name("b.safetensors").exists()
