"""How scores become answers: chosen on sentences that nothing was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor

from unified.inference.chooser.batch import Choices
from unified.inference.chooser.choosing import Rules, margin, pick, with_own_scores

OWN = (0.0, 0.15, 0.3, 0.45, 0.6, 0.8, 1.0)
SEVERAL = (-1.0, -0.5, 0.0, 1.0, np.inf)
ACCEPTED = (-1.0, 0.0, 1.0)
NAMES = (0.0, 0.5, 1.0)
RIGHT = 0.5


@dataclass(frozen=True)
class Trial:
    """One sentence of the choosing set with its candidates.

    Attributes:
        choices: of the network, S = 1.
        own_scores: (K,) of the segmenter, in [0, 1].
        names: (K,) what its names say.
        masks: (K, h, w) bool.
        truth: (h, w) bool; None if nothing is meant.
    """

    choices: Choices
    own_scores: Tensor
    names: Tensor
    masks: Tensor
    truth: Tensor | None


def fit_rules(trials: Sequence[Trial], *, threshold: float, keep: float) -> Rules:
    """The rules with most right answers among sentences about something that is there.

    Args:
        threshold: score that decides about refusal.
        keep: share of sentences about something that is there whose score is to reach it.
    """
    present = [trial for trial in trials if trial.truth is not None]
    _, own, several, accepted, names = max(
        (right(present, Rules(own, 0.0, several, accepted, names)), own, several, accepted, names)
        for own in OWN
        for names in NAMES
        for several in SEVERAL
        for accepted in (ACCEPTED if several < np.inf else ACCEPTED[:1])
    )
    rules = Rules(own, 0.0, several, accepted, names)
    lowest = float(np.quantile([margin(trial.choices, rules) for trial in present], 1 - keep))
    return replace(rules, shift=float(np.log(threshold / (1 - threshold))) - lowest)


def right(present: Sequence[Trial], rules: Rules) -> float:
    """Share of answers with an IoU above ``RIGHT``, refused or not."""
    return float(np.mean([_iou(trial, rules) > RIGHT for trial in present]))


def _iou(trial: Trial, rules: Rules) -> float:
    logits = with_own_scores(trial.choices, trial.own_scores, trial.names, rules)
    answer = trial.masks[pick(trial.choices, logits, rules)].any(dim=0)
    assert trial.truth is not None
    shared = (answer & trial.truth).sum()
    return float(shared / (answer | trial.truth).sum().clamp(min=1))
