"""docs/protocols.md says what the table of protocols says, and every line has its test."""

from __future__ import annotations

import ast
import re
from pathlib import Path

from unified.data.catalog import CATALOG
from unified.evaluation.evaluators import EVALUATORS
from unified.evaluation.protocols import PROTOCOLS
from unified.evaluation.submission import SERVERS

HERE = Path(__file__).parent
LINES = (HERE.parents[2] / "docs" / "protocols.md").read_text().splitlines()
TESTS = "\n".join(path.read_text() for path in sorted(HERE.parent.rglob("test_*.py")))


def _tests(path: Path) -> dict[str, str]:
    """Name of a test -> its code, what it is run with included."""
    lines = path.read_text().splitlines()
    return {
        node.name: "\n".join(
            lines[min(part.lineno for part in (node, *node.decorator_list)) - 1 : node.end_lineno]
        )
        for node in ast.parse("\n".join(lines)).body
        if isinstance(node, ast.FunctionDef) and node.name.startswith("test_")
    }


PROTOCOL_TESTS = _tests(HERE / "test_protocols.py")


def rows() -> list[list[str]]:
    start = LINES.index("| protocol | benchmark | who reports it | what it counts | test |")
    table = []
    for line in LINES[start + 2 :]:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


def test_every_protocol_has_a_line_in_the_order_of_the_code() -> None:
    assert [row[0].strip("`") for row in rows()] == list(PROTOCOLS)


def test_every_line_is_complete_and_names_tests_that_score_by_its_protocol() -> None:
    for row in rows():
        assert len(row) == 5
        assert all(row)
        names = re.findall(r"`(test_\w+)`", row[4])
        assert names
        assert [name for name in names if name not in PROTOCOL_TESTS] == []
        assert any(f'"{row[0].strip("`")}"' in PROTOCOL_TESTS[name] for name in names), row[0]


def test_everything_named_in_the_text_exists() -> None:
    text = "\n".join(LINES)
    for name in re.findall(r"`(test_\w+)`", text):
        assert f"def {name}(" in TESTS
    section = text.split("## The differences that matter")[1].split("## From a model")[0]
    quoted = set(re.findall(r"`([a-z0-9-]+)`", section)) - {"lvos-unsup"}
    assert {name for name in quoted if not name.startswith("--")} <= set(PROTOCOLS)


def first_column(heading: str) -> set[str]:
    section = "\n".join(LINES).split(heading)[1].split("\n## ")[0]
    cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    return {name for cell in cells for name in re.findall(r"`([a-z0-9-]+)`", cell)}


def test_every_evaluator_is_listed_with_its_protocols() -> None:
    section = "\n".join(LINES).split("## From a model")[1].split("\n## ")[0]
    listed: dict[str, set[str]] = {}
    for line in section.splitlines():
        if line.startswith("| `"):
            kinds, protocols = (re.findall(r"`([a-z0-9_-]+)`", c) for c in line.split("|")[1:3])
            listed.update({kind: set(protocols) for kind in kinds})
    assert set(listed) == set(EVALUATORS)
    videos = {name for name, protocol in PROTOCOLS.items() if protocol.task in ("vos", "rvos")}
    files_only = {"mmseg", "mmseg-reduce-zero", "youtube-vis"}
    assert set().union(videos, files_only, *listed.values()) == set(PROTOCOLS)
    listed["vos"], listed["rvos"] = videos, videos  # "those of videos"
    listed["ris"] |= listed["gris"]  # one evaluator
    listed["gris"] = listed["ris"]
    for kind, evaluator in EVALUATORS.items():
        assert set(evaluator.known_protocols) == listed[kind]
        assert set(evaluator.default_protocols) <= listed[kind]
    for row in CATALOG.values():
        if row.split == "test":
            assert set(row.protocols) <= listed[row.evaluator]


def test_what_the_sets_of_the_catalog_are_scored_by_comes_first() -> None:
    """Before the semicolon are the protocols that nobody has to ask for."""
    section = "\n".join(LINES).split("## From a model")[1].split("\n## ")[0]
    compared = 0
    for line in section.splitlines():
        (kind, cell) = line.split("|")[1:3] if line.startswith("| `") else ("", "")
        wanted = {
            protocol
            for row in CATALOG.values()
            if row.split == "test" and f"`{row.evaluator}`" in kind
            for protocol in row.protocols
        }
        if wanted and "those of videos" not in cell:
            assert set(re.findall(r"`([a-z0-9-]+)`", cell.split(";")[0])) == wanted
            compared += 1
    assert compared >= 3


def test_files_and_servers_are_listed_for_all() -> None:
    assert first_column("## Files") == set(PROTOCOLS)
    assert first_column("## Submissions") == set(SERVERS)
