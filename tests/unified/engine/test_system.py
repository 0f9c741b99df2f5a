"""How systems are found, and what the toolkit does where one is broken."""

from __future__ import annotations

import pytest

from unified.engine.system import find_systems, system
from unified.errors import ConfigError
from unified.weights import WEIGHTS, resolve


def test_a_system_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"META_ARCHITECTURE is 'MaskRCNN': choose a system"):
        system("MaskRCNN")


def test_weights_that_come_with_systems_are_intact_and_small_together() -> None:
    entries = {
        name: row for found in find_systems().values() for name, row in found.weights.items()
    }
    assert entries.items() <= WEIGHTS.items()
    assert sum(resolve(n).stat().st_size for n, row in entries.items() if row.bundled) < 60e6
