"""Quire's CUDA kernels on raw device pointers: addresses and the stream as integers. Present where it was
built (QUIRE_CUDA)."""

class PagedAttentionConfig:
    """Sizes of the attention's workspace. See quire/cuda/paged_attention.h."""

    def __init__(
        self,
        *,
        num_q_heads: int,
        num_kv_heads: int,
        head_dim: int,
        max_num_reqs: int,
        max_num_tokens: int,
        max_seq_len: int,
        num_sms: int,
        split_keys: int = 0,
    ) -> None: ...

def paged_attention_workspace_bytes(config: PagedAttentionConfig) -> int: ...
def paged_attention_plan(config: PagedAttentionConfig, *addresses: int) -> None: ...
def paged_attention(
    config: PagedAttentionConfig,
    dtype: int,
    block_size: int,
    softmax_scale: float,
    *sizes: int,
    kv_dtype: int = 0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    soft_cap: float = 0.0,
    follows_layer: bool = False,
) -> None: ...
def rope_and_cache(
    dtype: int,
    *sizes: int,
    kv_dtype: int = 0,
    q_norm: int = 0,
    k_norm: int = 0,
    norm_eps: float = 0.0,
    places_are_settled: bool = False,
) -> None: ...
def rms_norm(dtype: int, num_rows: int, hidden_size: int, eps: float, *sizes: int) -> None: ...
def silu_mul(dtype: int, *sizes: int) -> None: ...
def embedding(dtype: int, *sizes: int) -> None: ...
def sample(dtype: int, *sizes: int, **edits: int) -> None: ...
def token_counts(*sizes: int) -> None: ...
def logprobs(dtype: int, *sizes: int) -> None: ...
def update_block_tables(*sizes: int) -> None: ...
def copy_blocks(*sizes: int) -> None: ...
def gather_rows(dtype: int, *sizes: int) -> None: ...

SKINNY_GEMM_MAX_ROWS: int

class SkinnyGemmWeight:
    """A weight [n, k], described once for the copy engine."""

    def __init__(self, data: int, n: int, k: int, dtype: int, silu_mul: bool = False) -> None: ...

def skinny_gemm(weight: SkinnyGemmWeight, *sizes: int, is_invariant: bool = ...) -> None: ...

class WideGemmWeight:
    """A weight [n, k], described once for the copy engine."""

    def __init__(self, data: int, n: int, k: int, dtype: int, silu_mul: bool = False) -> None: ...

def wide_gemm(weight: WideGemmWeight, *sizes: int) -> None: ...
def split_gemm(weight: WideGemmWeight, *sizes: int) -> None: ...
