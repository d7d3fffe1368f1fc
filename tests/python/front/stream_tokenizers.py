"""Tokenizers as found in the wild, one per algorithm and decoder, each trained here on scripts of its own."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    trainers,
)

CODE = [
    "def fibonacci(n: int) -> int:\n    return n if n < 2 else fibonacci(n - 1) + fibonacci(n - 2)\n",
    "for (int i = 0; i < size; ++i) {\n\t\tout[i] = in[i] * 2.5f;  // 🚀 fast\n}\n",
    "# 👩‍👩‍👧‍👦 family 🏳️‍🌈 flag 🇩🇪 country 👍🏽 skin ✅ ❌ → ≠ ≤\nprint('🐍' * 3)\n",
]
EUROPEAN = [
    "The quick brown fox jumps over the lazy dog; who counts? L'été, le garçon naïf mange une crêpe.",
    "Съешь ещё этих мягких французских булок, да выпей чаю. Ξεσκεπάζω την ψυχοφθόρα βδελυγμία.",
    "a    b        c\n\n    d",
]
CHINESE_JAPANESE = [
    "敏捷的棕色狐狸跳过了懒狗。数据结构与算法，是计算机科学的基础。",
    "いろはにほへと ちりぬるを わかよたれそ つねならむ うゐのおくやま けふこえて",
    "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。",
]
GERMAN_TURKISH = [
    "Die Straße führt über die Brücke nach Köln. Größe zählt, oder? Ja! Donaudampfschifffahrtsgesellschaft.",
    "Pijamalı hasta yağız şoföre çabucak güvendi. İstanbul'da ışıklar söndü, değil mi?",
    "It doesn 't matter , they 've said ; I 'm here and we 're do not . ' quoted ' n't 's",
]
CYRILLIC = [
    "Широкая электрификация южных губерний даст мощный толчок подъёму сельского хозяйства",
    "Чуєш їх, доцю, га? Кумедна ж ти, прощайся без ґольфів! Љубазни фењерџија",
]
ARABIC_INDIC = [
    "نص حكيم له سر قاطع وذو شأن عظيم مكتوب على ثوب أخضر ومغلف بجلد أزرق بِسْمِ ٱللَّٰهِ",
    "ऋषियों को सताने वाले दुष्ट राक्षसों के राजा रावण का सर्वनाश करने वाले विष्णु क्षत्रिय",
    "e\u0301 a\u0308\u0332 combining, Z\u0351\u036b\u0343a\u0324lgo, தமிழ் க்ஷ, עִבְרִית",
]
KOREAN_THAI = [
    "다람쥐 헌 쳇바퀴에 타고파. 키스의 고유조건은 입술끼리 만나야 하고 특별한 기술은 필요치 않다.",
    "เป็นมนุษย์สุดประเสริฐเลิศคุณค่า กว่าบรรดาฝูงสัตว์เดรัจฉาน",
]
TEXTS = [
    *CODE,
    *EUROPEAN,
    *CHINESE_JAPANESE,
    *GERMAN_TURKISH,
    *CYRILLIC,
    *ARABIC_INDIC,
    *KOREAN_THAI,
    "mixed: ñ 你好👋🏿 مرحبا नमस्ते สวัสดี e\u0301 <|end|> [SEP] </s> \u2581 x",
]
MARK = "\u2581"
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def byte_level(texts: Sequence[str], special: Sequence[str]) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=420,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def indic() -> Tokenizer:
    """Added tokens with spaces, in scripts that the byte alphabet does not cover, special and not."""
    tokenizer = byte_level(ARABIC_INDIC, ["<|begin|>", "<|end|>"])
    tokenizer.add_special_tokens(
        [AddedToken("<|नमस्ते|>", special=True), AddedToken("<|two words|>", special=True)]
    )
    tokenizer.add_tokens([AddedToken("مرحبا"), AddedToken(" <tool> "), AddedToken("\u0301")])
    return tokenizer


def only_unknown_are_bytes(tokenizer: Tokenizer, decoder: object) -> Tokenizer:
    """Byte tokens are no special tokens, though the trainer was given them as such."""
    tokenizer.decoder = decoder
    state = json.loads(tokenizer.to_str())
    state["added_tokens"] = [token for token in state["added_tokens"] if token["content"] not in BYTES]
    return Tokenizer.from_str(json.dumps(state))


LLAMA_DECODER = [decoders.Replace(MARK, " "), decoders.ByteFallback(), decoders.Fuse()]


def byte_fallback(texts: Sequence[str], *, strips: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, fuse_unk=True, unk_token="<unk>"))
    replace = normalizers.Replace(" ", MARK)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend(MARK), replace]) if strips else replace
    trainer = trainers.BpeTrainer(
        vocab_size=500, special_tokens=["<unk>", "<s>", "</s>", *BYTES], show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    steps = LLAMA_DECODER + ([decoders.Strip(" ", 1, 0)] if strips else [])
    return only_unknown_are_bytes(tokenizer, decoders.Sequence(steps))


def unigram(texts: Sequence[str], scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False)
    tokenizer.decoder = decoders.Metaspace(prepend_scheme=scheme)
    trainer = trainers.UnigramTrainer(
        vocab_size=300, special_tokens=["<unk>", "<s>", "</s>"], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def unigram_byte_fallback() -> Tokenizer:
    """As sentencepiece models with byte_fallback are converted."""
    trained = json.loads(unigram(CHINESE_JAPANESE, "always").to_str())
    vocab = [("<unk>", 0.0), ("<s>", 0.0), *((token, -10.0) for token in BYTES)]
    vocab += [(token, score) for token, score in trained["model"]["vocab"] if token not in dict(vocab)]
    tokenizer = Tokenizer(models.Unigram(vocab, 0, byte_fallback=True))
    tokenizer.normalizer = normalizers.Replace(" ", MARK)
    tokenizer.decoder = decoders.Sequence(LLAMA_DECODER)
    tokenizer.add_special_tokens([AddedToken("<s>", special=True), AddedToken("<|eos|>", special=True)])
    return tokenizer


def word_piece(prefix: str, *, cleanup: bool) -> Tokenizer:
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", continuing_subword_prefix=prefix))
    tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(r"\s+"), "removed"), pre_tokenizers.Split(Regex(r"[.?!,;]"), "isolated")]
    )
    tokenizer.decoder = decoders.WordPiece(prefix=prefix, cleanup=cleanup)
    trainer = trainers.WordPieceTrainer(
        vocab_size=300,
        special_tokens=["[UNK]", "[CLS]", "[SEP]", "[MASK]"],
        continuing_subword_prefix=prefix,
        show_progress=False,
    )
    tokenizer.train_from_iterator(GERMAN_TURKISH, trainer)
    # What cleanup looks for, inside tokens and across them.
    tokenizer.add_tokens(
        [AddedToken(token) for token in ("do not", " n't", "who ?", "a ' b", f"{prefix}'s", "...")]
    )
    return tokenizer


def word_level() -> Tokenizer:
    tokenizer = Tokenizer(models.WordLevel(unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    trainer = trainers.WordLevelTrainer(special_tokens=["[UNK]", "[BOS]", "[EOS]"], show_progress=False)
    tokenizer.train_from_iterator(CYRILLIC, trainer)
    return tokenizer


MAKERS: dict[str, Callable[[], Tokenizer]] = {
    "byte level BPE, code and emoji": lambda: byte_level(CODE, ["<|end|>"]),
    "byte level BPE, Arabic and Devanagari": indic,
    "BPE with byte fallback, as Llama 2": lambda: byte_fallback(EUROPEAN, strips=True),
    "BPE with byte fallback, as Gemma, Korean": lambda: byte_fallback(KOREAN_THAI, strips=False),
    "Unigram with byte fallback": unigram_byte_fallback,
    "Unigram with Metaspace, Chinese": lambda: unigram(CHINESE_JAPANESE, "always"),
    "Unigram with Metaspace, never a prefix": lambda: unigram(CHINESE_JAPANESE, "never"),
    "WordPiece, German and Turkish": lambda: word_piece("##", cleanup=True),
    "WordPiece, another prefix, no cleanup": lambda: word_piece("@@", cleanup=False),
    "WordLevel, Cyrillic, no decoder": word_level,
}
