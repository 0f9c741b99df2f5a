"""Takes nearly tied proposals in the order in which a recording took them.

The order of proposals decides which learned query each of them gets. Where two proposal logits
differ by less than rounding, another implementation may take them the other way round, and the call
is then another one. A recording of a clip says for every call what came out, which tells the order.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import combinations

import torch
from torch import Tensor

from projects.uniref.model import UniRef
from unified.modeling.detr_head import Queries

logger = logging.getLogger(__name__)

# Proposal logits closer than this are tied; measured rounding is 2e-6 to 3e-6 on each of them.
TIED = 6e-6
# A call taken in another order differs by far more than this, the same call by far less.
SAME_CALL = 1e-4
MAX_PAIRS = 6

Pair = tuple[int, int]


@contextmanager
def recorded_order(model: UniRef, call_logits: Tensor, tied: float = TIED) -> Iterator[None]:
    """While active, a call that matches no recorded one is taken again with tied proposals swapped.

    Args:
        call_logits: (calls, Q) or (calls, Q, classes) recorded class logits, calls in any order.
        tied: proposal logits closer than this may change places.
    """
    first_class = call_logits.view(*call_logits.shape[:2], -1)[..., 0]
    swaps: list[tuple[int, Pair]] = []
    last = model.head.num_layers - 1

    def swap(_: object, __: object, logits: Tensor) -> Tensor:
        for image, (first, second) in swaps:
            order = torch.arange(logits.shape[1])
            order[[first, second]] = torch.tensor([second, first])
            logits = logits.clone()
            logits[image] = logits[image, order]
        return logits

    def known(queries: Queries, image: int) -> bool:
        ours = model.head.logits(queries, last)[image, :, 0]
        return bool(((first_class - ours).abs().amax(dim=1) < SAME_CALL).any())

    def take_again(head: torch.nn.Module, inputs: tuple, queries: Queries) -> Queries:
        chosen: list[tuple[int, Pair]] = []
        for image in range(len(queries.selected)):
            if known(queries, image):
                continue
            for candidate in _subsets(tied_pairs(queries, image, tied)):
                swaps[:] = [(image, pair) for pair in candidate]
                if known(head.forward(*inputs), image):
                    chosen += swaps
                    logger.info("a call was taken again with %d tied pairs swapped", len(swaps))
                    break
        swaps[:] = chosen
        again = head.forward(*inputs) if chosen else queries
        swaps.clear()
        return again

    handles = [
        model.head.class_embed[-1].register_forward_hook(swap),
        model.head.register_forward_hook(take_again),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def tied_pairs(queries: Queries, image: int, tied: float) -> list[Pair]:
    """Neighbouring tokens, by proposal logit, that rounding may exchange, closest first."""
    num = queries.selected.shape[1]
    logits, tokens = queries.proposal_logits[image, :, 0].sort(descending=True, stable=True)
    gaps = -logits[: num + 1].diff()
    close = ((gaps > 0) & (gaps < tied)).nonzero()[:, 0]
    close = close[gaps[close].argsort()][:MAX_PAIRS]
    return [(int(tokens[i]), int(tokens[i + 1])) for i in close]


def _subsets(pairs: list[Pair]) -> Iterator[tuple[Pair, ...]]:
    for size in range(1, len(pairs) + 1):
        yield from combinations(pairs, size)
