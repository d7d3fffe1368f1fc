"""Sampling and what goes with it, on torch tensors on the CPU. Callers use these through `quire.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import check, describe, dtype_id

MAX_LOGPROBS = 20  # quire::cpu::kMaxLogprobs


def _check_logits(logits: Tensor) -> tuple[int, int]:
    """num_rows, vocab_size."""
    if logits.ndim != 2 or logits.stride(1) != 1:
        raise ValueError(
            f"logits: got {describe(logits)}; allowed: [num_rows, vocab_size] with contiguous rows"
        )
    return logits.size(0), logits.size(1)


def _check_token_counts(token_counts: Tensor, vocab_size: int) -> None:
    shape = (token_counts.size(0), vocab_size)
    check("token_counts", token_counts, torch.uint16, shape, "max_num_seqs + 1, vocab_size")


def _check_rows(name: str, rows: Tensor, token_counts: Tensor) -> None:
    if rows.numel() and not 0 <= int(rows.min()) <= int(rows.max()) < token_counts.size(0):
        raise ValueError(f"{name}: got {rows.tolist()}; allowed: 0 to {token_counts.size(0) - 1}")


def sample(
    logits: Tensor,  # [num_rows, vocab_size] float32 or bfloat16, not modified
    *,
    temperature: Tensor,  # [num_rows] float32; 0: greedy, the lowest id among equals
    top_k: Tensor,  # [num_rows] int32; <= 0: off
    top_p: Tensor,  # [num_rows] float32; >= 1: off
    seed: Tensor,  # [num_rows] int64 or uint64
    output_idx: Tensor,  # [num_rows] int32, how many tokens the request has produced
    min_p: Tensor | None = None,  # [num_rows] float32; <= 0: off
    repetition_penalty: Tensor | None = None,  # [num_rows] float32 > 0; 1: off; the five below: all or none
    presence_penalty: Tensor | None = None,  # [num_rows] float32; 0: off
    frequency_penalty: Tensor | None = None,  # [num_rows] float32; 0: off
    token_counts: Tensor | None = None,  # [max_num_seqs + 1, vocab_size] uint16; the ids drawn are counted
    sample_rows: Tensor | None = None,  # [num_rows] int32: each row's row of token_counts
    mask_rows: Tensor | None = None,  # [num_rows] int32: rows of token_masks; -1: all ids; both or none
    token_masks: Tensor | None = None,  # [max_num_seqs + 1, num_mask_words] int32: a bit per id that may come
    bias_offsets: Tensor | None = None,  # [num_rows + 1] int32; the three: all or none
    bias_ids: Tensor | None = None,  # int32; row j's are in bias_offsets[j : j + 2], ascending, each once
    biases: Tensor | None = None,  # float32, added to the ids' logits; -inf: not to be sampled
    out: Tensor | None = None,
) -> Tensor:
    """One id per row, `[num_rows]` int32: mask, biases, penalties, temperature, min_p, top_k, top_p, then a
    draw.

    The draw depends on the row's logits, counts, seed and output_idx only. Tokens rank by (logit descending,
    id ascending). A row with a NaN or inf logit, or with no token left, gets -1 in `out`, and the error names
    the first such row; the other rows of `out` are valid. What each of them does: quire/cpu/sample.h.
    """
    num_rows, vocab_size = _check_logits(logits)
    if out is None:
        out = torch.empty((num_rows,), dtype=torch.int32)
    shape = (num_rows,)
    check("temperature", temperature, torch.float32, shape, "num_rows")
    check("top_k", top_k, torch.int32, shape, "num_rows")
    check("top_p", top_p, torch.float32, shape, "num_rows")
    seed_dtype = torch.uint64 if seed.dtype is torch.uint64 else torch.int64
    check("seed", seed, seed_dtype, shape, "num_rows")
    check("output_idx", output_idx, torch.int32, shape, "num_rows")
    check("out", out, torch.int32, shape, "num_rows")
    if min_p is not None:
        check("min_p", min_p, torch.float32, shape, "num_rows")
    penalty_args: tuple[int, ...] = (0, 0, 0, 0)
    sample_rows_arg = 0
    if token_counts is not None:
        _check_token_counts(token_counts, vocab_size)
        given = {
            "repetition_penalty": repetition_penalty,
            "presence_penalty": presence_penalty,
            "frequency_penalty": frequency_penalty,
            "sample_rows": sample_rows,
        }
        addresses = []
        for name, tensor in given.items():
            if tensor is None:
                raise ValueError(f"{name}: got None; allowed: a tensor when token_counts is given")
            check(name, tensor, torch.int32 if name == "sample_rows" else torch.float32, shape, "num_rows")
            addresses.append(tensor.data_ptr())
        assert sample_rows is not None
        _check_rows("sample_rows", sample_rows, token_counts)
        penalty_args = (*addresses[:3], token_counts.data_ptr())
        sample_rows_arg = addresses[3]
    elif not (repetition_penalty is None and presence_penalty is None and frequency_penalty is None):
        raise ValueError("token_counts: got None; allowed: a tensor when a penalty is given")
    edit_args = (
        *penalty_args,
        *_mask_args(mask_rows, token_masks, num_rows, vocab_size),
        *_bias_args(bias_offsets, bias_ids, biases, num_rows),
        sample_rows_arg,
    )
    _core.cpu_sample(
        dtype_id("logits", logits),
        num_rows,
        vocab_size,
        logits.data_ptr(),
        logits.stride(0),
        temperature.data_ptr(),
        top_k.data_ptr(),
        top_p.data_ptr(),
        seed.data_ptr(),
        output_idx.data_ptr(),
        out.data_ptr(),
        0 if min_p is None else min_p.data_ptr(),
        *edit_args,
    )
    return out


def num_mask_words(vocab_size: int) -> int:
    """Words of a row of token_masks."""
    return -(-vocab_size // 32)


def _mask_args(rows: Tensor | None, masks: Tensor | None, num_rows: int, vocab_size: int) -> tuple[int, int]:
    if rows is None and masks is None:
        return 0, 0
    if rows is None or masks is None:
        missing = "mask_rows" if rows is None else "token_masks"
        raise ValueError(f"{missing}: got None; allowed: both, or neither")
    check("mask_rows", rows, torch.int32, (num_rows,), "num_rows")
    shape = (masks.size(0), num_mask_words(vocab_size))
    check("token_masks", masks, torch.int32, shape, "max_num_seqs + 1, num_mask_words")
    if rows.numel() and not -1 <= int(rows.min()) <= int(rows.max()) < masks.size(0):
        raise ValueError(f"mask_rows: got {rows.tolist()}; allowed: -1 to {masks.size(0) - 1}")
    return rows.data_ptr(), masks.data_ptr()


def _bias_args(
    offsets: Tensor | None, ids: Tensor | None, biases: Tensor | None, num_rows: int
) -> tuple[int, int, int]:
    if offsets is None:
        return 0, 0, 0
    if ids is None or biases is None:
        missing = "bias_ids" if ids is None else "biases"
        raise ValueError(f"{missing}: got None; allowed: a tensor when bias_offsets is given")
    check("bias_offsets", offsets, torch.int32, (num_rows + 1,), "num_rows + 1")
    check("bias_ids", ids, torch.int32, (ids.numel(),), "num_biases")
    check("biases", biases, torch.float32, (ids.numel(),), "num_biases")
    return offsets.data_ptr(), ids.data_ptr(), biases.data_ptr()


def token_counts(
    token_counts: Tensor,  # [max_num_seqs + 1, vocab_size] uint16
    *,
    rows: Tensor,  # [num_reqs] int32: the rows to write, each once
    token_offsets: Tensor,  # [num_reqs + 1] int32
    prompt_lens: Tensor,  # [num_reqs] int32: how many of a request's tokens are its prompt
    token_ids: Tensor,  # int32; request i's are token_ids[token_offsets[i] : token_offsets[i + 1]]
) -> None:
    """Writes the rows that `sample` reads for penalties: of requests that start or resume."""
    num_reqs, vocab_size = rows.size(0), token_counts.size(1)
    _check_token_counts(token_counts, vocab_size)
    check("rows", rows, torch.int32, (num_reqs,), "num_reqs")
    check("token_offsets", token_offsets, torch.int32, (num_reqs + 1,), "num_reqs + 1")
    check("prompt_lens", prompt_lens, torch.int32, (num_reqs,), "num_reqs")
    check("token_ids", token_ids, torch.int32, (token_ids.numel(),), "num_tokens")
    _check_rows("rows", rows, token_counts)
    _core.cpu_token_counts(
        num_reqs,
        vocab_size,
        rows.data_ptr(),
        token_offsets.data_ptr(),
        prompt_lens.data_ptr(),
        token_ids.data_ptr(),
        token_counts.data_ptr(),
    )


def logprobs(
    logits: Tensor,  # [num_rows, vocab_size] float32 or bfloat16
    *,
    token_ids: Tensor,  # [num_rows] int32: the sampled ones
    num_logprobs: Tensor,  # [num_rows] int32; n > 0: of the sampled token and the n likeliest; <= 0: skipped
    out: tuple[Tensor, Tensor, Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Logprobs and ranks of the sampled tokens `[num_rows]`; ids and logprobs of the likeliest ones
    `[num_rows, 20]`, in order. From the logits as they are. What is skipped stays as it is in `out`.

    -1 and -inf where a row has fewer than n tokens. Rows that cannot be sampled have NaN, 0 and -1.
    """
    num_rows, vocab_size = _check_logits(logits)
    shape, top_shape = (num_rows,), (num_rows, MAX_LOGPROBS)
    if out is None:
        out = (
            torch.zeros(shape),
            torch.zeros(shape, dtype=torch.int32),
            torch.zeros(top_shape, dtype=torch.int32),
            torch.zeros(top_shape),
        )
    check("token_ids", token_ids, torch.int32, shape, "num_rows")
    check("num_logprobs", num_logprobs, torch.int32, shape, "num_rows")
    check("out[0]", out[0], torch.float32, shape, "num_rows")
    check("out[1]", out[1], torch.int32, shape, "num_rows")
    check("out[2]", out[2], torch.int32, top_shape, "num_rows, 20")
    check("out[3]", out[3], torch.float32, top_shape, "num_rows, 20")
    _core.cpu_logprobs(
        dtype_id("logits", logits),
        num_rows,
        vocab_size,
        logits.data_ptr(),
        logits.stride(0),
        token_ids.data_ptr(),
        num_logprobs.data_ptr(),
        out[0].data_ptr(),
        out[1].data_ptr(),
        out[2].data_ptr(),
        out[3].data_ptr(),
    )
    return out
