"""The kernels on torch tensors, of one signature on both devices: the tensors' device says which one runs.

Shapes, types and layout are checked here, then raw pointers go to the compiled modules, `quire._core` for the
CPU and `quire._cuda` for a GPU, where kernels run on torch's current stream. What each argument means:
`cpp/include/quire/kernels`.

Layouts, everywhere: activations `[num_tokens, ...]` with a contiguous last axis, index arrays int32 (slots
int64). On the CPU float32 and bfloat16, on a GPU float16 too. What one step shares by all layers is checked
once, in `BatchInfo`.
"""

from quire._core import cpu_isa, num_threads, set_cpu_isa, set_num_threads, supported_cpu_isas
from quire.ops.attention import BatchInfo, KVCache, PagedAttention, QkNorm, RopeTable, rope_and_cache
from quire.ops.blocks import copy_blocks, update_block_tables
from quire.ops.float8 import QuantizedBuffer, QuantizedRows, float8_columns, quantize_rows
from quire.ops.four_bits import by_group, four_bit_columns, mxfp4_scales
from quire.ops.layers import (
    Activation,
    act_mul,
    activate,
    embedding,
    gather_rows,
    layer_norm,
    rms_norm,
    scale_and_cap,
)
from quire.ops.moe import MoeWorkspace, moe_mlp, moe_route
from quire.ops.sampling import logprobs, sample, token_counts

__all__ = [
    "Activation",
    "BatchInfo",
    "KVCache",
    "MoeWorkspace",
    "PagedAttention",
    "QkNorm",
    "QuantizedBuffer",
    "QuantizedRows",
    "RopeTable",
    "act_mul",
    "activate",
    "by_group",
    "copy_blocks",
    "cpu_isa",
    "embedding",
    "float8_columns",
    "four_bit_columns",
    "gather_rows",
    "layer_norm",
    "logprobs",
    "moe_mlp",
    "moe_route",
    "mxfp4_scales",
    "num_threads",
    "quantize_rows",
    "rms_norm",
    "rope_and_cache",
    "sample",
    "scale_and_cap",
    "set_cpu_isa",
    "set_num_threads",
    "supported_cpu_isas",
    "token_counts",
    "update_block_tables",
]
