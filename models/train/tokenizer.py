"""Train the byte-level BPE tokenizer and write the corpus as token ids.

    python models/train/tokenizer.py --corpus build/corpus --model models/quire-8m

Writes ``tokenizer.json`` and ``tokenizer_config.json`` into the model folder, and ``train.bin``,
``validation.bin`` and ``test.bin`` (little-endian uint16 token ids) beside the corpus.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import numpy as np
from corpus import read_split
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

VOCAB_SIZE = 4096
BEGIN, END = "<|begin|>", "<|end|>"  # ids 0 and 1: before every file (and prompt), after every file


def train_tokenizer(texts: list[str]) -> Tokenizer:
    """Learn VOCAB_SIZE tokens from ``texts``."""
    tokenizer = Tokenizer(models.BPE())
    # Digits one by one: numbers stay regular, and no merge is spent on years and ports. The regex inside
    # ByteLevel splits indentation as "newline and all spaces but the last" plus " word", so that BPE gets
    # one token for each usual depth of indentation, together with its newline.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BEGIN, END],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),  # all 256 bytes: any text round-trips
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BEGIN} $A", pair=f"{BEGIN} $A {BEGIN} $B", special_tokens=[(BEGIN, 0)]
    )
    return tokenizer


def encode_files(tokenizer: Tokenizer, texts: list[str]) -> np.ndarray:
    """Return one stream of ids, shape [tokens], uint16: BEGIN file END BEGIN file END ..."""
    end = tokenizer.token_to_id(END)
    assert end is not None
    ids: list[int] = []
    for encoding in tokenizer.encode_batch(texts):  # the post-processor adds BEGIN
        ids.extend(encoding.ids)
        ids.append(end)
    return np.array(ids, dtype="<u2")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()

    split = read_split(args.corpus)
    tokenizer = train_tokenizer(split["train"])
    args.model.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(args.model / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BEGIN,
        "eos_token": END,
        "clean_up_tokenization_spaces": False,
        "model_max_length": 2048,
    }
    (args.model / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")
    for part, texts in split.items():
        ids = encode_files(tokenizer, texts)
        ids.tofile(args.corpus / f"{part}.bin")
        size = sum(len(t.encode()) for t in texts)
        print(f"{part}: {len(ids)} tokens, {size / len(ids):.2f} bytes per token")


if __name__ == "__main__":
    main()
