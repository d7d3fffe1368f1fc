"""Builds the paged attention kernels with nvcc and calls them on torch tensors."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
import tempfile
from ctypes import POINTER, Structure, byref, c_bool, c_char_p, c_float, c_int32, c_int64, c_size_t, c_void_p
from functools import cache
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[3]
DTYPES = {torch.bfloat16: 0, torch.float16: 1}
KV_DTYPES = {torch.bfloat16: 0, torch.float16: 0, torch.float8_e4m3fn: 1}


class Config(Structure):
    _fields_ = [
        (name, c_int32)
        for name in (
            "num_q_heads",
            "num_kv_heads",
            "head_dim",
            "max_num_reqs",
            "max_num_tokens",
            "max_seq_len",
            "num_sms",
            "split_keys",
            "window",
        )
    ]


class PlanParams(Structure):
    _fields_ = [
        ("config", Config),
        *((name, c_void_p) for name in ("num_reqs", "query_start_loc", "seq_lens", "block_table_rows")),
        ("workspace", c_void_p),
    ]


class Params(Structure):
    _fields_ = [
        ("config", Config),
        ("dtype", c_int32),
        ("block_size", c_int32),
        ("softmax_scale", c_float),
        ("max_query_len", c_int32),
        ("query", c_void_p),
        ("stride_query_token", c_int64),
        ("key_cache", c_void_p),
        ("value_cache", c_void_p),
        ("stride_block", c_int64),
        ("out", c_void_p),
        ("stride_out_token", c_int64),
        ("block_tables", c_void_p),
        ("stride_block_table", c_int64),
        ("workspace", c_void_p),
        ("kv_dtype", c_int32),
        *((name, c_float) for name in ("k_scale", "v_scale", "soft_cap")),
        ("follows_layer", c_bool),
    ]


@cache
def library() -> ctypes.CDLL:
    """Compiled once per state of the sources."""
    sources = [
        *sorted((ROOT / "cuda/src/common").glob("*.cu")),
        *sorted((ROOT / "cuda/src/paged_attention").glob("*.cu")),
        Path(__file__).with_name("paged_attention_shim.cu"),
    ]
    headers = [
        *sorted((ROOT / "cuda/src/paged_attention").glob("*.*h")),
        *sorted((ROOT / "cuda/src/common").glob("*.*h")),
        *(ROOT / "cuda/include/quire/cuda" / name for name in ("dtype.h", "paged_attention.h")),
    ]
    digest = hashlib.sha256(b"".join(p.read_bytes() for p in sources + headers)).hexdigest()[:16]
    path = Path(tempfile.gettempdir()) / f"quire_paged_attention_{digest}.so"
    if not path.exists():
        building = path.with_suffix(".building")
        flags = ["-gencode=arch=compute_90a,code=sm_90a", "-std=c++17", "-O3", "-lineinfo", "-t0"]
        flags += ["-shared", "-Xcompiler", "-fPIC", f"-I{ROOT / 'cuda/include'}", f"-I{ROOT / 'cuda/src'}"]
        subprocess.run(["nvcc", *flags, *map(str, sources), "-o", str(building)], check=True)
        building.rename(path)
    lib = ctypes.CDLL(str(path))
    for name, params in (("workspace_bytes", Config), ("plan", PlanParams), ("run", Params)):
        function = getattr(lib, f"quire_attention_{name}")
        function.restype = c_char_p
        function.argtypes = [POINTER(params), POINTER(c_size_t) if name == "workspace_bytes" else c_void_p]
    lib.quire_late_copy.restype = c_char_p
    lib.quire_late_copy.argtypes = [c_void_p, c_void_p, c_int64, c_int64, c_void_p]
    return lib


def late_copy(to: Tensor, source: Tensor, nanoseconds: int) -> None:
    """A copy of contiguous bytes by a kernel behind whose beginning the next kernel may begin."""
    stream = torch.cuda.current_stream().cuda_stream
    num_bytes = to.numel() * to.element_size()
    _checked(library().quire_late_copy(to.data_ptr(), source.data_ptr(), num_bytes, nanoseconds, stream))


def _checked(error: bytes | None) -> None:
    if error is not None:
        raise RuntimeError(error.decode())


class PagedAttention:
    """One workspace: plan() once per step, then run() per layer, on the current stream."""

    def __init__(
        self,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_num_reqs: int,
        max_num_tokens: int,
        max_seq_len: int,
        split_keys: int = 0,
        num_sms: int = 0,
        window: int = 0,
    ) -> None:
        sms = num_sms or torch.cuda.get_device_properties(0).multi_processor_count
        self.config = Config(
            num_q_heads,
            num_kv_heads,
            head_dim,
            max_num_reqs,
            max_num_tokens,
            max_seq_len,
            sms,
            split_keys,
            window,
        )
        num_bytes = c_size_t()
        _checked(library().quire_attention_workspace_bytes(byref(self.config), byref(num_bytes)))
        self.workspace = torch.full((num_bytes.value,), 0x7F, dtype=torch.uint8, device="cuda")

    def plan(
        self, num_reqs: Tensor, query_start_loc: Tensor, seq_lens: Tensor, block_table_rows: Tensor
    ) -> None:
        params = PlanParams(
            self.config,
            num_reqs.data_ptr(),
            query_start_loc.data_ptr(),
            seq_lens.data_ptr(),
            block_table_rows.data_ptr(),
            self.workspace.data_ptr(),
        )
        _checked(library().quire_attention_plan(byref(params), torch.cuda.current_stream().cuda_stream))

    def run(
        self,
        query: Tensor,  # [num_tokens, num_q_heads * head_dim], rows may be strided
        key_cache: Tensor,  # [num_blocks, block_size, num_kv_heads, head_dim]
        value_cache: Tensor,
        out: Tensor,  # as query
        block_tables: Tensor,  # [max_num_seqs, max_blocks_per_request]
        *,
        max_query_len: int,
        softmax_scale: float | None = None,
        block_size: int | None = None,
        k_scale: float = 1.0,
        v_scale: float = 1.0,
        soft_cap: float = 0.0,
        follows_layer: bool = False,
    ) -> None:
        params = Params(
            self.config,
            DTYPES[query.dtype],
            key_cache.shape[1] if block_size is None else block_size,
            self.config.head_dim**-0.5 if softmax_scale is None else softmax_scale,
            max_query_len,
            query.data_ptr(),
            query.stride(0),
            key_cache.data_ptr(),
            value_cache.data_ptr(),
            key_cache.stride(0),
            out.data_ptr(),
            out.stride(0),
            block_tables.data_ptr(),
            block_tables.stride(0),
            self.workspace.data_ptr(),
            KV_DTYPES[key_cache.dtype],
            k_scale,
            v_scale,
            soft_cap,
            follows_layer,
        )
        _checked(library().quire_attention_run(byref(params), torch.cuda.current_stream().cuda_stream))
