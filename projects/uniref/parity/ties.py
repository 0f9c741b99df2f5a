"""Takes nearly tied proposals in the order in which a recording took them.

The order of proposals decides which learned query each of them gets. Where proposal logits differ
by less than rounding, another implementation, or the same one with another number of threads, may
take them in another order, and the call is then another one. A recording says for every call what
came out, which tells the order.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from torch import Tensor

from projects.uniref.model import UniRef
from unified.modeling.detr_head import Proposals

logger = logging.getLogger(__name__)

# Proposal logits closer than this are tied; measured rounding is 2e-6 to 3e-6 on each of them, here
# and in the recording.
TIED = 1e-5
# A call taken in another order differs by far more than this, the same call by far less.
SAME_CALL = 1e-4
MAX_PAIRS = 60

Pair = tuple[int, int]


@contextmanager
def recorded_order(model: UniRef, call_logits: Tensor, tied: float = TIED) -> Iterator[None]:
    """While active, tied proposals are taken as in the recorded call that then comes out.

    Exchanges of two that bring a call closer to a recorded one are kept, until it is that one: each
    puts a token where it was, so that chains of ties are sorted out too.

    Args:
        call_logits: (calls, Q) or (calls, Q, classes) recorded class logits, calls in any order.
        tied: proposal logits closer than this may change places.
    """
    head, choose = model.head, model.head.choose
    first_class = call_logits.view(*call_logits.shape[:2], -1)[..., 0]

    def errors(proposals: Proposals, selected: Tensor, image: int) -> tuple[float, float]:
        """Mean and largest difference to the recorded call that is closest."""
        logits = head.logits(head.decode(proposals, selected), head.num_layers - 1)
        differences = (first_class - logits[image, :, 0]).abs()
        closest = differences[differences.mean(dim=1).argmin()]
        return float(closest.mean()), float(closest.max())

    def choose_as_recorded(proposals: Proposals) -> Tensor:
        selected = choose(proposals)
        for image in range(len(selected)):
            best, worst = errors(proposals, selected, image)
            if worst <= SAME_CALL:
                continue
            pairs = deque(tied_pairs(proposals, image, selected.shape[1], tied))
            rejected = 0
            while worst > SAME_CALL and rejected < len(pairs):
                order = _exchanged(selected, image, pairs[0])
                mean, largest = errors(proposals, order, image)
                pairs.rotate(-1)
                rejected += 1
                if mean < best:
                    best, worst, selected, rejected = mean, largest, order, 0
                    logger.info("two tied proposals changed places, mean error now %.1e", mean)
        return selected

    head.choose = choose_as_recorded
    try:
        yield
    finally:
        del head.choose


def tied_pairs(proposals: Proposals, image: int, num: int, tied: float) -> list[Pair]:
    """Pairs of tokens that rounding may exchange among the first ``num``, closest first.

    Tokens where no proposal is allowed are all alike, and their order changes nothing.
    """
    logits, tokens = proposals.logits[image, :, 0].sort(descending=True, stable=True)
    allowed = proposals.anchors[image, tokens].isfinite().all(dim=1)
    pairs: list[tuple[float, Pair]] = []
    for rank in range(num):
        close = logits[rank] - logits[rank + 1 :] < tied
        for other in (close & allowed[rank] & allowed[rank + 1 :]).nonzero()[:, 0].tolist():
            gap = float(logits[rank] - logits[rank + 1 + other])
            pairs.append((gap, (int(tokens[rank]), int(tokens[rank + 1 + other]))))
    return [pair for _, pair in sorted(pairs)[:MAX_PAIRS]]


def _exchanged(selected: Tensor, image: int, pair: Pair) -> Tensor:
    """(B, Q) tokens with two of an image exchanged; the second may not be among them yet."""
    first, second = (selected[image] == token for token in pair)
    selected = selected.clone()
    selected[image, first], selected[image, second] = pair[1], pair[0]
    return selected
