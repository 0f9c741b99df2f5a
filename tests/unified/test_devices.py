from __future__ import annotations

import pytest
import torch

from unified.devices import pick_device
from unified.errors import ConfigError


def test_cpu_is_always_there() -> None:
    assert pick_device("cpu") == torch.device("cpu")


def test_auto_is_a_device_that_can_hold_a_tensor() -> None:
    device = pick_device()
    assert torch.ones(2, device=device).sum().item() == 2
    if not torch.cuda.is_available() and not torch.backends.mps.is_available():
        assert device.type == "cpu"


@pytest.mark.parametrize("name", ["gpu", "", "cpu:x", "cuda:99", "cpu,cuda"])
def test_a_device_that_is_not_there_is_named(name: str) -> None:
    with pytest.raises(ConfigError, match=f"device '{name}' cannot be used here .*auto or cpu"):
        pick_device(name)
