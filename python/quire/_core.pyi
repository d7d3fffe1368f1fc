"""Quire's C++ core. A test compares this file with the module."""

import enum
from collections.abc import Callable, Sequence
from typing import Final, TypeAlias

import numpy as np
import numpy.typing as npt
from typing_extensions import Buffer

# ---- core ----

class InvalidArgument(ValueError):  # noqa: N818 (the name of the C++ class)
    """A caller's mistake: "<field>: got <given>; allowed: <allowed>"."""

    field: str

class InternalError(RuntimeError):
    """An invariant of Quire does not hold: a bug."""

class SchedulingPolicy(enum.IntEnum):
    FCFS = 0
    PRIORITY = 1

class EngineConfig:
    """Limits and sizes of one engine; checked by EngineCore."""

    def __init__(
        self,
        *,
        num_blocks: int,
        max_model_len: int,
        vocab_size: int,
        block_size: int = 16,
        max_num_seqs: int = 256,
        max_num_batched_tokens: int = 2304,
        max_batches_out: int = 1,
        watermark: float = 0.01,
        enable_prefix_caching: bool = True,
        enable_chunked_prefill: bool = True,
        seed: int = 0,
        eos_token_ids: Sequence[int] = (),
        max_output_tokens: int = 0,
        scheduling_policy: SchedulingPolicy = SchedulingPolicy.FCFS,
    ) -> None: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def max_model_len(self) -> int: ...
    @property
    def vocab_size(self) -> int: ...
    @property
    def block_size(self) -> int: ...
    @property
    def max_num_seqs(self) -> int: ...
    @property
    def max_num_batched_tokens(self) -> int: ...
    @property
    def max_batches_out(self) -> int: ...
    @property
    def watermark(self) -> float: ...
    @property
    def enable_prefix_caching(self) -> bool: ...
    @property
    def enable_chunked_prefill(self) -> bool: ...
    @property
    def seed(self) -> int: ...
    @property
    def eos_token_ids(self) -> list[int]: ...
    @property
    def max_output_tokens(self) -> int: ...
    @property
    def scheduling_policy(self) -> SchedulingPolicy: ...

class SamplingParams:
    """What a request may ask; checked by EngineCore.add_request. Users write quire.SamplingParams."""

    def __init__(
        self,
        *,
        n: int = 1,
        max_tokens: int = 0,
        min_tokens: int = 0,
        temperature: float = 1.0,
        top_p: float = 1.0,
        top_k: int = 0,
        min_p: float = 0.0,
        presence_penalty: float = 0.0,
        frequency_penalty: float = 0.0,
        repetition_penalty: float = 1.0,
        logit_bias: Sequence[tuple[int, float]] = (),
        allowed_token_ids: Sequence[int] = (),
        bad_word_ids: Sequence[Sequence[int]] = (),
        seed: int | None = None,
        ignore_eos: bool = False,
        skip_special_tokens: bool = True,
        include_stop_str_in_output: bool = False,
        stop: Sequence[str] = (),
        stop_token_ids: Sequence[int] = (),
        logprobs: int | None = None,
        prompt_logprobs: int | None = None,
        detokenize: bool = True,
        stream_interval: int = 1,
        cache_salt: str = "",
    ) -> None: ...
    @property
    def n(self) -> int: ...
    @property
    def max_tokens(self) -> int: ...
    @property
    def min_tokens(self) -> int: ...
    @property
    def temperature(self) -> float: ...
    @property
    def top_p(self) -> float: ...
    @property
    def top_k(self) -> int: ...
    @property
    def min_p(self) -> float: ...
    @property
    def presence_penalty(self) -> float: ...
    @property
    def frequency_penalty(self) -> float: ...
    @property
    def repetition_penalty(self) -> float: ...
    @property
    def logit_bias(self) -> list[tuple[int, float]]: ...
    @property
    def allowed_token_ids(self) -> list[int]: ...
    @property
    def bad_word_ids(self) -> list[list[int]]: ...
    @property
    def seed(self) -> int | None: ...
    @property
    def ignore_eos(self) -> bool: ...
    @property
    def skip_special_tokens(self) -> bool: ...
    @property
    def include_stop_str_in_output(self) -> bool: ...
    @property
    def stop(self) -> list[str]: ...
    @property
    def stop_token_ids(self) -> list[int]: ...
    @property
    def logprobs(self) -> int | None: ...
    @property
    def prompt_logprobs(self) -> int | None: ...
    @property
    def detokenize(self) -> bool: ...
    @property
    def stream_interval(self) -> int: ...
    @property
    def cache_salt(self) -> str: ...

class FinishReason(enum.IntEnum):
    NONE = 0
    STOP = 1
    LENGTH = 2
    CANCELLED = 3
    ERROR = 4
    DEADLINE = 5

class DecoderKind(enum.IntEnum):
    BYTE_LEVEL = 0
    BYTE_FALLBACK = 1
    JOINED = 2
    WORD_PIECE = 3

TOKEN_SPECIAL: Final = 1
TOKEN_BYTE: Final = 2
TOKEN_UNKNOWN: Final = 4
STRIP_NOTHING: Final = 0
STRIP_ONE_SPACE: Final = 1
STRIP_FIRST_TOKEN: Final = -1

class TokenTable:
    """What each token id contributes to the text. Immutable."""

    def __init__(
        self,
        kind: DecoderKind,
        texts: Sequence[bytes],
        flags: Sequence[int],
        separator: str = "",
        strip_left: int = 0,
    ) -> None: ...
    def __len__(self) -> int: ...
    @property
    def kind(self) -> DecoderKind: ...
    @property
    def separator(self) -> str: ...
    @property
    def strip_left(self) -> int: ...
    def text(self, id: int) -> bytes: ...
    def flags(self, id: int) -> int: ...
    def contributes(self, id: int, skip_special_tokens: bool) -> bool: ...
    def decode(
        self,
        ids: Sequence[int],
        is_first: bool = True,
        trim: int = 0,
        skip_special_tokens: bool = True,
        open_text: int = 0,
    ) -> str: ...
    def open_text(self, ids: Sequence[int], skip_special_tokens: bool = True) -> int: ...
    def serialize(self) -> bytes: ...
    @staticmethod
    def deserialize(bytes: bytes) -> TokenTable: ...

class BatchLayout:
    """Where each array of a batch lies in one buffer, for the largest batch of a config."""

    def __init__(self, config: EngineConfig) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def arrays(self) -> dict[str, tuple[int, int, str]]: ...  # name -> offset in bytes, count, dtype

class EditsLayout:
    """The same of what samples ask for beside: num_logprobs and BatchEdits."""

    def __init__(self, max_num_seqs: int) -> None: ...
    @property
    def num_bytes(self) -> int: ...
    @property
    def arrays(self) -> dict[str, tuple[int, int, str]]: ...  # as BatchLayout.arrays

class BatchEdits:
    """What requests of a batch change about their logits: views, as those of Batch. What each array holds:
    quire/logit_edits.h."""

    @property
    def min_p(self) -> npt.NDArray[np.float32]: ...  # [num_sampled]
    @property
    def repetition_penalty(self) -> npt.NDArray[np.float32]: ...  # [num_sampled]
    @property
    def presence_penalty(self) -> npt.NDArray[np.float32]: ...  # [num_sampled]
    @property
    def frequency_penalty(self) -> npt.NDArray[np.float32]: ...  # [num_sampled]
    @property
    def allowed_rows(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]; -1: all tokens
    @property
    def bias_offsets(self) -> npt.NDArray[np.int32]: ...  # [num_sampled + 1]
    @property
    def bias_ids(self) -> npt.NDArray[np.int32]: ...  # [bias_offsets[-1]]
    @property
    def biases(self) -> npt.NDArray[np.float32]: ...  # [bias_offsets[-1]]
    @property
    def counted_rows(self) -> npt.NDArray[np.int32]: ...  # [num_counted]
    @property
    def counted_offsets(self) -> npt.NDArray[np.int32]: ...  # [num_counted + 1]
    @property
    def counted_prompt_lens(self) -> npt.NDArray[np.int32]: ...  # [num_counted]
    @property
    def counted_token_ids(self) -> npt.NDArray[np.int32]: ...  # [counted_offsets[-1]]
    @property
    def masked_rows(self) -> npt.NDArray[np.int32]: ...  # [num_masked]
    @property
    def masks(self) -> npt.NDArray[np.uint32]: ...  # [num_masked * num_mask_words]
    @property
    def num_table_row_bytes(self) -> int: ...  # 0: no row is written
    def pack_table_rows(self, address: int) -> dict[str, int]: ...  # name -> offset in bytes

class Batch:
    """One step's work. Arrays are read-only views of the core's memory, until the batch's update()."""

    @property
    def num_reqs(self) -> int: ...
    @property
    def num_tokens(self) -> int: ...
    @property
    def num_sampled(self) -> int: ...
    @property
    def max_query_len(self) -> int: ...
    @property
    def max_seq_len(self) -> int: ...
    @property
    def num_prompt_rows(self) -> int: ...
    @property
    def has_logprobs(self) -> bool: ...
    @property
    def token_ids(self) -> npt.NDArray[np.int32]: ...  # [num_tokens]; ~row: not known yet
    @property
    def positions(self) -> npt.NDArray[np.int32]: ...  # [num_tokens]
    @property
    def slot_mapping(self) -> npt.NDArray[np.int64]: ...  # [num_tokens]; -1: its KV is there already
    @property
    def request_ids(self) -> npt.NDArray[np.uint64]: ...  # [num_reqs]
    @property
    def sequence_index(self) -> npt.NDArray[np.uint32]: ...  # [num_reqs]
    @property
    def query_start_loc(self) -> npt.NDArray[np.int32]: ...  # [num_reqs + 1]
    @property
    def seq_lens(self) -> npt.NDArray[np.int32]: ...  # [num_reqs]
    @property
    def block_table_rows(self) -> npt.NDArray[np.int32]: ...  # [num_reqs]
    @property
    def block_tables(self) -> npt.NDArray[np.int32]: ...  # [max_num_seqs, max_blocks_per_request]
    @property
    def num_block_copies(self) -> int: ...
    @property
    def block_copies(self) -> npt.NDArray[np.int32]: ...  # [num_block_copies, 2]: source, destination
    @property
    def block_table_updates(self) -> npt.NDArray[np.int32]: ...  # [num_updates, 2]: flat index, block id
    @property
    def sample_token_idx(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]
    @property
    def sample_req_idx(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]
    @property
    def sample_rows(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]
    @property
    def temperature(self) -> npt.NDArray[np.float32]: ...  # [num_sampled]
    @property
    def top_p(self) -> npt.NDArray[np.float32]: ...  # [num_sampled]
    @property
    def top_k(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]
    @property
    def seed(self) -> npt.NDArray[np.uint64]: ...  # [num_sampled]
    @property
    def output_idx(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]
    @property
    def mask_offsets(self) -> npt.NDArray[np.int32]: ...  # [num_sampled + 1]
    @property
    def mask_ids(self) -> npt.NDArray[np.int32]: ...  # [mask_offsets[-1]]
    @property
    def edits(self) -> BatchEdits | None: ...
    @property
    def num_logprobs(self) -> npt.NDArray[np.int32]: ...  # [num_sampled]; 0: none
    @property
    def prompt_token_idx(self) -> npt.NDArray[np.int32]: ...  # [num_prompt_rows]
    @property
    def prompt_next_ids(self) -> npt.NDArray[np.int32]: ...  # [num_prompt_rows]
    @property
    def prompt_num_logprobs(self) -> npt.NDArray[np.int32]: ...  # [num_prompt_rows]
    def pack(
        self, layout: BatchLayout, address: int, num_tokens: int, num_reqs: int, num_sampled: int
    ) -> int: ...  # bytes used
    def pack_edits(self, layout: EditsLayout, address: int, num_sampled: int) -> int: ...  # number of biases

class EngineStats:
    """Gauges of now, and totals since the start."""

    @property
    def step(self) -> int: ...
    @property
    def num_running(self) -> int: ...
    @property
    def num_waiting(self) -> int: ...
    @property
    def num_free_blocks(self) -> int: ...
    @property
    def num_blocks(self) -> int: ...
    @property
    def num_preemptions(self) -> int: ...
    @property
    def prefix_cache_queries(self) -> int: ...
    @property
    def prefix_cache_hits(self) -> int: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_generation_tokens(self) -> int: ...

class Receipt:
    """Where the time of a request went, up to its end in the core."""

    def to_json(self, text_ns: int) -> str: ...

class Release:
    """A run of ids whose text decodes on its own: TokenTable.decode(token_ids[:num_text_ids], is_first, trim,
    skip_special_tokens, open_text)."""

    @property
    def request_id(self) -> int: ...
    @property
    def index(self) -> int: ...  # of the sequence
    @property
    def token_ids(self) -> list[int]: ...
    @property
    def num_text_ids(self) -> int: ...
    @property
    def trim(self) -> int: ...
    @property
    def is_first(self) -> bool: ...
    @property
    def open_text(self) -> int: ...
    @property
    def finish_reason(self) -> str: ...
    @property
    def num_prompt_tokens(self) -> int: ...
    @property
    def num_cached_tokens(self) -> int: ...
    @property
    def error(self) -> str: ...
    @property
    def receipt(self) -> Receipt | None: ...
    @property
    def stop_reason(self) -> str | int | None: ...
    @property
    def logprobs(self) -> npt.NDArray[np.void] | None: ...  # [num_ids, 1 + n] of (token_id, logprob, rank)
    @property
    def prompt_logprobs(self) -> npt.NDArray[np.void] | None: ...  # the same, from the second token on
    @property
    def cumulative_logprob(self) -> float | None: ...

class StepOutputs:
    """What may leave after a step. Holds until the next update() or take_outputs(); releases are copies."""

    def __len__(self) -> int: ...
    @property
    def stats(self) -> EngineStats: ...
    @property
    def releases(self) -> list[Release]: ...

# token_logprobs [n], token_ranks [n], top_ids [n, 20], top_logprobs [n, 20]
_LogprobArrays: TypeAlias = tuple[
    npt.NDArray[np.float32], npt.NDArray[np.int32], npt.NDArray[np.int32], npt.NDArray[np.float32]
]

class EngineCore:
    """The engine without a model. One owner thread."""

    def __init__(
        self, config: EngineConfig, token_table: TokenTable, clock: Callable[[], int] | None = None
    ) -> None: ...
    @property
    def config(self) -> EngineConfig: ...
    @property
    def token_table(self) -> TokenTable: ...
    def add_request(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        *,
        priority: int = 0,
        arrival_ns: int = 0,
        tokenize_ns: int = 0,
        deadline_ns: int = 0,
        return_receipt: bool = False,
    ) -> None: ...
    def cancel(self, request_id: int) -> None: ...
    def fail(self, request_id: int, message: str) -> None: ...
    def has_unfinished_requests(self) -> bool: ...
    def schedule(self) -> Batch: ...
    def num_batches_out(self) -> int: ...
    def forget_batches(self) -> None: ...
    def clear(self) -> None: ...
    def update(
        self,
        sampled: npt.NDArray[np.int32] | Buffer,  # [num_sampled]
        logprobs: _LogprobArrays | None = None,  # [num_sampled], when the batch has_logprobs
        prompt_logprobs: _LogprobArrays | None = None,  # [num_prompt_rows], when there are any
    ) -> StepOutputs: ...
    def take_outputs(self) -> StepOutputs: ...
    def outputs(self) -> StepOutputs: ...
    def stats(self) -> EngineStats: ...
    def check_integrity(self) -> None: ...

# ---- bind_ops: CPU kernels on raw pointers; called by quire/ops.py only -------------------------------
# dtype: 0 float32, 1 bfloat16; addresses are tensor.data_ptr(); strides in elements.

def cpu_paged_attention(
    dtype: int,
    query: int,
    stride_query_token: int,
    key_cache: int,
    value_cache: int,
    stride_block: int,
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
    block_size: int,
    stride_block: int,
    q_norm: int = 0,
    k_norm: int = 0,
    norm_eps: float = 0.0,
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
) -> None: ...
def cpu_silu_mul(
    dtype: int, num_rows: int, intermediate_size: int, gate_up: int, stride_gate_up: int, out: int
) -> None: ...
def cpu_embedding(
    dtype: int, num_tokens: int, vocab_size: int, hidden_size: int, token_ids: int, table: int, out: int
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
    min_p: int = 0,
    repetition_penalty: int = 0,
    presence_penalty: int = 0,
    frequency_penalty: int = 0,
    token_counts: int = 0,
    allowed_rows: int = 0,
    allowed_masks: int = 0,
    bias_offsets: int = 0,
    bias_ids: int = 0,
    biases: int = 0,
    sample_rows: int = 0,
) -> None: ...
def cpu_token_counts(
    num_reqs: int,
    vocab_size: int,
    rows: int,
    token_offsets: int,
    prompt_lens: int,
    token_ids: int,
    token_counts: int,
) -> None: ...
def cpu_logprobs(
    dtype: int,
    num_rows: int,
    vocab_size: int,
    logits: int,
    stride_logits: int,
    token_ids: int,
    num_logprobs: int,
    token_logprobs: int,
    token_ranks: int,
    top_ids: int,
    top_logprobs: int,
) -> None: ...
def cpu_isa() -> str: ...
def supported_cpu_isas() -> list[str]: ...
def set_cpu_isa(name: str) -> None: ...
def num_threads() -> int: ...
def set_num_threads(num_threads: int) -> None: ...

# ---- end of bind_ops ------------------------------------------------------------------------------

# ---- bind_engine: the engine's side of the socket -----------------------------------------------------

class EngineServer:
    """Takes requests from a socket into a core, and sends the core's outputs back.

    Belongs to the thread that steps the core, and owns `fd` from here on.
    """

    def __init__(self, core: EngineCore, fd: int) -> None: ...
    def send_ready(
        self, model: str, defaults: SamplingParams = ..., vocabulary: str = ..., loaded: str = ...
    ) -> None: ...
    def wait_for_work(self) -> bool: ...
    def publish(self) -> None: ...
    def stop(self) -> None: ...

def send_start_error(fd: int, message: str) -> bool: ...

# ---- end of bind_engine -------------------------------------------------------------------------------

# ---- bind_model_config: what the Triton backend checks of a config.pbtxt ------------------------------

def check_model_config(config: str) -> None: ...
