"""Installs the toolkit into an existing environment: ``python -m pip install -e .``.

In the source tree ``unified``, ``projects``, ``configs`` and ``tools`` lie side by side. A wheel
holds all of them inside the package ``unified``, since names as general as these would meet those
of others in site-packages. The copies say so, code, pages and configs: ``import projects.uniref``
becomes ``import unified.projects.uniref``, and ``python tools/data.py`` becomes ``unified data``.
A command therefore stands within one literal.
"""

from __future__ import annotations

import re
import shutil
import sysconfig
from importlib.metadata import distributions
from pathlib import Path

from setuptools import find_namespace_packages, setup
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
# check_metrics compares with recordings, by code of the tests.
TOOLS = {path.stem for path in (ROOT / "tools").glob("*.py")} - {"check_metrics"}
TEXTS = {".py", ".md", ".yaml"}
VERSION = re.search(r'__version__ = "(.+)"', (ROOT / "unified/__init__.py").read_text()).group(1)


def opencv() -> str:
    """Returns the OpenCV package that is installed already, else the one that needs no display.

    The variants share the folder ``cv2``: a second one next to the first breaks both.
    """
    folders = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib")}
    installed = {(found.name or "").lower() for found in distributions(path=sorted(folders))}
    variants = ("opencv-python", "opencv-contrib-python", "opencv-contrib-python-headless")
    return next((name for name in variants if name in installed), "opencv-python-headless")


class BuildPackage(build_py):
    """Copies what lies beside ``unified`` into it."""

    def run(self) -> None:
        if self.editable_mode:
            super().run()
            return
        self.packages = [name for name in self.packages if name.partition(".")[0] == "unified"]
        super().run()
        package = Path(self.build_lib) / "unified"
        ignore = shutil.ignore_patterns("__pycache__", "check_metrics.py")
        for folder in ("projects", "configs", "tools"):
            shutil.rmtree(package / folder, ignore_errors=True)  # of an earlier build
            shutil.copytree(ROOT / folder, package / folder, ignore=ignore)
        (package / "datasets").mkdir(exist_ok=True)
        shutil.copyfile(ROOT / "datasets/README.md", package / "datasets/README.md")
        for path in package.rglob("*"):
            if path.suffix in TEXTS:
                path.write_text(as_in_wheel(path.read_text(encoding="utf-8")), encoding="utf-8")


def as_in_wheel(text: str) -> str:
    """A module, page or config with the names that things have in a wheel."""
    text = re.sub(r"^sys\.path\.insert\(0, .*\n", "", text, flags=re.MULTILINE)
    text = re.sub(r"(?<![\w./}])projects\.(?=\w)", "unified.projects.", text)
    text = re.sub(r"(torchrun .*)tools/train_net\.py", r"\1-m unified train", text)
    tools = "|".join(sorted(TOOLS))
    return re.sub(rf"(?:python )?tools/({tools})\.py", lambda found: command(found[1]), text)


def command(tool: str) -> str:
    """As ``unified.__main__.command_name``, which cannot be imported here."""
    return "unified " + tool.removeprefix("infer_").removesuffix("_net").replace("_", "-")


setup(
    name="unified",
    version=VERSION,
    description="Segmentation in images and video from a sentence, a mask or examples.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    packages=find_namespace_packages(include=["unified*", "projects*"]),
    package_data={"": ["*.txt"]},  # lists of words
    cmdclass={"build_py": BuildPackage},
    entry_points={"console_scripts": ["unified = unified.__main__:main"]},
    python_requires=">=3.10",
    install_requires=[
        "torch>=2.4",
        "torchvision",
        "timm>=1.0",
        "transformers>=4.40",
        "safetensors>=0.4",
        "huggingface-hub",
        "numpy>=1.26",
        "scipy",
        "pillow>=9",
        opencv(),
        "av>=12",
        "einops",
        "pycocotools>=2.0.7",
        "tqdm",
        # What detectron2 needs. It is not named here itself: its official source has no release to
        # name, and one that is there must stay as it is (tools/install_detectron2.py adds one).
        "yacs>=0.1.8",
        "fvcore>=0.1.5",
        "iopath>=0.1.7",
        "omegaconf>=2.1,<2.4",
        "hydra-core>=1.1",
        "cloudpickle",
        "tabulate",
        "termcolor>=1.1",
        "matplotlib",
        "tensorboard",
        "packaging",
    ],
    extras_require={
        "demo": ["scikit-image", "scikit-video"],
        "flash": ["flash-attn>=2.5"],
        "export": ["onnx", "onnx-ir", "onnxscript", "onnxruntime", "openvino"],
        "dev": ["pytest>=8", "pytest-timeout", "pytest-xdist", "ruff", "mypy"],
    },
)
