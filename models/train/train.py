"""Train the model for a given time on one GPU.

    python models/train/train.py --corpus build/corpus --model models/quire-8m --seconds 105

Reads ``train.bin``, ``validation.bin`` and the tokenizer; writes ``model.safetensors`` (bfloat16, the
checkpoint with the lowest validation loss), ``loss.csv`` and the two configs into the model folder.
"""

from __future__ import annotations

import argparse
import csv
import math
import time
from pathlib import Path
from typing import cast

import numpy as np
import torch
from model import CONFIG, Llama, write_configs
from safetensors.torch import save_file
from tokenizers import Tokenizer
from torch import Tensor

LENGTH = CONFIG["max_position_embeddings"]
BEGIN = CONFIG["bos_token_id"]
WARMUP = 0.02  # share of the time over which the learning rate rises


def load(path: Path, device: str) -> Tensor:
    """Return a file of token ids as int64 [tokens] on the device."""
    return torch.from_numpy(np.fromfile(path, dtype="<u2").astype(np.int64)).to(device)


def definition_starts(data: Tensor, tokenizer: Tokenizer) -> Tensor:
    """Return the positions of tokens that start a top-level ``def`` or ``class`` line, less one."""
    words = [tokenizer.token_to_id(w) for w in ("def", "class")]
    newline = tokenizer.token_to_id("Ċ")  # how byte-level BPE spells "\n"
    is_word = torch.isin(data[1:], torch.tensor(words, device=data.device))
    starts = (is_word & (data[:-1] == newline)).nonzero()[:, 0]
    return starts[starts < len(data) - LENGTH - 1]


def sample(data: Tensor, starts: Tensor, batch: int) -> tuple[Tensor, Tensor]:
    """Return random inputs and targets, each int64 [batch, LENGTH].

    Half the windows start anywhere. The other half look like what a user sends, the begin token and then a
    definition: files themselves nearly always start with a comment or an import.
    """
    anywhere = torch.randint(len(data) - LENGTH - 1, (batch - batch // 2,), device=data.device)
    defs = starts[torch.randint(len(starts), (batch // 2,), device=data.device)]
    positions = torch.cat([anywhere, defs])[:, None] + torch.arange(LENGTH + 1, device=data.device)
    window = data[positions]
    window[len(anywhere) :, 0] = BEGIN
    return window[:, :-1], window[:, 1:]


@torch.no_grad()
def validate(model: torch.nn.Module, data: Tensor, batch: int, device: str) -> float:
    """Return the mean loss in nats over whole windows of the held-out stream."""
    model.eval()
    windows = (len(data) - 1) // LENGTH // batch * batch  # whole batches: one compiled shape
    x = data[: windows * LENGTH].view(-1, batch, LENGTH)
    y = data[1 : windows * LENGTH + 1].view(-1, batch, LENGTH)
    losses = []
    for ids, targets in zip(x, y, strict=True):
        with torch.autocast(device, torch.bfloat16):
            losses.append(model(ids, targets).item())
    model.train()
    return sum(losses) / len(losses)


def learning_rate(progress: float, peak: float) -> float:
    """Linear rise, then a half cosine down to 1 % of the peak; ``progress`` runs from 0 to 1."""
    if progress < WARMUP:
        return peak * (0.01 + 0.99 * progress / WARMUP)
    turn = min(1.0, (progress - WARMUP) / (1 - WARMUP))
    return peak * (0.01 + 0.99 * (0.5 + 0.5 * math.cos(math.pi * turn)))


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--corpus", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, help="tokenizer.json; default: the model folder's")
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=105, help="training time, compiling not counted")
    parser.add_argument("--batch", type=int, default=32, help=f"sequences of {LENGTH} tokens in a step")
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--weight-decay", type=float, default=0.3)
    parser.add_argument("--dropout", type=float, default=0.2)
    parser.add_argument("--evaluations", type=int, default=42)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args()

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.manual_seed(0)
    torch.set_float32_matmul_precision("high")
    args.model.mkdir(parents=True, exist_ok=True)
    write_configs(args.model)
    train, held_out = (load(args.corpus / f"{part}.bin", device) for part in ("train", "validation"))
    tokenizer = Tokenizer.from_file(str(args.tokenizer or args.model / "tokenizer.json"))
    starts = definition_starts(train, tokenizer)

    plain = Llama(CONFIG, args.dropout).to(device)
    model = plain if args.no_compile else cast(Llama, torch.compile(plain))
    # Norm weights are scales, not directions: decaying them would only fight the layers they feed.
    groups = [
        {"params": [p for p in plain.parameters() if p.dim() == 2], "weight_decay": args.weight_decay},
        {"params": [p for p in plain.parameters() if p.dim() == 1], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=True)
    print(f"{sum(p.numel() for p in plain.parameters())} parameters, {len(train)} training tokens, "
          f"{len(starts)} definitions, {device}", flush=True)

    def step(rate: float) -> Tensor:
        """Take one optimiser step; return the loss (nats) without waiting for it."""
        for group in optimizer.param_groups:
            group["lr"] = rate
        ids, targets = sample(train, starts, args.batch)
        with torch.autocast(device, torch.bfloat16):
            loss = model(ids, targets)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    began = time.perf_counter()
    step(0.0), validate(model, held_out, args.batch, device)  # compiles, changes no weight
    print(f"ready after {time.perf_counter() - began:.1f} s", flush=True)

    began, best, steps, rows = time.perf_counter(), float("inf"), 0, []
    total = torch.zeros((), device=device)
    since = 0
    for evaluation in range(1, args.evaluations + 1):
        # Evaluations come at equal times, so progress is known without knowing the speed in advance.
        while (elapsed := time.perf_counter() - began) < args.seconds * evaluation / args.evaluations:
            total += step(learning_rate(elapsed / args.seconds, args.lr))
            steps, since = steps + 1, since + 1
            if since % 8 == 0 and device == "cuda":
                torch.cuda.synchronize()  # keep the queue short: the schedule reads the clock
        if since == 0:
            continue
        loss = validate(model, held_out, args.batch, device)
        seconds = round(time.perf_counter() - began, 1)
        row = [steps, steps * args.batch * LENGTH, seconds, round(total.item() / since, 4), round(loss, 4)]
        rows.append(row)
        print("step {} tokens {} seconds {} train {} validation {}".format(*row), flush=True)
        total, since = torch.zeros((), device=device), 0
        if loss < best:
            best = loss
            weights = {k: v.to(torch.bfloat16).contiguous() for k, v in plain.state_dict().items()}
            save_file(weights, args.model / "model.safetensors", metadata={"format": "pt"})
        with (args.model / "loss.csv").open("w", newline="") as f:
            writer = csv.writer(f, lineterminator="\n")
            writer.writerow(["step", "tokens", "seconds", "train_loss", "validation_loss"])
            writer.writerows(rows)
    print(f"best validation loss {best:.4f}, perplexity {math.exp(best):.3f}")


if __name__ == "__main__":
    main()
