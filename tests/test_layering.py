"""The layers of the toolkit, read from the syntax tree of every file.

Each rule is a function from a file to the faults in it. One test runs all rules over the
repository, another shows every rule a fault that was planted for it, so that no rule can go blind.
"""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from unified.tasks import TASKS

ROOT = Path(__file__).parents[1]
LAYERS = (
    "modeling",
    "inference",
    "export",
    "metrics",
    "data",
    "evaluation",
    "engine",
)  # left to right
DETECTRON2 = (
    "unified/data/*",
    "unified/evaluation/*",
    "unified/engine/*",
    "projects/*/meta_arch.py",
    "projects/*/config.py",
    "tools/train_net.py",
    "tools/train_stages.py",
    "tools/evaluate.py",
)
LAZY = {"torchvision", "timm", "transformers"}
MODEL_FILES = (
    "unified/segmenter.py",
    "unified/modeling/*",
    "projects/*/model.py",
    "projects/uniref/lite/*_head.py",
    "projects/uniref/lite/*_loss.py",
)
WRITERS = {
    *("write_text", "write_bytes", "save", "savez", "savez_compressed", "savetxt", "tofile"),
    *("imwrite", "savefig", "save_file", "save_pretrained", "dump", "mkdir", "makedirs"),
    *("atomic_path", "touch", "copyfile", "copytree", "symlink_to"),
}
TASK_NAMES = set(TASKS) | {task.upper() for task in TASKS}

Rule = Callable[[str, ast.Module], Iterator[str]]


def matches(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)


def imports(node: ast.AST) -> Iterator[str]:
    """Yields the dotted names that the import statements (and import_module calls) below name."""
    for child in ast.walk(node):
        if isinstance(child, ast.Import):
            yield from (alias.name for alias in child.names)
        elif isinstance(child, ast.ImportFrom) and child.module:
            # `from unified import engine` names unified.engine
            yield from (f"{child.module}.{alias.name}" for alias in child.names)
        elif isinstance(child, ast.Call) and name_of(child.func) in ("import_module", "__import__"):
            yield from (arg.value for arg in child.args[:1] if is_text(arg))


def module_level(tree: ast.Module) -> Iterator[ast.stmt]:
    """Yields the statements that run on import: not those in functions or under TYPE_CHECKING."""
    pending: list[ast.AST] = [tree]
    while pending:
        node = pending.pop()
        if isinstance(node, ast.If) and name_of(node.test) == "TYPE_CHECKING":
            continue
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)):
            pending.extend(ast.iter_child_nodes(node))


def name_of(node: ast.AST) -> str:
    """Last part of a name: `save` of `torch.save`."""
    return getattr(node, "attr", getattr(node, "id", ""))


def is_text(node: ast.AST) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def docstrings(tree: ast.Module) -> set[int]:
    return {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Expr)}


def rank(dotted: str) -> int | None:
    """Position of a module of ours from left to right; None for other people's modules."""
    top, _, rest = dotted.partition(".")
    if top == "unified":
        part = rest.partition(".")[0]
        return 1 + LAYERS.index(part) if part in LAYERS else 0
    return {"projects": 1 + len(LAYERS), "tools": 2 + len(LAYERS)}.get(top)


def imports_point_left(path: str, tree: ast.Module) -> Iterator[str]:
    own = rank(path.removesuffix(".py").replace("/", "."))
    # The front door loads systems by name: it may look right, but only when it is asked to.
    front_door = path == "unified/__init__.py"
    scope = module_level(tree) if front_door else [tree]
    for dotted in (name for node in scope for name in imports(node)):
        other = rank(dotted)
        if own is not None and other is not None and other > own:
            yield f"imports {dotted}, which lies to the right of it"
        if path == "unified/structures.py" and other is not None:
            yield f"imports {dotted}, but the nouns import nothing of ours"
        here, there = path.split("/")[:2], dotted.split(".")[:2]
        if here[0] == there[0] == "projects" and here != there:
            yield f"imports {dotted}, another project"


def relative_imports_are_not_used(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and node.level:
            yield f"line {node.lineno} imports relatively: the import name is the path"


def detectron2_stays_in_its_place(path: str, tree: ast.Module) -> Iterator[str]:
    for dotted in imports(tree):
        if dotted.split(".")[0] == "detectron2" and not matches(path, DETECTRON2):
            yield f"imports {dotted}"


def heavy_packages_are_lazy(path: str, tree: ast.Module) -> Iterator[str]:
    if path.startswith("tools/"):
        return
    for dotted in (name for node in module_level(tree) for name in imports(node)):
        if dotted.split(".")[0] in LAZY:
            yield f"imports {dotted} outside a function"


def metrics_are_numpy_only(path: str, tree: ast.Module) -> Iterator[str]:
    for dotted in imports(tree) if path.startswith("unified/metrics/") else ():
        if dotted.split(".")[0] in {"torch", *LAZY}:
            yield f"imports {dotted}"


def no_device_is_named(path: str, tree: ast.Module) -> Iterator[str]:
    if path == "unified/devices.py" or path.startswith("tools/"):
        return
    texts = docstrings(tree)
    for node in ast.walk(tree):
        if is_text(node) and node.value.startswith("cuda") and id(node) not in texts:
            yield f'line {node.lineno} says "{node.value}": take the device from an input or buffer'
        if isinstance(node, ast.Call) and name_of(node.func) == "cuda":
            yield f"line {node.lineno} calls .cuda(): take the device from an input or buffer"


def is_command(path: str, tree: ast.Module) -> bool:
    """A tool, or a module of a system that runs as ``python -m``."""
    guards = (ast.unparse(node.test) for node in tree.body if isinstance(node, ast.If))
    own = path.startswith("projects/") and "__name__ == '__main__'" in guards
    return path.startswith("tools/") or own


def nothing_is_printed(path: str, tree: ast.Module) -> Iterator[str]:
    for node in () if is_command(path, tree) else ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            if node.func.id in ("print", "pprint"):
                yield f"line {node.lineno} prints: only commands do, the rest logs"


def models_write_no_files(path: str, tree: ast.Module) -> Iterator[str]:
    for node in ast.walk(tree):
        if not matches(path, MODEL_FILES) or not isinstance(node, ast.Call):
            continue
        name = name_of(node.func)
        # open(path) and open(path, "rb") read; Path.open(mode) has its mode first
        mode = [*node.args[isinstance(node.func, ast.Name) :][:1]]
        mode += [keyword.value for keyword in node.keywords if keyword.arg == "mode"]
        writes = any(not is_text(arg) or set(arg.value) & set("wax+") for arg in mode)
        if name in WRITERS or (name == "open" and writes):
            yield f"line {node.lineno} calls {name}: a model writes no files"


def models_know_no_task(path: str, tree: ast.Module) -> Iterator[str]:
    if not matches(path, MODEL_FILES):
        return
    for node in ast.walk(tree):
        if isinstance(node, (ast.Compare, ast.match_case)):
            parts = list(ast.walk(node if isinstance(node, ast.Compare) else node.pattern))
            names = {part.value for part in parts if is_text(part)}
            names |= {part.attr for part in parts if isinstance(part, ast.Attribute)}
            for name in sorted(names & TASK_NAMES):
                yield f"asks whether the task is {name}: tasks are rows of a table"
        if isinstance(node, ast.arg) and node.arg == "task":
            yield f"line {node.lineno} takes a task: the references say what is asked"


RULES: tuple[Rule, ...] = (
    imports_point_left,
    relative_imports_are_not_used,
    detectron2_stays_in_its_place,
    heavy_packages_are_lazy,
    metrics_are_numpy_only,
    no_device_is_named,
    nothing_is_printed,
    models_write_no_files,
    models_know_no_task,
)

# (rule, file, code with a fault)
PLANTED = [
    (
        imports_point_left,
        "unified/modeling/a.py",
        "from unified.inference.memory import VideoMemory",
    ),
    (imports_point_left, "unified/modeling/a.py", "def f():\n    from unified import engine"),
    (imports_point_left, "unified/masks.py", "import unified.modeling.layers"),
    (imports_point_left, "unified/engine/a.py", "import projects.uniref.model"),
    (
        imports_point_left,
        "unified/engine/a.py",
        "import importlib\nimportlib.import_module('tools.x')",
    ),
    (imports_point_left, "unified/__init__.py", "from unified.modeling import layers"),
    (imports_point_left, "unified/structures.py", "from unified.errors import InputError"),
    (imports_point_left, "projects/sam/model.py", "from projects.uniref.model import UniRef"),
    (relative_imports_are_not_used, "projects/sam/model.py", "from ..uniref import model"),
    (detectron2_stays_in_its_place, "projects/sam/model.py", "from detectron2 import config"),
    (detectron2_stays_in_its_place, "unified/checkpoint.py", "def f():\n    import detectron2"),
    (detectron2_stays_in_its_place, "tools/infer_image.py", "import detectron2.utils.comm"),
    (heavy_packages_are_lazy, "unified/modeling/a.py", "import timm"),
    (
        heavy_packages_are_lazy,
        "unified/masks.py",
        "try:\n    from torchvision.ops import nms\nexcept E: x",
    ),
    (heavy_packages_are_lazy, "projects/sam/model.py", "class A:\n    import transformers"),
    (metrics_are_numpy_only, "unified/metrics/iou.py", "def f():\n    import torch.nn"),
    (no_device_is_named, "unified/modeling/a.py", "x.to('cuda:0')"),
    (no_device_is_named, "projects/sam/model.py", "x.cuda()"),
    (nothing_is_printed, "unified/data/a.py", "def f():\n    print(1)"),
    (nothing_is_printed, "unified/data/a.py", "if __name__ == '__main__':\n    print(1)"),
    (nothing_is_printed, "projects/sam/model.py", "def f():\n    print(1)"),
    (models_write_no_files, "unified/modeling/a.py", "open(p, 'wb')"),
    (models_write_no_files, "unified/modeling/a.py", "open(p, mode)"),
    (models_write_no_files, "unified/modeling/a.py", "path.open(mode='a')"),
    (models_write_no_files, "projects/sam/model.py", "torch.save(x, p)"),
    (models_know_no_task, "projects/sam/model.py", "if kind == 'ris': x"),
    (models_know_no_task, "unified/modeling/a.py", "if t in (Task.VOS, Task.RVOS): x"),
    (models_know_no_task, "unified/modeling/a.py", "match t:\n    case 'fss': x"),
    (models_know_no_task, "unified/segmenter.py", "def losses(features, task): x"),
]
# (file, code that looks like a fault and is none)
ALLOWED = [
    ("unified/inference/a.py", "from unified.modeling.layers import MLP"),
    ("unified/evaluation/a.py", "from detectron2.evaluation import DatasetEvaluator"),
    ("unified/__init__.py", "def load():\n    from projects.uniref import model"),
    ("unified/modeling/a.py", "if TYPE_CHECKING:\n    import timm"),
    ("unified/modeling/a.py", "def f():\n    import timm\n    return open(p, 'rb')"),
    ("unified/modeling/a.py", '"""Runs on cuda."""\nif torch.cuda.is_available(): open(p)'),
    ("projects/sam/model.py", "if kind == 'text': x"),
    ("unified/data/a.py", "if sample['task'] == Task.VOS: open(p, 'w')"),
    ("tools/infer_image.py", "print('cuda')"),
    ("projects/sam/train.py", "print(1)\nif __name__ == '__main__':\n    main()"),
]


def faults(path: str, code: str, rules: tuple[Rule, ...] = RULES) -> list[str]:
    tree = ast.parse(code)
    return [f"{path}: {fault}" for rule in rules for fault in rule(path, tree)]


def test_the_repository_keeps_its_layers() -> None:
    files = [
        file for top in ("unified", "projects", "tools") for file in (ROOT / top).rglob("*.py")
    ]
    assert len(files) > 10  # a rule over no files would hold
    found = [
        fault
        for file in sorted(files)
        for fault in faults(file.relative_to(ROOT).as_posix(), file.read_text(encoding="utf-8"))
    ]
    assert not found, "\n" + "\n".join(found)


@pytest.mark.parametrize(("rule", "path", "code"), PLANTED)
def test_a_planted_fault_is_found(rule: Rule, path: str, code: str) -> None:
    assert faults(path, code, (rule,))


@pytest.mark.parametrize(("path", "code"), ALLOWED)
def test_what_is_allowed_passes(path: str, code: str) -> None:
    assert faults(path, code) == []


def test_every_rule_has_a_planted_fault() -> None:
    assert {rule for rule, _, _ in PLANTED} == set(RULES)


def test_tools_stay_small() -> None:
    long = [
        file.name
        for file in (ROOT / "tools").glob("*.py")
        if len(file.read_text().splitlines()) > 150
    ]
    assert not long, f"tools of more than 150 lines: {long}"


def test_tools_run_without_being_installed() -> None:
    files = list((ROOT / "tools").glob("*.py"))
    assert len(files) > 10
    for file in files:
        head, _, rest = file.read_text(encoding="utf-8").partition("sys.path.insert(0, ")
        assert not any(top in head for top in ("from unified", "from projects")), file.name
        assert rest or file.name == "install_detectron2.py", file.name
