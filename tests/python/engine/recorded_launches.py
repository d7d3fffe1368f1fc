"""Prints every launch of the CUDA executor for a few small Llamas and steps, one per line, without a GPU:

    PYTHONPATH=python python tests/python/engine/recorded_launches.py > tests/python/engine/llama_launches.txt

Each argument, a JSON object merged into the models' config.json, or the path of another config.json, of which
one model then is made, gives a list; empty lines lie between them.
`quire._cuda` is replaced by a recorder, and tensors are on the CPU. An address is printed as the name of the
tensor and the offset in bytes; a tensor without a name is numbered when it first appears. So two programs
print the same where their kernels compute the same from the same weights in the same order.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import _core_parts
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Recorder(TorchFunctionMode):
    """What is launched: calls of `quire._cuda` and, while it is entered, what torch computes or allocates."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self._names: dict[int, str] = {}  # by address of the storage
        self._places: dict[int, tuple[int, int]] = {}  # address -> address of its storage, offset
        self._num_unnamed = 0
        self._alive: list[Tensor] = []
        self._data_ptr = Tensor.data_ptr

    def name(self, name: str, tensor: Tensor) -> None:
        """Storages that hold several tensors have the name of the first."""
        self._alive.append(tensor)
        self._names.setdefault(tensor.untyped_storage().data_ptr(), name)

    def forget_names(self) -> None:
        self._names.clear()
        self._num_unnamed = 0
        self._places.clear()

    def data_ptr(self, tensor: Tensor) -> int:
        address = self._data_ptr(tensor)
        storage = tensor.untyped_storage().data_ptr()
        self._places[address] = storage, address - storage
        self._alive.append(tensor)  # so that no other tensor gets this address
        return address

    def launch(self, name: str, *values: object, **named: object) -> None:
        given = [self.shown(value) for value in values]
        # A zero, null or false is every kernel's default.
        named = {key: value for key, value in named.items() if isinstance(value, Tensor) or value}
        given += [f"{key}={self.shown(value)}" for key, value in sorted(named.items())]
        self.lines.append(" ".join([name, *given]))

    def shown(self, value: object) -> str:
        if isinstance(value, Tensor):
            return f"{self.shown(self.data_ptr(value))}{list(value.shape)}{list(value.stride())}"
        if isinstance(value, int) and value in self._places:
            storage, offset = self._places[value]
            name = self._names.get(storage)
            if name is None:
                name = self._names[storage] = f"tensor{self._num_unnamed}"
                self._num_unnamed += 1
            return f"{name}+{offset}"
        return str(value)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        given = {tensor.untyped_storage().data_ptr() for tensor in args if isinstance(tensor, Tensor)}
        is_view = isinstance(result, Tensor) and result.untyped_storage().data_ptr() in given
        name = func.__name__
        is_in_place = name.endswith("_") and not name.startswith("__")
        if is_in_place or name in ("mm", "addmm") or (isinstance(result, Tensor) and not is_view):
            self.launch(f"torch.{name}", *args, **(kwargs or {}))
        return result


def install(recorder: Recorder) -> None:
    """Put the recorder in the place of the kernels; before `quire.ops` is imported."""

    class Handle:
        """A weight as a GEMM describes it."""

        def __init__(self, *arguments: object, **named: object) -> None:
            self._values = [*arguments, *named.values()]

        def __str__(self) -> str:
            return f"({' '.join(map(recorder.shown, self._values))})"

    def launcher(name: str, members: Mapping[str, bool]) -> Callable[..., None]:
        def launch(**named: object) -> None:
            required = {member for member, is_required in members.items() if is_required}
            if not required <= named.keys() <= members.keys():
                raise TypeError(f"{name}: got {', '.join(named)}; allowed: {', '.join(members)}")
            recorder.launch(name, **named)

        return launch

    kernels: Any = ModuleType("quire._cuda")
    kernels.SKINNY_GEMM_MAX_ROWS = 64
    kernels.WIDENED_GEMM_MAX_ROWS = 32
    kernels.paged_attention_workspace_bytes = lambda config: 256
    for name in ("SkinnyGemmWeight", "WideGemmWeight", "PagedAttentionConfig"):
        setattr(kernels, name, Handle)
    for name, members in kernel_members().items():
        setattr(kernels, name, launcher(name, members))
    sys.modules["quire._cuda"] = kernels
    tensors: Any = torch.Tensor
    tensors.data_ptr = lambda tensor: recorder.data_ptr(tensor)
    tensors.is_cuda = property(lambda _: True)
    cuda: Any = torch.cuda
    cuda.current_stream = lambda: SimpleNamespace(cuda_stream=0)
    cuda.get_device_properties = lambda _: SimpleNamespace(multi_processor_count=132)


def kernel_members() -> dict[str, dict[str, bool]]:
    """Kernel -> the names of its arguments, and whether each must be given, as the bindings say."""
    kernels = {}
    for name, function in vars(_core_parts.cuda).items():
        text = getattr(function, "__doc__", None) or ""
        if text.startswith(f"{name}(*, "):
            members = text[text.index("*, ") + 3 : text.rindex(") ->")].split(", ")
            kernels[name] = {member.split(":")[0]: "=" not in member for member in members}
    return kernels


CONFIG: dict[str, Any] = {
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 320,
    "hidden_size": 128,
    "intermediate_size": 256,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
# (settings, batch_invariant, steps of (num_tokens, num_sampled): all sampled is a decode step)
CASES: dict[str, tuple[dict[str, Any], bool, list[tuple[int, int]]]] = {
    "plain": ({}, False, [(4, 4), (100, 100), (12, 3), (100, 5), (300, 5)]),
    "biases": ({"attention_bias": True, "mlp_bias": True}, False, [(4, 4), (300, 5)]),
    "tied, batch invariant": ({"tie_word_embeddings": True}, True, [(4, 4), (100, 5), (300, 70)]),
    "odd sizes": ({"vocab_size": 331, "intermediate_size": 100}, False, [(4, 4), (100, 5), (300, 5)]),
}


def main() -> None:
    recorder = Recorder()
    install(recorder)
    print("\n\n".join("\n".join(record(recorder, argument)) for argument in sys.argv[1:] or ["{}"]))


def record(recorder: Recorder, argument: str) -> list[str]:
    """The lines of all cases."""
    recorder.lines = []
    is_changes = argument.startswith("{")
    cases = CASES if is_changes else {"given": ({}, False, [(4, 4), (100, 5)])}
    for name, (settings, batch_invariant, steps) in cases.items():
        with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
            config = json.dumps(CONFIG | settings | json.loads(argument)) if is_changes else None
            (Path(folder) / "config.json").write_text(config or Path(argument).read_text())
            for num_tokens, num_sampled in steps:
                recorder.lines.append(f"# {name}: {num_tokens} tokens, {num_sampled} sampled")
                run(recorder, Path(folder), batch_invariant, num_tokens, num_sampled)
    return recorder.lines


def run(recorder: Recorder, folder: Path, batch_invariant: bool, num_tokens: int, num_sampled: int) -> None:
    """One step, and the logits of three other tokens where it does not sample all."""
    from quire import ops
    from quire.models.activations import Activations
    from quire.models.config import load_model_config
    from quire.models.decoder import Decoder, paged_attentions
    from quire.models.parameters import Weights
    from quire.step_arrays import StepArrays

    recorder.forget_names()
    model = load_model_config(folder)
    cpu = torch.device("cpu")
    weights = Weights(model.parameters(torch.bfloat16, torch.device("cuda")), cpu)
    for key, place in weights.places().items():
        recorder.name(key, place.views[0])
    decoder = Decoder(weights, cpu, 64, batch_invariant=batch_invariant)
    activations = Activations(
        model.spec,
        torch.bfloat16,
        cpu,
        num_tokens,
        num_sampled,
        has_outputs=True,
        takes_quantized=weights.table.takes_quantized,
    )
    attentions = paged_attentions(model.spec, cpu, max_num_seqs=8, max_num_tokens=num_tokens, max_seq_len=64)
    attention = model.spec.attention
    kv_memory = torch.zeros(
        (8, model.spec.num_layers, 2, 16, attention.num_kv_heads, attention.head_dim), dtype=torch.bfloat16
    )
    caches = [ops.KVCache(layer) for layer in kv_memory.unbind(1)]
    block_tables, last_token_ids = torch.zeros(8, 4, dtype=torch.int32), torch.zeros(9, dtype=torch.int32)
    lengths = {"token_ids": num_tokens, "positions": num_tokens, "slot_mapping": num_tokens}
    lengths |= {"sample_token_idx": num_sampled, "sample_rows": num_sampled}
    unnamed = ("header", "query_start_loc", "seq_lens", "block_table_rows")
    step = StepArrays(
        **{
            key: torch.zeros(size, dtype=torch.int64 if key == "slot_mapping" else torch.int32)
            for key, size in lengths.items()
        },
        **dict.fromkeys(unnamed, torch.zeros(0)),
    )
    named = {"kv_memory": kv_memory, "block_tables": block_tables, "last_token_ids": last_token_ids}
    for key, tensor in (named | {key: getattr(step, key) for key in lengths}).items():
        recorder.name(key, tensor)
    others = torch.zeros(3, dtype=torch.int32)
    recorder.name("others", others)
    is_decode = num_tokens == num_sampled
    batch = ops.BatchInfo(
        positions=step.positions,
        slot_mapping=step.slot_mapping,
        query_start_loc=torch.zeros(2, dtype=torch.int32),
        seq_lens=torch.zeros(1, dtype=torch.int32),
        block_tables=block_tables,
        block_table_rows=torch.zeros(1, dtype=torch.int32),
        max_query_len=1 if is_decode else num_tokens,
        places_are_settled=True,
    )
    with recorder:
        rows = decoder.attend(
            step.token_ids, batch, attentions, caches, activations, last_token_ids=last_token_ids
        )
        if not is_decode:
            rows = activations.pick(step.sample_token_idx)
        recorder.launch("logits", decoder.logits(rows))
        if not is_decode:
            recorder.launch("logits", decoder.logits(activations.pick(others)))


if __name__ == "__main__":
    main()
