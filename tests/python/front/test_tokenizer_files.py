"""The files beside tokenizer.json mean what they mean to transformers."""

from __future__ import annotations

import json
import random
import struct
from pathlib import Path

import pytest
from quire.errors import ModelError, ModelNotFound, UnsupportedModel
from quire.tokenizer import Tokenizer, build_table
from quire.triton.tokenizer_settings import TokenizerSettings
from sample_tokenizers import MIXED_SCRIPTS, TOKENIZERS, train_byte_level, write_model
from tokenizers import AddedToken
from transformers import AutoTokenizer, LlamaTokenizer, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import generate_merges

CHAT = {"content": "<|im_start|>", "lstrip": False, "rstrip": False, "normalized": False, "special": True}
STRIPS = CHAT | {"content": "<|strips|>", "lstrip": True, "rstrip": True}
PLAIN = CHAT | {"content": "<think>", "special": False, "normalized": True}
WORD = PLAIN | {"content": "zwei", "single_word": True}


def decoder_of(first: int) -> dict[str, object]:
    return {str(first + index): token for index, token in enumerate((CHAT, STRIPS, PLAIN, WORD))}


# What lies beside tokenizer.json, from the id that the next added token gets.
CASES = {
    "nothing": lambda first: {},
    "config": lambda first: {
        "tokenizer_config.json": {"added_tokens_decoder": decoder_of(first), "eos_token": "<|im_start|>"}
    },
    "config only names": lambda first: {
        "tokenizer_config.json": {
            "eos_token": "<|eos|>",
            "bos_token": {"__type": "AddedToken", **STRIPS, "content": "<|bos|>"},
            "image_token": "<|image|>",
            "additional_special_tokens": ["<|more|>", "<|im_start|>"],
            "add_bos_token": True,
        }
    },
    "names of the model's own": lambda first: {
        "tokenizer_config.json": {"extra_special_tokens": {"audio_token": "<|audio|>"}, "pad_token": None}
    },
    "a name makes special": lambda first: {
        "tokenizer_config.json": {"added_tokens_decoder": decoder_of(first), "eos_token": "<think>"}
    },
    "old files": lambda first: {
        "special_tokens_map.json": {"eos_token": STRIPS, "additional_special_tokens": ["<|im_start|>"]},
        "added_tokens.json": {"<|im_start|>": first, "<think>": first + 1},
        "tokenizer_config.json": {"eos_token": "<|other|>", "pad_token": "<|pad|>"},
    },
}


def write(folder: Path, name: str, files: dict[str, object]) -> Path:
    write_model(folder, TRAINED[name])
    for file, content in files.items():
        (folder / file).write_text(json.dumps(content))
    return folder


TRAINED = {name: TOKENIZERS[name]() for name in ("byte_level", "metaspace_fallback", "metaspace_never")}
TEXTS = [
    *MIXED_SCRIPTS,
    "<|im_start|>user\nzwei  <|strips|>  zweimal zwei.<think> a</think><|eos|><|bos|> x<|pad|>",
    " <|image|><|audio|><|more|><|end|></s><s><unk> <|other|>zwei",
]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", TRAINED)
def test_as_transformers(tmp_path: Path, name: str, case: str) -> None:
    """A text has the ids, ids the text, and names the tokens that they have in transformers."""
    first = max(TRAINED[name].get_vocab().values()) + 1
    folder = write(tmp_path, name, CASES[case](first))
    judge = PreTrainedTokenizerFast.from_pretrained(folder)
    tokenizer = Tokenizer(folder)
    assert judge.special_tokens_map == tokenizer.special_tokens
    assert judge.eos_token_id == tokenizer.eos_token_id
    assert not tokenizer.warnings
    chosen = random.Random(name + case)
    for text in [*TEXTS, *("".join(chosen.choices("".join(TEXTS), k=40)) for _ in range(50))]:
        for special in (True, False):
            expected = judge(text, add_special_tokens=special)["input_ids"]
            [ids] = [encoding.ids for encoding in tokenizer._encode([text], special)]
            assert expected == ids
    if name != "metaspace_never":  # whose token table does not take spaces
        table = build_table(tokenizer.raw)
        for _ in range(100):
            ids = chosen.choices(range(len(judge)), k=20) + chosen.choices(range(first, len(judge) + 1), k=3)
            for skip in (True, False):
                expected = judge.decode(ids, skip_special_tokens=skip)
                assert expected == table.decode(ids, is_first=True, skip_special_tokens=skip)


def test_a_snapshot_has_all_of_the_files(tmp_path: Path) -> None:
    """Workers of one load tokenize alike when the files have changed since."""
    folder = write(tmp_path, "byte_level", CASES["config"](506))
    whole = Tokenizer(folder)
    settings = TokenizerSettings(
        folder=str(folder),
        model="m",
        tokenizer=whole.files,
        max_model_len=None,
        vocab_size=None,
        bytes_per_token=None,
    )
    snapshot = settings.to_bytes()
    (folder / "tokenizer_config.json").unlink()
    again = TokenizerSettings.from_bytes(snapshot).make_stage({}).tokenizer
    assert whole.encode(TEXTS[-2]) == again.encode(TEXTS[-2]) != Tokenizer(folder).encode(TEXTS[-2])
    assert whole.fingerprint == again.fingerprint != Tokenizer(folder).fingerprint


def test_an_id_that_the_files_disagree_on(tmp_path: Path) -> None:
    """A token keeps the id that transformers gives it, with a warning that names both."""
    folder = write(tmp_path, "byte_level", {"tokenizer_config.json": {"added_tokens_decoder": {"900": CHAT}}})
    tokenizer = Tokenizer(folder)
    [warning] = tokenizer.warnings
    used = tokenizer.raw.token_to_id("<|im_start|>")
    assert PreTrainedTokenizerFast.from_pretrained(folder).convert_tokens_to_ids("<|im_start|>") == used
    assert f'the token "<|im_start|>" has id 900 there, but {used} in tokenizer.json' in warning


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ([], "tokenizer_config.json: got []; allowed: a JSON object"),
        ({"added_tokens_decoder": 1}, "added_tokens_decoder: got 1; allowed: an object of ids and tokens"),
        ({"added_tokens_decoder": {"x": CHAT}}, 'added_tokens_decoder: got "x"; allowed: token ids'),
        ({"added_tokens_decoder": {"7": "a"}}, 'added_tokens_decoder.7: got "a"; allowed: an object with'),
    ],
)
def test_malformed_files(tmp_path: Path, content: object, named: str) -> None:
    """A file that cannot be read is named, with the key."""
    folder = write(tmp_path, "byte_level", {"tokenizer_config.json": content})
    with pytest.raises(ModelError, match=r"tokenizer_config\.json") as caught:
        Tokenizer(folder)
    assert named in str(caught.value)


@pytest.mark.parametrize("kind", ["GPT2Tokenizer", "Qwen2TokenizerFast", "gpt2", "qwen2"])
@pytest.mark.parametrize(
    "more", [{}, {"add_prefix_space": True}, {"add_bos_token": True, "bos_token": "<|begin|>"}]
)
def test_vocabulary_and_merges(tmp_path: Path, kind: str, more: dict[str, object]) -> None:
    """vocab.json and merges.txt make the tokenizer that transformers makes of them."""
    train_byte_level().model.save(str(tmp_path))
    config = {"tokenizer_class": kind} if "Tok" in kind else {}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config | more))
    judge, tokenizer = AutoTokenizer.from_pretrained(tmp_path), Tokenizer(tmp_path)
    assert judge.special_tokens_map == tokenizer.special_tokens
    for text in (*TEXTS, "I'll pay 1234 <|endoftext|>e\u0301 "):
        assert judge(text)["input_ids"] == tokenizer.encode(text)
        ids = tokenizer.encode(text)
        assert judge.decode(ids) == tokenizer.decode(ids, skip_special_tokens=False)


def varint(value: int) -> bytes:
    """A number in protobuf's encoding."""
    head = bytes([value & 0x7F | (0x80 if value > 0x7F else 0)])
    return head + varint(value >> 7) if value > 0x7F else head


def member(number: int, value: int | float | bytes) -> bytes:
    if isinstance(value, bytes):
        return varint(number << 3 | 2) + varint(len(value)) + value
    if isinstance(value, float):
        return varint(number << 3 | 5) + struct.pack("<f", value)
    return varint(number << 3) + varint(value)


def sentence_piece(vocabulary: dict[str, int], model_type: int = 2) -> bytes:
    """The tokenizer.model of these pieces."""
    kinds = {"<unk>": 2, "<s>": 3, "</s>": 3, "▁▁": 4}
    pieces = sorted(vocabulary, key=lambda piece: vocabulary[piece])
    content = b""
    for piece in pieces:
        kind = 6 if piece.startswith("<0x") else kinds.get(piece, 1)
        content += member(1, member(1, piece.encode()) + member(2, -0.5) + member(3, kind))
    return content + member(2, member(3, model_type) + member(35, 1)) + member(3, member(1, b"identity"))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"add_bos_token": True, "legacy": True},
        {"add_prefix_space": False, "add_eos_token": True, "additional_special_tokens": ["<|im_start|>"]},
        {"added_tokens_decoder": {"1": CHAT | {"content": "<s>"}, "700": CHAT}, "eos_token": "<|im_start|>"},
    ],
)
def test_sentence_piece(tmp_path: Path, config: dict[str, object]) -> None:
    """tokenizer.model makes the tokenizer that LlamaTokenizer makes of its pieces."""
    vocabulary = json.loads(TRAINED["metaspace_fallback"].to_str())["model"]["vocab"]
    (tmp_path / "tokenizer.model").write_bytes(sentence_piece(vocabulary))
    (tmp_path / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "LlamaTokenizer"} | config)
    )
    added = [
        AddedToken("<s>", normalized=False, special=True),
        AddedToken("</s>", normalized=False, special=True),
        AddedToken("▁▁", normalized=False, special=False),
    ]
    decoder = config.pop("added_tokens_decoder", {})
    judge = LlamaTokenizer(
        vocab=vocabulary,
        merges=generate_merges(vocabulary),
        **{"additional_special_tokens": added} | config,
        added_tokens_decoder={int(key): AddedToken(**token) for key, token in decoder.items()},
    )
    tokenizer = Tokenizer(tmp_path)
    assert judge.special_tokens_map == tokenizer.special_tokens
    for text in (*TEXTS, "  two", "a  b   c", "\n"):
        [encoding] = tokenizer._encode([text], True)
        ids = encoding.ids
        assert judge(text)["input_ids"] == ids
        for skip in (True, False):
            expected = judge.decode(ids, skip_special_tokens=skip)
            assert expected == tokenizer.decode(ids, skip_special_tokens=skip)


def test_sentence_piece_of_other_kinds(tmp_path: Path) -> None:
    """A Unigram model, a damaged file and another class are refused by name."""
    vocabulary = {"<unk>": 0, "a": 1}
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    for content, named in (
        (sentence_piece(vocabulary, 1), "tokenizer.model: got model_type 1; allowed: 2"),
        (
            sentence_piece(vocabulary)[:-3],
            "no tokenizer can be made of its files: tokenizer.model is cut off",
        ),
        (b"\xff" * 1000, "no tokenizer can be made of its files: tokenizer.model is no protobuf message"),
        (sentence_piece({"a" * 600: 0}), "a piece has 600 bytes, more than 512"),
    ):
        (tmp_path / "tokenizer.model").write_bytes(content)
        with pytest.raises(UnsupportedModel) as caught:
            Tokenizer(tmp_path)
        assert named in str(caught.value)
    (tmp_path / "config.json").write_text('{"model_type": "gemma"}')
    with pytest.raises(UnsupportedModel, match=r'tokenizer.model of tokenizer_class "gemma"; .*python -c'):
        Tokenizer(tmp_path)


def test_vocabularies_of_other_kinds(tmp_path: Path) -> None:
    """Files that only a conversion can read are refused with the command that makes it."""
    with pytest.raises(
        ModelNotFound, match=r"^tokenizer.json: not found in .*; allowed: a folder with a tokenizer.json$"
    ):
        Tokenizer(tmp_path)
    for name in ("qwen.tiktoken", "tekken.json"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(
            ModelNotFound, match=rf"\({name} is there: after `pip install .*`: `python -c \"from"
        ):
            Tokenizer(tmp_path)
    train_byte_level().model.save(str(tmp_path))
    with pytest.raises(UnsupportedModel, match=r"tokenizer_class null; allowed: GPT2Tokenizer, .*python -c"):
        Tokenizer(tmp_path)
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "merges.txt").write_text("a\n")
    with pytest.raises(UnsupportedModel, match=r"no tokenizer can be made of its files: "):
        Tokenizer(tmp_path)
