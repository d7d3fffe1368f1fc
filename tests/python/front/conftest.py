"""Tokenizers trained on mixed scripts, model folders and repositories made of them, and a stand-in for
Triton's Python module."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

REPOSITORY = Path(__file__).resolve().parents[3] / "model_repository"

MIXED_SCRIPTS = [
    "The quick brown fox jumps over the lazy dog, again and again; who counts?",
    "def fibonacci(n):\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "Die Straße führt über die Brücke nach Köln. Größe zählt.",
    "Съешь ещё этих мягких французских булок, да выпей чаю.",
    "敏捷的棕色狐狸跳过了懒狗。数据结构与算法。",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ",
    "다람쥐 헌 쳇바퀴에 타고파. 키스의 고유조건은 입술끼리",
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण",
    "👩‍👩‍👧‍👦 family, 🏳️‍🌈 flag, 🇩🇪 country, e\u0301 combining",
]


def train_byte_level() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=["<|begin|>", "<|end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(MIXED_SCRIPTS, trainer)
    # Added tokens that the byte alphabet covers, and that it does not: a space is no letter of it, é is.
    tokenizer.add_tokens(
        [AddedToken("<tool call>"), AddedToken("é"), AddedToken("日本"), AddedToken("<tab>")]
    )
    tokenizer.add_special_tokens([AddedToken("<|im end|>", special=True)])
    return tokenizer


def train_metaspace_fallback() -> Tokenizer:
    """As Llama 2: U+2581 for a space, unknown characters as byte tokens."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    trainer = trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    # Half of the text, so that scripts are left to the byte tokens; and runs of spaces as tokens.
    tokenizer.train_from_iterator([*MIXED_SCRIPTS[:5], "a    b        c\n\n    d"], trainer)
    # The trainer makes every token it was given special: byte tokens are not.
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [
        token for token in state["added_tokens"] if not token["content"].startswith("<0x")
    ]
    tokenizer = Tokenizer.from_str(json.dumps(state))
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.add_tokens([AddedToken(" two words "), AddedToken("<0xZZ>"), AddedToken("▁▁")])
    return tokenizer


def train_metaspace(prepend_scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=prepend_scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=400, special_tokens=["<unk>", "<s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(MIXED_SCRIPTS, trainer)
    return tokenizer


def train_word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[BOS]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(MIXED_SCRIPTS, trainer)
    return tokenizer


def with_decoder(tokenizer: Tokenizer, decoder: object) -> Tokenizer:
    tokenizer.decoder = decoder
    return tokenizer


def with_holes(tokenizer: Tokenizer) -> Tokenizer:
    """Vocabulary ids with gaps, and added tokens far behind."""
    state = json.loads(tokenizer.to_str())
    state["model"]["vocab"] = {token: 2 * token_id for token, token_id in state["model"]["vocab"].items()}
    for token in state["added_tokens"]:
        token["id"] *= 2
    return Tokenizer.from_str(json.dumps(state))


TOKENIZERS = {
    "byte_level": train_byte_level,
    "metaspace_fallback": train_metaspace_fallback,
    "metaspace_always": lambda: train_metaspace("always"),
    "metaspace_never": lambda: train_metaspace("never"),
    "word_level": train_word_level,
    "word_level_fuse": lambda: with_decoder(train_word_level(), decoders.Fuse()),
    "word_level_holes": lambda: with_holes(train_word_level()),
    "gemma_like": lambda: with_decoder(
        train_metaspace_fallback(),
        decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]),
    ),
}


@pytest.fixture(scope="session")
def tokenizers_by_name() -> dict[str, Tokenizer]:
    return {name: make() for name, make in TOKENIZERS.items()}


def write_model(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64} | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder


@pytest.fixture(scope="session")
def byte_level_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a byte-level tokenizer and a limit of 64 tokens, without weights."""
    return write_model(tmp_path_factory.mktemp("model") / "byte-level", train_byte_level())


@pytest.fixture(scope="session")
def make_repository() -> Callable[[Path, Path], Path]:
    """folder, model -> a repository with the real tokenizer model, and a generation model's settings."""

    def make(folder: Path, model: Path) -> Path:
        shutil.copytree(REPOSITORY / "tokenizer", folder / "tokenizer")
        settings = folder / "generation" / "1" / "model.json"
        settings.parent.mkdir(parents=True)
        settings.write_text(json.dumps({"model": str(model)}))
        return folder

    return make


class FakeTensor:
    def __init__(self, name: str, value: np.ndarray) -> None:
        self._name = name
        self._value = value

    def name(self) -> str:
        return self._name

    def as_numpy(self) -> np.ndarray:
        return self._value


class FakeError:
    UNKNOWN, INTERNAL, INVALID_ARG = 0, 1, 3

    def __init__(self, message: str, code: int = INTERNAL) -> None:
        self.message = message
        self.code = code


class FakeResponse:
    def __init__(
        self, output_tensors: list[FakeTensor] | None = None, error: FakeError | None = None
    ) -> None:
        self.outputs = {tensor.name(): tensor.as_numpy() for tensor in output_tensors or []}
        self.error = error


class FakeRequest:
    """inputs: name -> value or values; strings become bytes, as Triton hands them over."""

    def __init__(self, inputs: dict[str, object], parameters: dict[str, object] | None = None) -> None:
        self._inputs = [FakeTensor(name, _as_tensor(value)) for name, value in inputs.items()]
        self._parameters = parameters or {}

    def inputs(self) -> list[FakeTensor]:
        return self._inputs

    def parameters(self) -> str:
        return json.dumps(self._parameters)


def _as_tensor(value: object) -> np.ndarray:
    items = value if isinstance(value, list) else [value]
    if all(isinstance(item, bool) for item in items):
        return np.asarray(items)
    return np.asarray([item.encode() if isinstance(item, str) else item for item in items], np.object_)


@pytest.fixture
def pb_utils() -> SimpleNamespace:
    return SimpleNamespace(
        Tensor=FakeTensor, TritonError=FakeError, InferenceResponse=FakeResponse, Request=FakeRequest
    )
