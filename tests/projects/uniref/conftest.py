"""A tiny UniRef for the tests; see ``make_uniref``."""

from __future__ import annotations

import pytest

from projects.uniref.model import UniRef
from tests.projects.uniref.tiny import MakeUniRef, make_uniref


@pytest.fixture(scope="session")
def build_uniref() -> MakeUniRef:
    """The function that makes a new tiny UniRef; see ``make_uniref``."""
    return make_uniref


@pytest.fixture(scope="session")
def uniref() -> UniRef:
    """One tiny UniRef for the whole run; tests must not change it."""
    return make_uniref()
