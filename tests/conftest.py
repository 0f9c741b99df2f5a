"""The toy system, installed for the whole run, and tiny models of it."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from tests.toy.model import MakeToy, Toy, make_toy

INSTALLED = Path(__file__).parent / "toy/installed"

# Before anything asks for the systems: an entry point is found in the folders of the path.
sys.path.append(str(INSTALLED))


@pytest.fixture(scope="session")
def build_segmenter() -> MakeToy:
    """The function that makes a new toy; see ``make_toy``."""
    return make_toy


@pytest.fixture(scope="session")
def segmenter() -> Toy:
    """One toy for the whole run; tests must not change it."""
    return make_toy()
