"""Tokenizers of several kinds, trained here on mixed scripts, and model folders made of them."""

from __future__ import annotations

import json
from pathlib import Path

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


def write_model(folder: Path, tokenizer: Tokenizer, **config: object) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    values = {"architectures": ["LlamaForCausalLM"], "max_position_embeddings": 64} | config
    (folder / "config.json").write_text(json.dumps(values))
    return folder
