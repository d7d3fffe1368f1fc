"""python -m quire.engine as the backend starts it: a config file and one end of a socketpair."""

from __future__ import annotations

import json
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import wire_client as wire
from quire.engine.__main__ import run
from quire.errors import ModelError
from quire.fingerprint import LoadedFolder
from random_llama import EOS, VOCAB_SIZE
from reference import check_greedy
from wire_client import Client

pytestmark = pytest.mark.slow  # each test starts a process that imports torch


@dataclass
class Process:
    process: subprocess.Popen[str]
    client: Client

    def wait(self) -> tuple[int, str]:
        """Exit status and log."""
        _, log = self.process.communicate(timeout=60)
        return self.process.returncode, log


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """start(settings or the file's text) -> Process."""
    started: list[Process] = []

    def start(settings: dict[str, Any] | str, *, loaded: str = "") -> Process:
        file = tmp_path / "model.json"
        file.write_text("{ this is read by nobody")
        content = settings if isinstance(settings, str) else json.dumps(settings)
        ours, theirs = socket.socketpair()
        with theirs, tempfile.TemporaryFile() as handed_over:
            handed_over.write(content.encode())
            handed_over.seek(0)
            fds = [theirs.fileno(), handed_over.fileno()]
            command = [sys.executable, "-m", "quire.engine", "--config", str(file)]
            command += ["--fd", str(fds[0]), "--settings-fd", str(fds[1])]
            process = subprocess.Popen(
                command + (["--loaded", loaded] if loaded else []),
                pass_fds=fds,
                stderr=subprocess.PIPE,
                text=True,
            )
        started.append(Process(process, Client(ours)))
        return started[-1]

    yield start
    for engine in started:
        engine.client.connection.close()
        if engine.process.stderr is not None and not engine.process.stderr.closed:
            engine.wait()


def small(folder: Path, **settings: Any) -> dict[str, Any]:
    return {"model": str(folder), "max_model_len": 256, "num_threads": 1, "dtype": "float32", **settings}


def test_serves_and_ends_with_its_client(
    start: Callable[..., Process], llama_folder: Callable[..., Path]
) -> None:
    """Ready, greedy ids equal transformers', and exit status 0 when the client goes."""
    folder = llama_folder()
    engine = start(small(folder))
    kind, payload = engine.client.read_frame()
    assert kind == wire.READY
    ready = wire.decode_ready(payload)
    assert (ready["model"], ready["vocab_size"], ready["max_model_len"]) == (str(folder), VOCAB_SIZE, 256)
    engine.client.add(1, [3, 4, 5], temperature=0, max_tokens=24, ignore_eos=True)
    [answer] = engine.client.finish(1)
    check_greedy(folder, (3, 4, 5), answer.ids, 24, "engine process")
    engine.client.connection.close()
    status, log = engine.wait()
    assert status == 0
    assert "memory: weights " in log
    assert "the client is gone" in log


def test_interrupt_is_left_to_the_server(
    start: Callable[..., Process], llama_folder: Callable[..., Path]
) -> None:
    """Control-C goes to the whole process group; the engine waits for the server to finish its requests."""
    engine = start(small(llama_folder()))
    engine.client.read_frame()
    engine.process.send_signal(signal.SIGINT)
    engine.client.add(1, [3], max_tokens=3, ignore_eos=True)
    assert len(engine.client.finish(1)[0].ids) == 3


def test_malformed_frame_ends_the_process(
    start: Callable[..., Process], llama_folder: Callable[..., Path]
) -> None:
    """Exit status 1 and a message that says what was wrong."""
    engine = start(small(llama_folder()))
    engine.client.read_frame()
    engine.client.send(wire.frame(wire.REQUESTS, b"", version=9))
    status, log = engine.wait()
    assert status == 1
    assert "the other side speaks version 9" in log


def test_a_second_engine_serves_what_the_first_has_loaded(
    start: Callable[..., Process], llama_folder: Callable[..., Path], tmp_path: Path
) -> None:
    """Given what the first said, the second takes the folder of the load whatever the setting means by now,
    and refuses to start where a file that decides the answers has changed, by its name."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder(), folder)
    link = tmp_path / "current"
    link.symlink_to(folder)

    def ready_of(engine: Process) -> dict[str, Any]:
        kind, payload = engine.client.read_frame()
        assert kind == wire.READY
        return wire.decode_ready(payload)

    first = ready_of(start(small(link)))
    loaded = str(first["loaded"])
    link.unlink()
    link.symlink_to(tmp_path)  # now it is no model at all
    second = ready_of(start(small(link), loaded=loaded))
    assert first["vocabulary"] == second["vocabulary"]
    assert str(first["vocabulary"]).endswith(" current")

    def refusal() -> str:
        return start_error(tmp_path, small(link), loaded)

    for name in ("tokenizer.json", "config.json"):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content + b" ")
        assert f"model: got other files in {folder} than when it was loaded ({name})" in refusal()
        (folder / name).write_bytes(content)
    (folder / "generation_config.json").unlink(missing_ok=True)
    (folder / "generation_config.json").write_text("{}")
    assert "(generation_config.json)" in refusal()
    shutil.rmtree(folder)
    assert f"model: got no folder {folder}, which was there when the model was loaded" in refusal()


def test_weights_that_have_changed(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """Other weights of the same size are noticed; the same in a new file are not."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder(), folder)
    loaded = LoadedFolder.from_text(LoadedFolder.of(folder).to_text())
    [weights] = folder.glob("*.safetensors")
    content = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(content)
    loaded.check()
    half = len(content) // 2
    weights.write_bytes(content[:half] + bytes(256 - byte - 1 for byte in content[half:]))
    with pytest.raises(ModelError, match=r"\(\*\.safetensors\)"):
        loaded.check()


@pytest.mark.parametrize("name", ["hf_quant_config.json", "quantize_config.json", "quant_config.json"])
def test_a_description_of_quantisation_that_has_changed(
    llama_folder: Callable[..., Path], tmp_path: Path, name: str
) -> None:
    """A description that is new or gone is noticed: weights mean other numbers then."""
    folder = tmp_path / "model"
    shutil.copytree(llama_folder(), folder)
    loaded = LoadedFolder.from_text(LoadedFolder.of(folder).to_text())
    loaded.check()
    (folder / name).write_text("{}")
    with pytest.raises(ModelError, match=rf"\({re.escape(name)}\)"):
        loaded.check()


def test_a_tokenizer_folder_that_has_changed(llama_folder: Callable[..., Path], tmp_path: Path) -> None:
    """A tokenizer with a folder of its own: that folder's files count, and not the model's."""
    model, tokenizer = tmp_path / "model", tmp_path / "tokenizer"
    shutil.copytree(llama_folder(), model)
    shutil.copytree(llama_folder(), tokenizer)
    loaded = LoadedFolder.from_text(LoadedFolder.of(model, tokenizer).to_text())
    (model / "tokenizer.json").unlink()
    (tokenizer / "config.json").unlink()
    loaded.check()
    (tokenizer / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=rf"in {model} and {tokenizer} than .*\(tokenizer\.json\)"):
        loaded.check()
    shutil.rmtree(tokenizer)
    with pytest.raises(ModelError, match=f"^tokenizer: got no folder {tokenizer}, "):
        loaded.check()


def broken_copy(folder: Path, target: Path, change: Callable[[Path], None]) -> Path:
    """The model with one thing changed."""
    target.mkdir()
    for file in folder.iterdir():
        (target / file.name).write_bytes(file.read_bytes())
    change(target)
    return target


def edit_config(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(config | values))

    return change


def cut_weights(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])


MODEL_ERRORS: dict[str, tuple[Callable[[Path], None], list[str]]] = {
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        ["no weights", "model.safetensors"],
    ),
    "no config": (lambda folder: (folder / "config.json").unlink(), ["config.json"]),
    "no tokenizer": (lambda folder: (folder / "tokenizer.json").unlink(), ["tokenizer.json"]),
    "damaged weights": (cut_weights, ["model.safetensors", "truncated"]),
    "architecture": (
        edit_config(architectures=["MambaForCausalLM"]),
        ["config.json", "architectures", "MambaForCausalLM", "LlamaForCausalLM"],
    ),
    "wrong shape": (edit_config(intermediate_size=128), ["mlp.down_proj.weight", "[64, 96]", "[64, 128]"]),
    "missing tensors": (edit_config(num_hidden_layers=4), ["missing", "model.layers.3."]),
    "extra tensors": (edit_config(num_hidden_layers=2), ["does not have", "model.layers.2."]),
}


@pytest.mark.parametrize("name", MODEL_ERRORS)
def test_model_errors(llama_folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """A model that cannot be used: one line that names the file, to the client; exit status 1."""
    change, parts = MODEL_ERRORS[name]
    check_start_error(tmp_path, small(broken_copy(llama_folder(), tmp_path / "model", change)), parts)


SETTING_ERRORS: dict[str, tuple[dict[str, Any] | str, list[str]]] = {
    "unknown key": ({"max_num_seq": 4}, ["model.json", "max_num_seq", "max_num_seqs"]),
    "wrong type": ({"max_num_seqs": 4.5}, ["model.json", "max_num_seqs", "4.5", "an integer"]),
    "not JSON": ("{", ["model.json", "malformed JSON"]),
    "too long": ({"max_model_len": 4096}, ["model.json", "max_model_len", "4096", "at most 512"]),
    "small pool": ({"num_gpu_blocks_override": 3}, ["num_gpu_blocks_override", "3", "at least 16"]),
    "small cache": (
        {"kv_cache_memory_bytes": 1000},
        ["kv_cache_memory_bytes", "1000", "at least", "max_model_len"],
    ),
    "huge cache": ({"kv_cache_memory_bytes": 1 << 50}, ["kv_cache_memory_bytes", "at most", "free"]),
    "small step": (
        {"enable_chunked_prefill": False, "max_num_batched_tokens": 100},
        ["model.json", "max_num_batched_tokens", "100"],
    ),
    "no such model": ({"model": "/nowhere"}, ["model", "/nowhere"]),
}


@pytest.mark.parametrize("name", SETTING_ERRORS)
def test_setting_errors(llama_folder: Callable[..., Path], tmp_path: Path, name: str) -> None:
    """A setting that cannot be used: one line that names it, what was given and what is allowed; exit status
    1."""
    settings, parts = SETTING_ERRORS[name]
    given = settings if isinstance(settings, str) else small(llama_folder()) | settings
    check_start_error(tmp_path, given, parts)


def start_error(tmp_path: Path, settings: dict[str, Any] | str, loaded: str | None = None) -> str:
    """What the client hears from what the process runs, without a process."""
    file = tmp_path / "model.json"
    file.write_text(settings if isinstance(settings, str) else json.dumps(settings))
    ours, theirs = socket.socketpair()
    with ours, theirs:
        assert run(file, theirs.fileno(), loaded=loaded) == 1
        kind, payload = Client(ours).read_frame()
    assert kind == wire.START_ERROR
    return payload.decode()


def check_start_error(tmp_path: Path, settings: dict[str, Any] | str, parts: list[str]) -> None:
    message = start_error(tmp_path, settings)
    for part in parts:
        assert part in message
    assert "\n" not in message


def test_start_error_of_the_process(start: Callable[..., Process]) -> None:
    """The client and the log get the same line, without a stack; exit status 1."""
    engine = start({"model": "/nowhere"})
    kind, payload = engine.client.read_frame()
    status, log = engine.wait()
    assert (kind, status) == (wire.START_ERROR, 1)
    assert payload.decode() in log
    assert "Traceback" not in log


def test_stops_at_the_models_eos(start: Callable[..., Process], llama_folder: Callable[..., Path]) -> None:
    """The end-of-sequence id comes from the checkpoint; with min_tokens it is not sampled before."""
    engine = start(small(llama_folder()))
    engine.client.read_frame()
    for i in range(40):
        engine.client.add(i, [i], temperature=2.0, seed=i, max_tokens=250, min_tokens=5)
    answers = engine.client.finish(*range(40))
    stopped = [answer for answer in answers if answer.finish_reason == "stop"]
    assert stopped, "40 x 250 samples at temperature 2 of 300 tokens"
    for answer in stopped:
        assert answer.ids[-1] == EOS
        assert EOS not in answer.ids[:-1]
        assert len(answer.ids) > 5
