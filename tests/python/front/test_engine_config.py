"""Engine settings from model.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pydantic
import pytest
from quire.config import EngineConfig
from quire.errors import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "model.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    return path


def problem_of(folder: Path, text: str) -> str:
    path = write(folder, text)
    with pytest.raises(ConfigError) as caught:
        EngineConfig.from_file(path)
    assert str(caught.value).startswith(f"{path}: ")
    return str(caught.value).removeprefix(f"{path}: ")


def test_reads_every_setting(tmp_path: Path) -> None:
    """What model_dump() writes, from_file() reads."""
    config = EngineConfig(
        model="somewhere",
        dtype="bfloat16",
        max_model_len=128,
        max_num_seqs=4,
        max_num_batched_tokens=64,
        block_size=8,
        num_gpu_blocks_override=100,
        kv_cache_memory_bytes=1 << 40,
        enable_prefix_caching=False,
        enable_chunked_prefill=False,
        watermark=0,
        seed=3,
        num_threads=2,
        load_format="dummy",
        disable_log_stats=True,
    )
    assert (
        EngineConfig.from_file(write(tmp_path, json.dumps(config.model_dump()))).model_dump()
        == config.model_dump()
    )
    assert (
        EngineConfig.from_file(write(tmp_path, '{"model": "m"}')).model_dump()
        == EngineConfig(model="m").model_dump()
    )


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("{", "malformed JSON at line 1 column 2: Expecting property name enclosed in double quotes"),
        ('{"model": "m",\n "seed": 1,}', None),
        ("[]", "got []; allowed: a JSON object with engine settings"),
        ("{}", "model: missing; allowed: a non-empty string"),
        ('{"model": ""}', 'model: got ""; allowed: a non-empty string'),
        ('{"model": "m", "model": "m"}', "model: got the key twice; allowed: once"),
        ('{"model": "m", "seed": 1.0}', "seed: got 1.0; allowed: an integer in [0, 9223372036854775807]"),
        (
            '{"model": "m", "max_num_seqs": "3.0"}',
            'max_num_seqs: got "3.0"; allowed: an integer in [1, 2147483647]',
        ),
        (
            '{"model": "m", "max_num_seqs": true}',
            "max_num_seqs: got true; allowed: an integer in [1, 2147483647]",
        ),
        (
            '{"model": "m", "max_model_len": 0}',
            "max_model_len: got 0; allowed: an integer in [1, 2147483647] or null",
        ),
        ('{"model": "m", "watermark": 1}', "watermark: got 1; allowed: a number in [0, 1)"),
        ('{"model": "m", "watermark": NaN}', "watermark: got nan; allowed: a number in [0, 1)"),
        (
            '{"model": "m", "dtype": "fp8"}',
            'dtype: got "fp8"; allowed: "auto", "float32", "bfloat16", "float16"',
        ),
        (
            '{"model": "m", "enable_prefix_caching": "no"}',
            'enable_prefix_caching: got "no"; allowed: true or false',
        ),
        ('{"model": "\udcff"}', "got invalid UTF-8 at byte 11; allowed: UTF-8 text"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, problem: str | None) -> None:
    """An error names file, key, what was given and what is allowed."""
    actual = problem_of(tmp_path, text)
    if problem is None:
        # Python 3.13 points at the comma, those before at what follows.
        assert re.match("malformed JSON at line 2 column 1[12]: ", actual)
    else:
        assert problem == actual


def test_unknown_keys(tmp_path: Path) -> None:
    """An unknown key is refused with the nearest known one."""
    problem = problem_of(tmp_path, '{"model": "m", "max_num_seq": 3}')
    assert problem.startswith(
        'max_num_seq: unknown key (did you mean "max_num_seqs"?); allowed: model, revision, tokenizer, '
    )
    with pytest.raises(ConfigError, match=r"^block_sise: unknown key \(did you mean"):
        EngineConfig(model="m", block_sise=8)


def test_missing_file(tmp_path: Path) -> None:
    """A missing file is named."""
    with pytest.raises(ConfigError, match="no such file"):
        EngineConfig.from_file(tmp_path / "model.json")
    with pytest.raises(ConfigError, match="got a folder; allowed: a regular file"):
        EngineConfig.from_file(tmp_path)


def test_frozen() -> None:
    """Settings do not change after they were checked."""
    config = EngineConfig(model="m")
    with pytest.raises(pydantic.ValidationError):
        config.model = "other"


def test_every_setting_has_a_range() -> None:
    """The error text knows what each key may hold."""
    for name in EngineConfig.model_fields:
        with pytest.raises(ConfigError, match=f"^{name}: got .*; allowed: ."):
            EngineConfig(**({"model": "m"} | {name: object()}))
