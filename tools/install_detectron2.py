"""Installs Detectron2's Python part into the running environment, unless one is there.

The package holds the official source of 2024-04. Its only wheel is tagged for Python 3.10, but the
Python part runs on every later version, hence the explicit tag and target folder below.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import sysconfig
import tempfile
from importlib.metadata import PackageNotFoundError, distribution
from importlib.util import find_spec
from pathlib import Path

PACKAGE, VERSION = "sal-detectron2", "0.7.2"
SHA256 = "491af0c7f79bdb2d178e46f6cb16a97c4ac968d45c41ea3f6b6435d59bbee561"
SITE_PACKAGES = Path(sysconfig.get_path("purelib"))


def is_complete() -> bool:
    """Says whether our package is here with every file in its recorded size."""
    try:
        found = distribution(PACKAGE)
    except PackageNotFoundError:
        return False
    if found.version != VERSION:
        return False
    # Not found.files, which leaves out what is missing. Byte code is rewritten at any time.
    rows = [row for row in csv.reader((found.read_text("RECORD") or "").splitlines()) if row]
    return bool(rows) and all(
        is_intact(Path(str(found.locate_file(name))), size)
        for name, _, size in rows
        if not name.endswith(".pyc")
    )


def is_intact(path: Path, size: str) -> bool:
    """Says whether ``path`` is a file of ``size`` bytes (empty: of any size)."""
    return path.is_file() and size in ("", str(path.stat().st_size))


def foreign() -> str | None:
    """Returns the folder of another Detectron2 (stock, or a source checkout), else None."""
    try:
        return str(distribution("detectron2").locate_file("detectron2"))
    except PackageNotFoundError:
        spec = find_spec("detectron2")
    folder = Path(spec.origin).parent if spec and spec.origin else None
    # In site-packages but of no known package: a rest of our own, interrupted installation.
    return str(folder) if folder and folder.parent != SITE_PACKAGES else None


def install() -> int:
    """Runs pip and returns its exit status."""
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "detectron2.txt"
        requirements.write_text(f"{PACKAGE}=={VERSION} --hash=sha256:{SHA256}\n")
        arguments = ["--no-deps", "--only-binary=:all:", "--implementation=cp", "--upgrade"]
        arguments += ["--python-version=3.10", f"--target={SITE_PACKAGES}", "--require-hashes"]
        command = [sys.executable, "-m", "pip", "install", *arguments, "-r", str(requirements)]
        return subprocess.run(command, check=False).returncode


def main() -> int:
    argparse.ArgumentParser(description=__doc__.splitlines()[0]).parse_args()
    if folder := foreign():
        print(f"detectron2 is here already and stays as it is: {folder}")
        return 0
    if is_complete():
        print(f"{PACKAGE} {VERSION} is installed")
        return 0
    return install()


if __name__ == "__main__":
    sys.exit(main())
