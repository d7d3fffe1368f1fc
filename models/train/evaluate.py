"""Measure the model on the held-out files, beside a trigram model trained on the same tokens.

    python models/train/evaluate.py --corpus build/corpus --model models/quire-8m

Both models see the same tokens: every file of the test part, each from its begin token to its end token.
Prints perplexity per token and bits per byte of text, and draws ``loss.png`` from ``loss.csv``.
"""

from __future__ import annotations

import argparse
import csv
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from corpus import read_split
from model import CONFIG, Llama
from safetensors.torch import load_file

LENGTH = CONFIG["max_position_embeddings"]
VOCAB = CONFIG["vocab_size"]
STRIDE = LENGTH // 2  # every token but a file's first ones is predicted from at least this many before it


def load_model(folder: Path) -> Llama:
    """Return the exported model in float32, on the CPU."""
    model = Llama(CONFIG)
    weights = load_file(folder / "model.safetensors")
    model.load_state_dict({name: weight.float() for name, weight in weights.items()})
    return model.eval()


def split_files(stream: np.ndarray) -> list[np.ndarray]:
    """Cut a stream of ids [tokens] into its files, begin and end tokens included."""
    ends = np.flatnonzero(stream == CONFIG["eos_token_id"]) + 1
    return np.split(stream, ends)[:-1]


@torch.no_grad()
def model_nats(model: Llama, files: list[np.ndarray]) -> float:
    """Return the sum over all files of -log p(token | what came before it in the file), in nats."""
    total = 0.0
    for file in files:
        ids = torch.from_numpy(file.astype(np.int64))
        scored = 1  # the begin token is given
        for start in range(0, len(ids), STRIDE):
            window = ids[start : start + LENGTH]
            logits = model(window[None, :-1])[0]
            new = start + len(window) - scored  # tokens of this window that the one before did not score
            total += F.cross_entropy(logits[-new:], window[-new:], reduction="sum").item()
            scored += new
            if scored == len(ids):
                break
    return total


class Trigram:
    """Interpolated trigram model: a mixture of trigram, bigram, unigram and uniform frequencies.

    The weights of the mixture depend on how often the two-token context was seen in training, and are fitted
    by expectation maximisation on the validation part, which neither model trains on.
    """

    BUCKETS = 12  # contexts seen 0, 1, 2-3, 4-7, ... times share one set of weights

    def __init__(self, train: np.ndarray, validation: list[np.ndarray]) -> None:
        ids = train.astype(np.int64)
        self.unigram = np.bincount(ids, minlength=VOCAB)
        self.bigram = np.unique(ids[:-1] * VOCAB + ids[1:], return_counts=True)
        keys = (ids[:-2] * VOCAB + ids[1:-1]) * VOCAB + ids[2:]
        self.trigram = np.unique(keys, return_counts=True)
        self.weights = np.full((self.BUCKETS, 4), 0.25)
        parts, buckets = self.components(validation)
        for _ in range(50):
            shares = self.weights[buckets] * parts
            shares /= shares.sum(1, keepdims=True)
            for b in range(self.BUCKETS):
                if (buckets == b).any():
                    self.weights[b] = shares[buckets == b].mean(0)

    @staticmethod
    def count(table: tuple[np.ndarray, np.ndarray], keys: np.ndarray) -> np.ndarray:
        """Return how often each key was seen; ``table`` is (sorted keys, counts)."""
        at = np.minimum(np.searchsorted(table[0], keys), len(table[0]) - 1)
        return np.where(table[0][at] == keys, table[1][at], 0)

    def components(self, files: list[np.ndarray]) -> tuple[np.ndarray, np.ndarray]:
        """Return the four probabilities of every predicted token [tokens, 4] and its bucket [tokens]."""
        # A file is preceded by an end token, as it was in the training stream.
        padded = [np.concatenate([[CONFIG["eos_token_id"]], f.astype(np.int64)]) for f in files]
        a, b, c = (np.concatenate([f[i : len(f) - 2 + i] for f in padded]) for i in range(3))
        context = self.count(self.bigram, a * VOCAB + b)
        parts = np.stack(
            [
                self.count(self.trigram, (a * VOCAB + b) * VOCAB + c) / np.maximum(context, 1),
                self.count(self.bigram, b * VOCAB + c) / np.maximum(self.unigram[b], 1),
                self.unigram[c] / self.unigram.sum(),
                np.full(len(c), 1 / VOCAB),
            ],
            axis=1,
        )
        buckets = np.minimum(np.ceil(np.log2(context + 1)).astype(int), self.BUCKETS - 1)
        return parts, buckets

    def nats(self, files: list[np.ndarray]) -> float:
        """Return the sum of -log p over all predicted tokens, in nats."""
        parts, buckets = self.components(files)
        return float(-np.log((self.weights[buckets] * parts).sum(1)).sum())


def plot(folder: Path) -> None:
    """Draw ``loss.png`` from ``loss.csv``."""
    import matplotlib.pyplot as plt

    with (folder / "loss.csv").open() as f:
        rows = list(csv.DictReader(f))
    million = [int(r["tokens"]) / 1e6 for r in rows]
    fig, ax = plt.subplots(figsize=(7, 4), dpi=110)
    ax.plot(million, [float(r["train_loss"]) for r in rows], label="training (with dropout)")
    ax.plot(million, [float(r["validation_loss"]) for r in rows], label="validation files")
    ax.set(xlabel="tokens seen (millions)", ylabel="loss (nats per token)", title=folder.name)
    ax.set_ylim(bottom=0, top=min(4.5, max(float(r["train_loss"]) for r in rows)))
    ax.grid(alpha=0.3)
    ax.legend()
    fig.tight_layout()
    fig.savefig(folder / "loss.png")


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    args = parser.parse_args()

    streams = {p: np.fromfile(args.corpus / f"{p}.bin", dtype="<u2") for p in ("train", "validation", "test")}
    files = split_files(streams["test"])
    tokens = sum(len(f) - 1 for f in files)
    text_bytes = sum(len(t.encode()) for t in read_split(args.corpus)["test"])
    print(f"{len(files)} files, {tokens} predicted tokens, {text_bytes} bytes")
    trigram = Trigram(streams["train"], split_files(streams["validation"]))
    for name, nats in (
        ("trigram", trigram.nats(files)),
        ("model", model_nats(load_model(args.model), files)),
    ):
        bits = nats / math.log(2) / text_bytes
        print(f"{name}: perplexity {math.exp(nats / tokens):.2f} per token, {bits:.3f} bits per byte")
    plot(args.model)


if __name__ == "__main__":
    main()
