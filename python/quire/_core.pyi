# ---- bind_ops: CPU kernels on raw pointers; called by quire/ops.py only -------------------------------
# dtype: 0 float32, 1 bfloat16; addresses are tensor.data_ptr(); strides in elements.

def cpu_paged_attention(
    dtype: int,
    query: int,
    stride_query_token: int,
    key_cache: int,
    value_cache: int,
    out: int,
    stride_out_token: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    block_size: int,
    softmax_scale: float,
    num_reqs: int,
    block_tables: int,
    stride_block_table: int,
    block_table_rows: int,
    query_start_loc: int,
    seq_lens: int,
    /,
) -> None: ...
def cpu_rope_and_cache(
    dtype: int,
    num_tokens: int,
    num_q_heads: int,
    num_kv_heads: int,
    head_dim: int,
    qkv: int,
    stride_token: int,
    cos: int,
    sin: int,
    max_position: int,
    positions: int,
    slot_mapping: int,
    key_cache: int,
    value_cache: int,
    num_slots: int,
    /,
) -> None: ...
def cpu_rms_norm(
    dtype: int,
    num_rows: int,
    hidden_size: int,
    eps: float,
    x: int,
    stride_x: int,
    residual: int,
    weight: int,
    out: int,
    /,
) -> None: ...
def cpu_silu_mul(
    dtype: int, num_rows: int, intermediate_size: int, gate_up: int, stride_gate_up: int, out: int, /
) -> None: ...
def cpu_embedding(
    dtype: int, num_tokens: int, vocab_size: int, hidden_size: int, token_ids: int, table: int, out: int, /
) -> None: ...
def cpu_sample(
    dtype: int,
    num_rows: int,
    vocab_size: int,
    logits: int,
    stride_logits: int,
    temperature: int,
    top_k: int,
    top_p: int,
    seed: int,
    output_idx: int,
    mask_offsets: int,
    mask_ids: int,
    out: int,
    /,
) -> None: ...
def cpu_isa() -> str: ...
def supported_cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(num_threads: int) -> None: ...
def philox4x32(seed: int, counter: int) -> list[int]: ...

# ---- end of bind_ops ------------------------------------------------------------------------------

# ---- bind_engine: the engine's side of the socket -----------------------------------------------------

class EngineServer:
    """Takes requests from a socket into a core, and sends the core's outputs back.

    Belongs to the thread that steps the core, and owns `fd` from here on.
    """

    def __init__(self, core: EngineCore, fd: int) -> None: ...
    def send_ready(self, model: str) -> None: ...
    def wait_for_work(self) -> bool: ...
    def publish(self) -> None: ...
    def stop(self) -> None: ...

def send_start_error(fd: int, message: str) -> bool: ...

# ---- end of bind_engine -------------------------------------------------------------------------------
