"""`quire check` of settings and model folders: what a start would refuse, in bounded time and memory, however
hostile the folder."""

from __future__ import annotations

import json
import math
import os
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from examples import examples
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from quire.model_files import MIB
from quire.triton.check import check_settings
from sample_tokenizers import train_byte_level, train_metaspace_fallback, train_word_level, write_model

EMBEDDED = Path(__file__).resolve().parents[3] / "models" / "quire-8m"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A copy of the embedded model to damage."""
    folder = tmp_path / "model"
    shutil.copytree(EMBEDDED, folder)
    return folder


def problems_of(model: Path, **settings: object) -> list[str]:
    path = model.parent / "model.json"
    path.write_text(json.dumps({"model": str(model)} | settings))
    return [str(problem).removeprefix(f"{model.parent}/") for problem in check_settings(path)]


def test_a_good_model(model: Path) -> None:
    """The embedded model has no problems."""
    assert problems_of(model) == []


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"num_gpu_blocks_override": 3}, "num_gpu_blocks_override: got 3; allowed: at least "),
        ({"kv_cache_memory_bytes": 1 << 50}, "kv_cache_memory_bytes: got 1125899906842624 ("),
        ({"kv_cache_memory_bytes": 1}, "kv_cache_memory_bytes: got 1; allowed: at least "),
        ({"max_model_len": 1 << 30}, "max_model_len: got 1073741824; allowed: at most "),
        ({"enable_chunked_prefill": False, "max_num_batched_tokens": 8}, "max_num_batched_tokens: got 8"),
        ({"override_generation_config": {"top_p": 3}}, "override_generation_config.top_p: got 3.0; "),
    ],
)
def test_settings_that_a_start_refuses(model: Path, settings: dict[str, Any], expected: str) -> None:
    """What the engine refuses before it loads weights is found without a start, with the setting's name."""
    (problem,) = problems_of(model, **settings)
    assert problem.startswith(f"model.json: {expected}")


def test_prompts_that_are_not_split(model: Path) -> None:
    """Without chunked prefill a step is by default as long as the longest prompt, as in vLLM; a shorter one
    that the settings name is refused."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 4096}))
    whole = {"enable_chunked_prefill": False, "load_format": "dummy"}
    assert problems_of(model, **whole) == []
    (problem,) = problems_of(model, **whole, max_num_batched_tokens=2304)
    assert problem.startswith("model.json: max_num_batched_tokens: got 2304; allowed: at least ")


@pytest.mark.skipif(torch.cuda.is_available(), reason="of machines without a GPU")
@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"device": "cuda"}, "device: got cuda; allowed: cpu, or auto; missing here: a GPU"),
        ({"kv_cache_dtype": "fp8"}, "kv_cache_dtype: got fp8; allowed: auto on a CPU"),
        ({"dtype": "float16"}, "dtype: got float16; allowed: auto, float32 or bfloat16 on a CPU"),
    ],
)
def test_what_this_machine_lacks(model: Path, settings: dict[str, Any], expected: str) -> None:
    """Settings that need a GPU are refused where there is none."""
    (problem,) = problems_of(model, **settings)
    assert problem.startswith(f"model.json: {expected}")


def test_every_file_is_reported(model: Path) -> None:
    """Several damaged files are several problems, in one go."""
    (model / "model.safetensors").write_bytes(b"")
    (model / "tokenizer.json").write_text("{}")
    (model / "generation_config.json").write_text('{"temperature": -1}')
    found = {problem.partition(": ")[0] for problem in problems_of(model)}
    assert found == {f"model/{name}.json" for name in ("tokenizer", "generation_config")} | {
        "model/model.safetensors"
    }


def as_fifo(path: Path) -> None:
    path.unlink(missing_ok=True)
    os.mkfifo(path)


def as_folder(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.mkdir()


def as_loop(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to(path)


def as_endless_device(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


def as_huge(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(300 * MIB)  # a hole, which takes no space


KINDS: dict[str, tuple[Callable[[Path], None], str]] = {
    "FIFO": (as_fifo, "got a FIFO; allowed: a regular file"),
    "folder": (as_folder, "got a folder; allowed: a regular file"),
    "loop": (as_loop, "cannot be read: "),
    "device": (as_endless_device, "got a device; allowed: a regular file"),
    "huge": (as_huge, "got 314572800 bytes; allowed: "),
}
INDEX = "model.safetensors.index.json"
FILES = ("config.json", "generation_config.json", "tokenizer.json", INDEX)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("file", [*FILES, "model.safetensors"])
def test_kinds_of_files(model: Path, file: str, kind: str) -> None:
    """A model file that is no regular file of a sane size is named, and neither waited for nor read."""
    make, expected = KINDS[kind]
    if file == INDEX:
        (model / "model.safetensors").unlink()  # beside which no index is read
    make(model / file)
    problems = problems_of(model)
    if (kind, file) == ("huge", "model.safetensors"):
        expected = "header: malformed JSON"  # a file of weights may have any size
    assert any(expected in problem for problem in problems), problems
    assert all(file in problem for problem in problems)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("[" * 200_000, "nested too deep"),
        ('{"a":' * 50_000, "nested too deep"),
        ('{"vocab_size": 1' + "0" * 10_000 + "}", "thousands of digits"),
        ("[]", "[]"),
        ("\x00", "malformed JSON"),
    ],
)
def test_hostile_json(model: Path, file: str, text: str, expected: str) -> None:
    """JSON that a parser chokes on is one line with the file's name."""
    (model / file).write_text(text)
    if file == INDEX:
        (model / "model.safetensors").unlink()
    problems = problems_of(model)
    assert problems
    assert all(problem.startswith(f"model/{file}: ") for problem in problems), problems
    if file != "tokenizer.json":  # which tokenizers reads
        assert expected in problems[0]


@pytest.mark.parametrize(
    "model_name", ["x" * 5000, "a\0b", "~nobody/at/all", "/dev/null", "/proc/self/mem", "./loop", "\udcff"]
)
def test_hostile_names(tmp_path: Path, model_name: str) -> None:
    """A name that is no folder is refused as that."""
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    path = tmp_path / "model.json"
    path.write_text(json.dumps({"model": model_name}))
    (problem,) = check_settings(path)
    assert problem.message.startswith("model: got ")
    assert not problem.is_note


@pytest.mark.parametrize("key", ["rms_norm_eps", "rope_theta"])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 0, -1, 10**400, 1e308, True, "1"])
def test_values_that_no_model_has(model: Path, key: str, value: object) -> None:
    """NaN, the infinities and the absurd are named, not computed with."""
    config = json.loads((model / "config.json").read_text())
    (model / "config.json").write_text(json.dumps(config | {key: value, "rope_parameters": None}))
    (problem,) = problems_of(model)
    assert problem.startswith(f"model/config.json: {key}: got ")


def with_tokenizer(model: Path, **changes: object) -> None:
    state = json.loads((model / "tokenizer.json").read_text())
    (model / "tokenizer.json").write_text(json.dumps(state | changes))


HOSTILE = [
    *(None, True, False, 0, -1, 1, 1.5, 2**31, 2**63, 2**64, 10**400, 1e308, math.nan, math.inf, -math.inf),
    *("", "x", "\udcff", "a\0b", "x" * 10_000, [], [[]], [None], [2**40], ["x"], [1.5], {}, {"a": 1}),
]


@hypothesis_settings(max_examples=examples(150), suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_value_makes_the_check_fail(model: Path, data: st.DataObject) -> None:
    """Whatever value stands anywhere in a model's JSON files, the check ends with problems or without."""
    file = data.draw(st.sampled_from(["config.json", "tokenizer.json", "generation_config.json"]))
    original = (EMBEDDED / file).read_text()

    def mutated(value: Any) -> Any:
        if isinstance(value, (dict, list)) and value and data.draw(st.booleans()):
            keys = list(value) if isinstance(value, dict) else list(range(len(value)))
            key = data.draw(st.sampled_from(keys[:60]))
            changed: Any = value.copy()
            changed[key] = mutated(value[key])
            return changed
        return data.draw(st.sampled_from(HOSTILE))

    (model / file).write_text(json.dumps(mutated(json.loads(original))))
    problems_of(model, load_format="dummy")
    (model / file).write_text(original)


def test_an_engine_that_cannot_be_imported(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A torch that is missing or broken is a problem of the settings' engine, as at start."""
    monkeypatch.setitem(sys.modules, "quire.engine.build", None)
    (problem,) = problems_of(model)
    assert problem.startswith("model.json: its engine cannot be imported: ")


EXPLODING = [{"type": "Replace", "pattern": {"String": "a"}, "content": "a" * 100}] * 4


def test_a_huge_id(tmp_path: Path) -> None:
    """An id far beyond the number of tokens would be a table of as many rows."""
    model = write_model(tmp_path / "model", train_word_level(), vocab_size=600)
    state = json.loads((model / "tokenizer.json").read_text())
    state["model"]["vocab"]["far"] = (1 << 31) - 1
    (model / "tokenizer.json").write_text(json.dumps(state))
    assert any(
        problem.startswith("model/tokenizer.json: token id: got 2147483647 in a vocabulary of ")
        for problem in problems_of(model)
    )


def test_replace_rules_that_explode(tmp_path: Path) -> None:
    """Rules that make 100 letters of one, four times, are refused before the text is made: those of a
    decoder, which reads tokens, and those of a normalizer, which reads prompts."""
    for key, changed in (
        (
            "decoder",
            {"type": "Sequence", "decoders": [*EXPLODING, {"type": "ByteFallback"}, {"type": "Fuse"}]},
        ),
        ("normalizer", {"type": "Sequence", "normalizers": EXPLODING}),
        ("normalizer", {"type": "Replace", "pattern": {"Regex": "x*"}, "content": "a" * 2000}),
    ):
        model = write_model(tmp_path / "model", train_metaspace_fallback(), vocab_size=600)
        with_tokenizer(model, **{key: changed})
        problems = problems_of(model)
        assert any(
            problem.startswith(f"model/tokenizer.json: {key}: got ") and "Replace" in problem
            for problem in problems
        ), problems


def test_a_tokenizer_of_another_model(model: Path) -> None:
    """Ordinary tokens beyond the model's vocabulary are a problem; added ones are worth a note."""
    config = json.loads((model / "config.json").read_text())
    tokenizer = train_byte_level()
    num_ordinary = len(tokenizer.get_vocab(with_added_tokens=False))

    def check(vocab_size: int) -> list[Any]:
        (model / "config.json").write_text(json.dumps(config | {"vocab_size": vocab_size}))
        path = model.parent / "model.json"
        path.write_text(json.dumps({"model": str(model), "load_format": "dummy"}))
        return list(check_settings(path))

    tokenizer.save(str(model / "tokenizer.json"))
    (problem, *_) = [found for found in check(num_ordinary - 10) if not found.is_note]
    assert problem.file == model / "tokenizer.json"
    assert problem.message.startswith(f"got 10 tokens with ids of at least {num_ordinary - 10}, such as ")
    notes = check(num_ordinary)
    assert notes
    assert all(note.is_note for note in notes)
    assert notes[0].message.startswith('added token "<tool call>" has id ')
