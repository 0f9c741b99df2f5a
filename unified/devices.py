"""The only place that chooses a device."""

from __future__ import annotations

import torch

from unified.errors import ConfigError, first_line


def pick_device(name: str = "auto") -> torch.device:
    """The device called ``name``; "auto" is a GPU if there is one that works, else the CPU.

    Raises:
        ConfigError: torch knows no such device, or this machine does not have it.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        mps = torch.backends.mps.is_available()
        return torch.device("mps" if mps else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"device {name!r} cannot be used here ({first_line(error)}): choose auto or cpu"
        ) from error
    return device
