"""From logits to token ids, their logprobs, and what penalties know of a request."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from quire import _core
from quire._tensor_checks import address, check, describe, dtype_id, has_cuda_kernels, stream_of
from quire.sampling_params import MAX_LOGPROBS

if has_cuda_kernels():
    from quire import _cuda

Given = Mapping[str, Tensor | None]

# Types of a sampler's arguments that have one element per row of logits.
_ROW_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "output_idx": torch.int32,
    "sample_rows": torch.int32,
    "mask_rows": torch.int32,
    "min_p": torch.float32,
    "repetition_penalty": torch.float32,
    "presence_penalty": torch.float32,
    "frequency_penalty": torch.float32,
}
# Each: all or none.
_TOGETHER = (
    ("mask_rows", "token_masks"),
    ("token_counts", "repetition_penalty", "presence_penalty", "frequency_penalty"),
    ("bias_offsets", "bias_ids", "biases"),
)


def num_mask_words(vocab_size: int) -> int:
    """Words of a row of token_masks."""
    return -(-vocab_size // 32)


def _check_logits(logits: Tensor) -> tuple[int, int]:
    """num_rows, vocab_size."""
    if logits.ndim != 2 or logits.stride(1) != 1:
        raise ValueError(
            f"logits: got {describe(logits)}; allowed: [num_rows, vocab_size] with contiguous rows"
        )
    return logits.size(0), logits.size(1)


def _check_counts(token_counts: Tensor, vocab_size: int) -> None:
    shape = (token_counts.size(0), vocab_size)
    axes = "max_num_seqs + 1, vocab_size"
    check("token_counts", token_counts, torch.uint16, shape, axes, token_counts.device.type)


def _check_rows(name: str, rows: Tensor | None, table_name: str, table: Tensor, lowest: int = 0) -> None:
    """That `rows` are there, and on the CPU, where looking costs little, that they are rows of the table."""
    if rows is None:
        raise ValueError(f"{name}: got None; allowed: a tensor when {table_name} is given")
    if rows.is_cuda or not rows.numel():
        return
    if not lowest <= int(rows.min()) <= int(rows.max()) < table.size(0):
        raise ValueError(f"{name}: got {rows.tolist()}; allowed: {lowest} to {table.size(0) - 1}")


def _check_together(given: Given) -> None:
    for names in _TOGETHER:
        present = [name for name in names if given[name] is not None]
        if present and len(present) < len(names):
            missing = next(name for name in names if given[name] is None)
            raise ValueError(f"{missing}: got None; allowed: a tensor when {present[0]} is given")


def sample(
    logits: Tensor,  # [num_rows, vocab_size], not modified
    *,
    temperature: Tensor,  # [num_rows] float32; 0: greedy, the lowest id among equals
    top_k: Tensor,  # [num_rows] int32; <= 0: off
    top_p: Tensor,  # [num_rows] float32; >= 1: off
    seed: Tensor,  # [num_rows] int64 or uint64
    output_idx: Tensor,  # [num_rows] int32, how many tokens the request has produced
    out: Tensor | None = None,
    sample_rows: Tensor | None = None,  # [num_rows] int32: rows of token_counts and last_token_ids
    last_token_ids: Tensor | None = None,  # [max_num_seqs + 1] int32: the ids, 0 in place of -1
    mask_rows: Tensor | None = None,  # [num_rows] int32: rows of token_masks; -1: all ids; both or none
    token_masks: Tensor | None = None,  # [max_num_seqs + 1, num_mask_words] int32: a bit per id that may come
    min_p: Tensor | None = None,  # [num_rows] float32; <= 0: off
    repetition_penalty: Tensor | None = None,  # [num_rows] float32 > 0; 1: off; the four: all or none
    presence_penalty: Tensor | None = None,  # [num_rows] float32; 0: off
    frequency_penalty: Tensor | None = None,  # [num_rows] float32; 0: off
    token_counts: Tensor | None = None,  # [max_num_seqs + 1, vocab_size] uint16; the ids drawn are counted
    bias_offsets: Tensor | None = None,  # [num_rows + 1] int32; the three: all or none
    bias_ids: Tensor | None = None,  # int32; row j's are in bias_offsets[j : j + 2], ascending, each once
    biases: Tensor | None = None,  # float32, added to the ids' logits; -inf: not to be sampled
) -> Tensor:
    """One id per row, `[num_rows]` int32: mask, biases, penalties, temperature, min_p, top_k, top_p, then a
    draw.

    The draw depends on the row's logits, counts, seed and output_idx only. Tokens rank by (logit descending,
    id ascending). A row with a NaN or inf logit, or with no token left, gets -1 in `out`; on the CPU an error
    names the first such row, and the other rows of `out` are valid.
    """
    num_rows, vocab_size = _check_logits(logits)
    device = logits.device.type
    if out is None:
        out = torch.empty((num_rows,), dtype=torch.int32, device=logits.device)
    given = {
        "temperature": temperature,
        "top_k": top_k,
        "top_p": top_p,
        "seed": seed,
        "output_idx": output_idx,
        "out": out,
        "sample_rows": sample_rows,
        "last_token_ids": last_token_ids,
        "mask_rows": mask_rows,
        "token_masks": token_masks,
        "min_p": min_p,
        "repetition_penalty": repetition_penalty,
        "presence_penalty": presence_penalty,
        "frequency_penalty": frequency_penalty,
        "token_counts": token_counts,
        "bias_offsets": bias_offsets,
        "bias_ids": bias_ids,
        "biases": biases,
    }
    _check_together(given)
    shape = (num_rows,)
    for name, dtype in _ROW_DTYPES.items():
        tensor = given[name]
        if tensor is not None:
            check(name, tensor, dtype, shape, "num_rows", device)
    check(
        "seed", seed, torch.uint64 if seed.dtype is torch.uint64 else torch.int64, shape, "num_rows", device
    )
    check("out", out, torch.int32, shape, "num_rows", device)
    if last_token_ids is not None:
        axes = (last_token_ids.size(0),)
        check("last_token_ids", last_token_ids, torch.int32, axes, "max_num_seqs + 1", device)
        _check_rows("sample_rows", sample_rows, "last_token_ids", last_token_ids)
    if token_counts is not None:
        _check_counts(token_counts, vocab_size)
        _check_rows("sample_rows", sample_rows, "token_counts", token_counts)
    if token_masks is not None:
        table_shape = (token_masks.size(0), num_mask_words(vocab_size))
        axis_names = "max_num_seqs + 1, num_mask_words"
        check("token_masks", token_masks, torch.int32, table_shape, axis_names, device)
        _check_rows("mask_rows", mask_rows, "token_masks", token_masks, lowest=-1)
    if bias_offsets is not None and bias_ids is not None and biases is not None:
        size = (bias_ids.numel(),)
        check("bias_offsets", bias_offsets, torch.int32, (num_rows + 1,), "num_rows + 1", device)
        check("bias_ids", bias_ids, torch.int32, size, "num_biases", device)
        check("biases", biases, torch.float32, size, "num_biases", device)
    run = _cuda.sample if logits.is_cuda else _core.cpu_sample
    run(
        dtype=dtype_id("logits", logits),
        num_rows=num_rows,
        vocab_size=vocab_size,
        logits=logits.data_ptr(),
        stride_logits=logits.stride(0),
        **{name: address(tensor) for name, tensor in given.items()},
        stream=stream_of(logits),
    )
    return out


def token_counts(
    token_counts: Tensor,  # [max_num_seqs + 1, vocab_size] uint16
    *,
    rows: Tensor,  # [num_seqs] int32: the rows to write, each once
    token_offsets: Tensor,  # [num_seqs + 1] int32
    prompt_lens: Tensor,  # [num_seqs] int32: how many of a request's tokens are its prompt
    token_ids: Tensor,  # int32; request i's are token_ids[token_offsets[i] : token_offsets[i + 1]]
) -> None:
    """Writes the rows that `sample` reads for penalties: of requests that start or resume."""
    num_seqs, vocab_size = rows.size(0), token_counts.size(1)
    device = token_counts.device.type
    check("rows", rows, torch.int32, (num_seqs,), "num_seqs", device)
    _check_counts(token_counts, vocab_size)
    _check_rows("rows", rows, "token_counts", token_counts)
    check("token_offsets", token_offsets, torch.int32, (num_seqs + 1,), "num_seqs + 1", device)
    check("prompt_lens", prompt_lens, torch.int32, (num_seqs,), "num_seqs", device)
    check("token_ids", token_ids, torch.int32, (token_ids.numel(),), "num_tokens", device)
    run = _cuda.token_counts if token_counts.is_cuda else _core.cpu_token_counts
    run(
        num_seqs=num_seqs,
        vocab_size=vocab_size,
        rows=rows.data_ptr(),
        token_offsets=token_offsets.data_ptr(),
        prompt_lens=prompt_lens.data_ptr(),
        token_ids=token_ids.data_ptr(),
        token_counts=token_counts.data_ptr(),
        stream=stream_of(token_counts),
    )


def logprobs(
    logits: Tensor,  # [num_rows, vocab_size]
    *,
    token_ids: Tensor,  # [num_rows] int32: the sampled ones
    num_logprobs: Tensor,  # [num_rows] int32; n > 0: of the sampled token and the n likeliest; <= 0: skipped
    out: Sequence[Tensor] | None = None,
) -> tuple[Tensor, ...]:
    """Logprobs and ranks of the sampled tokens `[num_rows]`; ids and logprobs of the likeliest ones
    `[num_rows, MAX_LOGPROBS]`, in order. From the logits as they are. What is skipped stays as it is in
    `out`.

    -1 and -inf where a row has fewer than n tokens. Rows that cannot be sampled have NaN, 0 and -1.
    """
    num_rows, vocab_size = _check_logits(logits)
    shape, top_shape = (num_rows,), (num_rows, MAX_LOGPROBS)
    device = logits.device.type
    arrays = {
        "token_logprobs": (torch.float32, shape),
        "token_ranks": (torch.int32, shape),
        "top_ids": (torch.int32, top_shape),
        "top_logprobs": (torch.float32, top_shape),
    }
    if out is None:
        out = [torch.zeros(sizes, dtype=dtype, device=logits.device) for dtype, sizes in arrays.values()]
    check("token_ids", token_ids, torch.int32, shape, "num_rows", device)
    check("num_logprobs", num_logprobs, torch.int32, shape, "num_rows", device)
    for (name, (dtype, sizes)), tensor in zip(arrays.items(), out, strict=True):
        check(
            name, tensor, dtype, sizes, "num_rows" if sizes == shape else f"num_rows, {MAX_LOGPROBS}", device
        )
    run = _cuda.logprobs if logits.is_cuda else _core.cpu_logprobs
    run(
        dtype=dtype_id("logits", logits),
        num_rows=num_rows,
        vocab_size=vocab_size,
        logits=logits.data_ptr(),
        stride_logits=logits.stride(0),
        token_ids=token_ids.data_ptr(),
        num_logprobs=num_logprobs.data_ptr(),
        **{name: tensor.data_ptr() for name, tensor in zip(arrays, out, strict=True)},
        stream=stream_of(logits),
    )
    return tuple(out)
