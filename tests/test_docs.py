"""What the pages name exists: files, links, commands with their options, and config keys."""

from __future__ import annotations

import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from detectron2.config import CfgNode
from detectron2.engine import default_argument_parser

from unified.__main__ import find_commands
from unified.engine.config import default_config
from unified.engine.system import find_systems

ROOT = Path(__file__).parents[1]
FOLDERS = "configs|datasets|docs|projects|tests|tools|unified"
PAGES = sorted(
    {
        *ROOT.glob("*.md"),
        *ROOT.glob("docs/*.md"),
        *ROOT.glob("datasets/*.md"),
        *ROOT.glob("projects/**/*.md"),
    }
)
OF_THE_READER = "datasets/own/"
VARIABLES = {  # of the environment
    *("DETECTRON2_DATASETS", "OMP_NUM_THREADS", "OMP_WAIT_POLICY", "UNIFIED_MAX_PIXELS")
}
SHARED = (  # module of unified and its function that adds options
    ("commands", "add_max_pixels"),
    ("inference/cli", "add_model_arguments"),
    ("inference/cli", "add_input_arguments"),
    ("inference/places", "add_place_arguments"),
    ("inference/clip_prompts", "add_prompt_arguments"),
)

each_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))


def code(page: Path) -> Iterator[str]:
    """Lines of blocks that are not Python, continued ones joined, and code within the text."""
    text = page.read_text(encoding="utf-8").replace("\\\n", " ")
    block = None
    for line in text.splitlines():
        if line.startswith("```"):
            block = line if block is None else None
        elif block is not None:
            yield from () if block == "```python" else (line,)
        else:
            yield from re.findall(r"`([^`]+)`", line)


def test_there_are_pages() -> None:
    assert {"README.md", "training.md", "runs.md", "MODEL_CARD.md"} <= {page.name for page in PAGES}


@each_page
def test_files_and_links_exist(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    named = re.findall(rf"(?<![\w/.-])(?:{FOLDERS})/[\w/+.-]+\.(?:py|yaml|md|json|jpg|png)\b", text)
    ours = {name for name in named if not name.startswith(OF_THE_READER)}
    missing = {name for name in ours if not (ROOT / name).exists()}
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            missing.add(link)
    assert missing == set()


def anchors(page: Path) -> set[str]:
    """Of the headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    words = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.strip().replace(" ", "-") for heading in words}


@each_page
def test_commands_have_the_options_that_are_named(page: Path) -> None:
    commands, wrong = find_commands(), []
    for line in code(page):
        for call in re.split(r"\s[|&;]+\s", line):
            found = re.search(r"(?:\b(tools|datasets)/(\w+)\.py|^unified ([a-z][\w-]*))(.*)", call)
            options = re.findall(r"(?<!\S)--[a-z][\w-]*", found[4] if found else call)
            if found is None:
                wrong += [option for option in options if option not in all_options()]
                continue
            path = ROOT / f"{found[1]}/{found[2]}.py" if found[1] else commands.get(found[3])
            if path is None or not path.exists():
                wrong.append(call)
            else:
                wrong += [f"{call}: {o}" for o in options if o not in options_of(path)]
    assert wrong == []


@cache
def options_of(path: Path) -> frozenset[str]:
    """Options in the code of a command and of what it imports from us."""
    text = path.read_text(encoding="utf-8")
    options = {"--help", *re.findall(r'"(--[a-z][\w-]*)"', text)}
    if "default_argument_parser" in text:
        options |= set(default_argument_parser()._option_string_actions)
    for module, added in SHARED:
        file = ROOT / f"unified/{module}.py"
        if f"{added}(parser" in text and file != path:
            options |= options_of(file)
    return frozenset(options)


@cache
def all_options() -> frozenset[str]:
    files = [*ROOT.glob("tools/*.py"), *ROOT.glob("datasets/*.py"), *ROOT.glob("projects/**/*.py")]
    return frozenset().union(*map(options_of, files))


@each_page
def test_config_keys_exist(page: Path) -> None:
    """Those with a dot, or with an underscore: MODEL.DEVICE, and MAX_ITER alone."""
    word = r"(?<![\w./<{-])[A-Z][A-Z0-9_]*(?:\.[A-Z][A-Z0-9_]*)*(?![\w/])"
    named = {name for line in code(page) for name in re.findall(word, line)}
    keys = {name for name in named - VARIABLES if "." in name or "_" in name}
    known = config_keys()
    assert {
        key for key in keys if not any(f".{name}".endswith(f".{key}") for name in known)
    } == set()


@cache
def config_keys() -> frozenset[str]:
    """Dotted keys of the toolkit, of Detectron2 and of all systems, nodes included."""
    cfg = default_config()
    for found in find_systems().values():
        found.add_config(cfg)
    return frozenset(keys_below(cfg, ""))


def keys_below(node: CfgNode, prefix: str) -> Iterator[str]:
    for name, value in node.items():
        yield prefix + name
        if isinstance(value, CfgNode):
            yield from keys_below(value, f"{prefix}{name}.")
