"""The chooser: what a sentence means among the candidates of an image, or why it means nothing."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from unified.errors import CheckpointError
from unified.inference.chooser.batch import Candidates, Choices
from unified.inference.chooser.joint import JointNetwork
from unified.inference.chooser.network import ChooserNetwork
from unified.inference.chooser.scene import Scene, own_scores
from unified.inference.frames import EncodedFrame
from unified.inference.sense import nonsense
from unified.modeling.backbones import Backbone
from unified.modeling.text_encoder import TextEncoder
from unified.segmenter import Segmenter
from unified.structures import References

logger = logging.getLogger(__name__)

Network = ChooserNetwork | JointNetwork
NETWORKS: Mapping[str, type[Network]] = {"network": ChooserNetwork, "joint": JointNetwork}
RULES, SEGMENTER = "rules", "segmenter"
LEAST_SCORE = 1e-3  # so that logits stay finite


@dataclass(frozen=True)
class Rules:
    """What turns scores into an answer; chosen on sentences that nothing is trained on.

    Attributes:
        own: weight of the segmenter's own logit of a candidate.
        shift: added to the logit of the answer: where its score meets the threshold.
        several: logit from which a sentence means several things.
        accepted: logit from which each further candidate belongs to them.
        names: weight of what the segmenter's names say about a candidate.
    """

    own: float
    shift: float
    several: float
    accepted: float
    names: float = 0.0


@dataclass(frozen=True)
class Answer:
    """What a sentence means.

    Attributes:
        probability: (h, w) on the grid of the scene.
        score: in [0, 1].
    """

    probability: Tensor
    score: float


class Chooser:
    """Answers sentences about images around a segmenter.

    Args:
        networks: trained on candidates of ``model``, on its device; their scores are averaged.
        rules: that go with them.
        model: finds the candidates.
        text: the language model that the networks were trained with.
        backbone, mean, std: as of ``Describer``.
    """

    def __init__(
        self,
        *,
        networks: Sequence[Network],
        rules: Rules,
        model: Segmenter,
        text: TextEncoder,
        backbone: Backbone,
        mean: Tensor,
        std: Tensor,
    ) -> None:
        self.networks = [network.eval() for network in networks]
        self.rules, self.model, self.text = rules, model, text
        self.backbone, self.mean, self.std = backbone, mean, std
        vocabulary = {} if text.tokenizer is None else text.tokenizer.get_vocab()
        self.vocabulary = frozenset(vocabulary)
        self.is_name: Callable[[str], bool] = getattr(model, "is_name", lambda _: False)

    def understands(self, text: str) -> bool:
        """Whether a sentence is asked at all; logs why not."""
        reason = nonsense(text, self.vocabulary)
        if reason is not None:
            logger.warning("%r is not looked for: %s; write in English what is meant", text, reason)
        return reason is None

    def look(self, frames: Sequence[EncodedFrame], image: np.ndarray) -> Scene:
        """The candidates of an image (H, W, 3) uint8 RGB; frames as of ``Scene``.

        The model may have been moved since it got its chooser, which follows it.
        """
        device = frames[0].images.tensor.device
        for module in (*self.networks, self.backbone):
            module.to(device)
        self.mean, self.std = self.mean.to(device), self.std.to(device)
        return Scene(self.model, frames, image, self.backbone, self.mean, self.std)

    def answer(self, scene: Scene, text: str, references: References) -> Answer:
        """What a sentence means in a scene.

        Args:
            references: of the sentence.
        """
        parts, score = self.chosen(scene, text, references)
        none = parts.new_zeros(scene.size)
        return Answer(parts.amax(dim=0) if len(parts) else none, score)

    def chosen(self, scene: Scene, text: str, references: References) -> tuple[Tensor, float]:
        """Probabilities (K, h, w) of the candidates that a sentence means, and its score.

        A name that the segmenter learnt is answered by the segmenter itself, which finds more of
        such things than the networks do.
        """
        if self.is_name(text):
            own, certainty = scene.own(references)
            return own[None], float(certainty)
        asked = scene.asked(references)
        found, described = scene.candidates(asked)
        if not len(found):
            return found.probabilities, 0.0
        words = self.text([text])
        given = (
            Candidates.stack([described]),
            torch.zeros(1, dtype=torch.int64, device=words.words.device),
            words.last_hidden.float(),
            words.padding_mask,
        )
        choices = Choices.mean([network(*given) for network in self.networks])
        names = scene.names(described, references)
        logits = with_own_scores(choices, own_scores(found, asked), names, self.rules)
        chosen = pick(choices, logits, self.rules)
        score = float(torch.tensor(margin(choices, self.rules)).sigmoid())
        return found.probabilities[chosen], score


def with_own_scores(choices: Choices, scores: Tensor, names: Tensor, rules: Rules) -> Tensor:
    """Logits (K,) of one sentence with the segmenter's own say in them.

    Args:
        scores: (K,) as of ``own_scores``.
        names: (K,) as of ``Scene.names``.
    """
    own = scores.clamp(LEAST_SCORE, 1 - LEAST_SCORE).logit()
    return choices.logits[0] + rules.own * own + rules.names * names


def margin(choices: Choices, rules: Rules) -> float:
    """Logit of the score of one sentence.

    Without the segmenter's own scores, which hardly differ for what is there and what is not.
    """
    return float(choices.logits[0].logsumexp(dim=0) - choices.none[0]) + rules.shift


def pick(choices: Choices, logits: Tensor, rules: Rules) -> Tensor:
    """Which candidates (K,) bool are the answer: the best one, or all accepted ones."""
    best = torch.arange(len(logits), device=logits.device) == logits.argmax()
    if float(choices.many[0]) <= rules.several:
        return best
    return best | (logits - choices.none[0] > rules.accepted)


def networks_of(weights: Mapping[str, Tensor]) -> tuple[list[Network], Rules]:
    """The networks and the rules of a weights file.

    Raises:
        CheckpointError: it is none of a chooser, or of another one.
    """
    parts: dict[str, dict[str, Tensor]] = {}
    for key, value in weights.items():
        kind, _, name = key.partition(".")
        if kind in NETWORKS:
            parts.setdefault(kind, {})[name] = value.float()
    whole = all({"mean", "read.weight"} <= set(own) for own in parts.values())
    if RULES not in weights or not parts or not whole:
        raise CheckpointError(
            f"the file holds no chooser: expected {', '.join(f'{kind}.*' for kind in NETWORKS)} "
            "and rules, as tools/train_chooser.py writes them"
        )
    networks = []
    for kind, own in parts.items():
        dim, text_dim = own["read.weight"].shape
        network = NETWORKS[kind](seen_dim=len(own["mean"]), text_dim=text_dim, dim=dim)
        try:
            network.load_state_dict(own)
        except RuntimeError as error:
            raise CheckpointError("the file holds another chooser than this one") from error
        networks.append(network)
    return networks, Rules(*weights[RULES].tolist())


def weights_of(networks: Sequence[Network], rules: Rules, sha256: str) -> dict[str, Tensor]:
    """What ``networks_of`` and ``made_for`` read; numbers of networks in half precision.

    Args:
        sha256: of the weights file of the segmenter, hexadecimal.
    """
    content = {
        f"{kind}.{key}": value.half().cpu()
        for network in networks
        for kind, known in NETWORKS.items()
        if isinstance(network, known)
        for key, value in network.state_dict().items()
    }
    digest = torch.tensor(list(bytes.fromhex(sha256)), dtype=torch.uint8)
    return content | {RULES: torch.tensor(list(vars(rules).values())), SEGMENTER: digest}


def made_for(weights: Mapping[str, Tensor], sha256: str) -> bool:
    """Whether a chooser was trained on candidates of the segmenter with this weights file."""
    return SEGMENTER in weights and bytes(weights[SEGMENTER].tolist()).hex() == sha256
