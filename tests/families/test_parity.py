"""Every published config: served as transformers computes it, or refused by a line that says what is missing.

Random weights, float32, on the CPU. Prompts come in chunks, share prefixes, and are more than the KV cache
holds, so that some are preempted and computed again.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from family_checkpoints import CONFIGS, AutoModelForCausalLM, config_of, make_checkpoint
from quire import LLM, RequestOutput, SamplingParams
from quire.errors import UnsupportedModel
from quire.models.config import load_model_config
from random_llama import save_tokenizer
from safetensors.torch import load_file, save_file

NUM_TOKENS = 64
ORIGINAL_LENGTH = 128  # of the configs with longrope
TOLERANCE = 1e-4  # of logprobs
# What a config that is refused says.
REFUSED = {
    "deepseek-v2-lite-MLA": "architectures",
    "deepseek-v3-MLA": "architectures",
    "internlm3-as-llama-dynamic-rope": "architectures",
    "lfm2-conv-hybrid": "architectures",
    "llama4-text": "architectures",
    "mamba2": "architectures",
    "qwen3-next-hybrid": "architectures",
    "qwen3.5-hybrid-dense-text": "architectures",
}


def runs(name: str) -> list[tuple[int, list[list[int]]]]:
    """max_model_len and prompts. The last two prompts begin like the second."""
    generator = torch.Generator().manual_seed(1)

    def ids(count: int) -> list[int]:
        return torch.randint(5, 600, (count,), generator=generator).tolist()

    long = ids(150)
    short, others = ids(5), [long, long[:96] + ids(40), long[:128] + ids(3)]
    if "longrope" in name:
        # The frequencies are those of the longest context: transformers chooses them for each sequence.
        return [(ORIGINAL_LENGTH, [short, long[:40]]), (256, others)]
    return [(256, [short, *others])]


# The others differ from these by a number, or by the kind of a RoPE whose table is compared elsewhere.
DAILY = (
    "llama3.1-8b",
    "mistral-7b-v0.1-sliding-32",
    "qwen3-moe",
    "gemma2-2b",
    "olmo2-7b",
    "gpt-oss-20b-bf16-sinks",
    "gpt2",
)


@pytest.mark.parametrize(
    "name",
    [
        name if name in DAILY else pytest.param(name, marks=pytest.mark.slow)
        for name in sorted(CONFIGS.keys() - REFUSED.keys())
    ],
)
def test_served_as_transformers_computes_it(tmp_path: Path, name: str) -> None:
    """Logprobs of all prompt and output places, and greedy ids."""
    assert worst_difference(name, tmp_path) < TOLERANCE


def worst_difference(name: str, tmp_path: Path) -> float:
    model = make_checkpoint(name, tmp_path)
    assert model is not None
    save_tokenizer(tmp_path)
    params = SamplingParams(
        temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True, logprobs=5, prompt_logprobs=5
    )
    worst = 0.0
    for max_model_len, prompts in runs(name):
        llm = LLM(
            str(tmp_path),
            dtype="float32",
            device="cpu",
            max_model_len=max_model_len,
            num_gpu_blocks_override=34,  # of four requests of up to 14 blocks
            max_num_batched_tokens=48,
        )
        for prompt, result in zip(prompts, llm.generate(prompts, params), strict=True):
            assert len(result.outputs[0].token_ids) == NUM_TOKENS
            worst = max(worst, difference(model, prompt, result))
    return worst


def test_the_page_of_families_has_all_of_them() -> None:
    """docs/families.md, which families_page.py writes."""
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    rows = [line.split(" | ") for line in page.splitlines() if line.startswith("| ")][2:]
    assert sorted(CONFIGS) == sorted(row[0].removeprefix("| ") for row in rows)
    assert sorted(REFUSED) == sorted(row[0].removeprefix("| ") for row in rows if "refused" in row[2])


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_refused_by_name(tmp_path: Path, name: str) -> None:
    """One line that names the file, the key, what was given and what is allowed."""
    (tmp_path / "config.json").write_text(CONFIGS[name].read_text())
    with pytest.raises(UnsupportedModel) as error:
        load_model_config(tmp_path)
    given = json.dumps(config_of(name)[REFUSED[name]])
    assert str(error.value).startswith(f"{tmp_path}/config.json: {REFUSED[name]}: got {given}; allowed: ")
    assert "\n" not in str(error.value)


def difference(model: torch.nn.Module, prompt: list[int], result: RequestOutput) -> float:
    """The largest of logprobs, over all places; greedy ids must be equal but for ties."""
    output = result.outputs[0]
    ids = list(output.token_ids)
    with torch.inference_mode():
        expected = model(torch.tensor([prompt + ids])).logits[0].float().log_softmax(-1)
    worst = 0.0
    for place, given in enumerate([*result.prompt_logprobs[1:], *output.logprobs]):
        for token_id, entry in given.items():
            worst = max(worst, abs(entry.logprob - expected[place, token_id].item()))
    choices = expected[len(prompt) - 1 : -1]
    chosen = choices.gather(1, torch.tensor(ids)[:, None])[:, 0]
    assert (choices.max(1).values - chosen).max() < TOLERANCE
    return worst


@pytest.mark.parametrize("name", ["llama3.2-1b", "gemma-2b"])
def test_a_stored_head_unlike_the_embedding_it_is_tied_to(tmp_path: Path, name: str) -> None:
    """The stored head is used, as in transformers 5."""
    assert make_checkpoint(name, tmp_path) is not None
    tensors = load_file(tmp_path / "model.safetensors")
    tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].flip(0)
    save_file(tensors, tmp_path / "model.safetensors", metadata={"format": "pt"})
    model = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32, attn_implementation="eager")
    save_tokenizer(tmp_path)
    llm = LLM(str(tmp_path), dtype="float32", device="cpu", max_model_len=96, num_gpu_blocks_override=8)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=5, prompt_logprobs=5)
    prompt = [*range(5, 45)]
    (result,) = llm.generate([prompt], params)
    assert difference(model, prompt, result) < TOLERANCE


@pytest.mark.parametrize("name", ["mistral-small-24b", "gemma3-1b"])
def test_the_language_model_of_a_multimodal_one(tmp_path: Path, name: str) -> None:
    """Its part of config.json and its tensors make the model that it is by itself."""
    model = make_checkpoint(name, tmp_path)
    assert model is not None
    tensors = load_file(tmp_path / "model.safetensors")
    renamed = {f"language_model.{key}": tensor for key, tensor in tensors.items()}
    save_file(renamed | {"vision_tower.w": torch.ones(3)}, tmp_path / "model.safetensors")
    text = {
        key: value for key, value in config_of(name).items() if key not in ("architectures", "torch_dtype")
    }
    whole = {"architectures": ["LlavaForConditionalGeneration"], "text_config": text, "vision_config": {}}
    (tmp_path / "config.json").write_text(json.dumps(whole))
    save_tokenizer(tmp_path)
    llm = LLM(str(tmp_path), dtype="float32", device="cpu", max_model_len=96, num_gpu_blocks_override=8)
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True, logprobs=5, prompt_logprobs=5)
    prompt = [*range(5, 45)]
    (result,) = llm.generate([prompt], params)
    assert difference(model, prompt, result) < TOLERANCE


@pytest.mark.parametrize(
    ("name", "changes", "key"),
    [
        ("glm4-moe-4.5-Air", {"n_group": 3}, "n_group"),
        ("glm4-moe-4.5-Air", {"n_group": 2, "topk_group": 3}, "topk_group"),
        ("glm4-moe-4.5-Air", {"n_group": 8, "topk_group": 1}, "topk_group"),
        ("glm4-moe-4.5-Air", {"first_k_dense_replace": "1"}, "first_k_dense_replace"),
        ("qwen3-moe", {"num_experts": 4096, "num_hidden_layers": 64}, "num_experts"),
        ("qwen3-moe", {"num_experts_per_tok": 9}, "num_experts_per_tok"),
        ("llama-rope-longrope", {"original_max_position_embeddings": 1}, "rope_scaling.original_max_pos"),
        ("qwen2.5-yarn", {"rope_theta": 1.0}, "rope_scaling.rope_theta"),
        ("llama3-8b", {"num_attention_heads": 4096}, "num_attention_heads"),
    ],
)
def test_numbers_that_no_model_has(tmp_path: Path, name: str, changes: dict[str, object], key: str) -> None:
    """They are refused by name, before they cost time, or divide by zero."""
    (tmp_path / "config.json").write_text(json.dumps(config_of(name) | changes))
    with pytest.raises(UnsupportedModel) as error:
        load_model_config(tmp_path)
    assert str(error.value).startswith(f"{tmp_path}/config.json: {key}")
