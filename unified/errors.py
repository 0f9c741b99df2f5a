"""The errors users of the toolkit can meet.

``UnifiedError``
    ``InputError``: an image, mask, clip, sentence or annotation file that cannot be used.
    ``ConfigError``: an unknown key, a value that does not fit, a missing optional dependency.
    ``CheckpointError``: a weights file that is unreadable, unsafe or of another model.
"""

from __future__ import annotations


class UnifiedError(ValueError):
    """Base of every error that a user can cause and mend; tools print it without a traceback."""


class InputError(UnifiedError):
    """An input (image, mask, clip, sentence, annotation) is missing, corrupt or does not fit."""


class OtherRunError(InputError):
    """A run is to go on in a folder that holds the results of one that was asked something else."""


class ConfigError(UnifiedError):
    """A configuration is wrong, or a dependency that it needs is not installed."""


class CheckpointError(UnifiedError):
    """A weights file is missing, damaged, unsafe to read or belongs to another model."""


def first_line(error: BaseException) -> str:
    """What another library says went wrong, short enough for a message of ours."""
    lines = str(error).strip().splitlines()
    return lines[0][:200] if lines else type(error).__name__
