"""How systems are found, and what the toolkit does where one is broken."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping

import pytest

from unified.engine import system as module
from unified.engine.system import ModelEntry, System, find_systems, system
from unified.errors import ConfigError
from unified.weights import WEIGHTS, resolve


def make_system(name: str, models: Mapping[str, ModelEntry]) -> System:
    return System(name, add_config=lambda _: None, build=lambda _: None, models=models)


@pytest.fixture
def install(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., None]]:
    """Function after which the systems it is given are found, and no others."""

    def found(*systems: System) -> None:
        loaders = [(f"the folder {one.name}", lambda one=one: one) for one in systems]
        monkeypatch.setattr(module, "_in_folders", lambda: loaders)
        monkeypatch.setattr(module, "_in_entry_points", lambda: ())

    module._systems.cache_clear()
    yield found
    monkeypatch.undo()
    module._systems.cache_clear()


@pytest.mark.parametrize(
    ("models", "reason"),
    [
        ({"b": ModelEntry("b.yaml"), "a": ModelEntry("b.yaml")}, "has models called a already"),
        ({"b": ModelEntry("b.yaml", default=True)}, "models a, b one alone can be the default"),
    ],
)
def test_a_model_that_another_system_has_leaves_the_later_one_out(
    install: Callable[..., None],
    models: Mapping[str, ModelEntry],
    reason: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    first = make_system("First", {"a": ModelEntry("a.yaml", default=True)})
    last = make_system("Third", {"c": ModelEntry("c.yaml")})
    install(first, make_system("Second", models), last)
    with caplog.at_level(logging.WARNING):
        assert find_systems() == {"First": first, "Third": last}
    (message,) = caplog.messages
    assert message.startswith("the folder Second is left out: ValueError") and reason in message


def test_a_system_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"META_ARCHITECTURE is 'MaskRCNN': choose a system"):
        system("MaskRCNN")


def test_weights_that_come_with_systems_are_intact_and_small_together() -> None:
    entries = {
        name: row for found in find_systems().values() for name, row in found.weights.items()
    }
    assert entries.items() <= WEIGHTS.items()
    assert sum(resolve(n).stat().st_size for n, row in entries.items() if row.bundled) < 60e6
