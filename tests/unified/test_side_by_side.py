"""Ways to run a model meet the same frames in turn."""

from __future__ import annotations

import numpy as np

from tests.toy.model import Toy
from unified.export.side_by_side import measure, ways_of


def test_rows_of_equal_ways_differ_in_time_alone() -> None:
    toy = Toy().eval()
    settings = {"short_side": 64, "max_size": 96}
    ways = {"one": ways_of(toy, [], settings)["as it is"]}
    ways["two"] = ways_of(toy, [], settings)["as it is"]
    first, second = measure(ways, num_objects=2, size=(48, 64), num_frames=2)
    assert (first.way, second.way, first.num_objects) == ("one", "two", 2)
    assert first.different == second.different == 0
    assert first.ratio == 1 and second.ratio == first.processor / second.processor
    assert min(first.processor, first.clock, second.processor) > 0
    assert str(first).startswith("| 2 | one |") and np.isfinite(second.ratio)


def test_a_way_that_answers_otherwise_is_told() -> None:
    toy = Toy().eval()
    ways = {"one": ways_of(toy, [], {"short_side": 64, "max_size": 96})["as it is"]}
    ways["other"] = ways_of(toy, [], {"short_side": 32, "max_size": 48})["as it is"]
    _, other = measure(ways, num_objects=1, size=(48, 64), num_frames=2)
    assert other.different > 0
