"""Check the exported model against Hugging Face's implementation, and print greedy continuations.

    python models/train/sample.py --model models/quire-8m "def fibonacci(n):"
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from evaluate import load_model
from transformers import AutoModelForCausalLM, AutoTokenizer


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=40, help="new tokens per prompt")
    parser.add_argument("prompts", nargs="+")
    args = parser.parse_args()

    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.float32).eval()
    ids = torch.randint(2, len(tokenizer), (2, 300))  # [sequences, tokens]
    with torch.no_grad():
        reference = model(ids).logits
        error = (load_model(args.model)(ids) - reference).norm() / reference.norm()
    print(f"relative difference of the logits, training code against transformers: {error:.1e}")
    for prompt in args.prompts:
        inputs = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, max_new_tokens=args.tokens)
        print("-" * 40, tokenizer.decode(output[0], skip_special_tokens=True), sep="\n")


if __name__ == "__main__":
    main()
