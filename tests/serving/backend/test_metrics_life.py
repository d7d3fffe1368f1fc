"""Series over the life of models and engines, with the fake engine."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from backend_server import Repository, Server, StartServer, wait_for
from fake_engine import CRASH_ID, ERROR_ID

TTFT = "vllm:time_to_first_token_seconds"


def names(server: Server) -> set[str]:
    """What the label model_name of our series says."""
    return {dict(labels)["model_name"] for _, labels in server.page().ours()}


def add_model(repository: Repository, folder: str, served_model_name: str) -> None:
    """Another generation model, with an engine of its own."""
    shutil.copytree(repository.path / "generation", repository.path / folder)
    repository.edit(folder, 'name: "generation"', f'name: "{folder}"')
    repository.edit(folder, 'string_value: "ensemble"', f'string_value: "{served_model_name}"')


def control(server: Server, action: str, model: str) -> None:
    status, text = server.request("POST", f"/v2/repository/models/{model}/{action}", {})
    assert status == 200, text


def test_an_engine_that_is_started_again(start_server: StartServer, tmp_path: Path) -> None:
    """Counters and histograms go on where the dead engine's ended; the gauges are those of the next."""
    server = start_server(Repository(tmp_path / "models")).wait_ready()
    server.generate("generation", input_ids=[5], max_tokens=25)
    server.generate_error("generation", input_ids=[CRASH_ID], max_tokens=25)
    wait_for(lambda: server.metrics()["quire:engine_restarts_total"] == 1)
    wait_for(lambda: server.metrics()["quire:engine_up"] == 1)
    generated = server.metrics()["vllm:generation_tokens_total"]
    assert 25 <= generated <= 25 + 2
    server.generate("generation", input_ids=[5], max_tokens=7)
    page = server.page()
    assert page.value("vllm:generation_tokens_total") == generated + 7
    assert (page.value(f"{TTFT}_count"), page.value(f"{TTFT}_sum")) == (2, 1.0)
    assert page.value(f"{TTFT}_bucket", le="0.5") == 2
    assert page.value(f"{TTFT}_bucket", le="0.25") == 0
    assert page.value("quire:requests_refused_total", reason="unavailable") == 1
    assert page.value("quire:kv_blocks_total") == 512
    assert page.value("vllm:cache_config_info", block_size="16") == 1


def test_two_models(start_server: StartServer, tmp_path: Path) -> None:
    """What one model does is on its own series alone, and those of an unloaded model are gone."""
    repository = Repository(tmp_path / "models")
    add_model(repository, "other", "llama")
    server = start_server(
        repository, "--model-control-mode=explicit", "--load-model=generation", "--load-model=other"
    ).wait_ready()
    server.generate("generation", input_ids=[5], max_tokens=3)
    server.generate("other", input_ids=[5], max_tokens=11)
    page = server.page()
    tokens = "vllm:generation_tokens_total"
    assert page.value(tokens, model_name="ensemble", model="ensemble") == 3
    assert page.value(tokens, model_name="llama", model="llama") == 11
    assert {page.value(f"{TTFT}_count", model_name=name) for name in ("ensemble", "llama")} == {1}
    control(server, "unload", "other")
    wait_for(lambda: names(server) == {"ensemble"})
    server.generate("generation", input_ids=[5], max_tokens=3)
    assert server.page().value(tokens, model_name="ensemble") == 6
    control(server, "load", "other")
    assert server.page().value(tokens, model_name="llama") == 0


def test_models_that_say_the_same_name(start_server: StartServer, tmp_path: Path) -> None:
    """The label namespace, the folder, keeps them apart."""
    repository = Repository(tmp_path / "models")
    for folder in ("second", "third"):
        add_model(repository, folder, "ensemble")
    server = start_server(repository).wait_ready()
    for number, folder in enumerate(("generation", "second", "third"), 1):
        server.generate(folder, input_ids=[5], max_tokens=number)
    series = [k for k in server.page().ours() if k[0] == "vllm:generation_tokens_total"]
    assert sorted(server.page().ours()[key] for key in series) == [1, 2, 3]
    assert len({dict(labels).get("namespace") for _, labels in series}) == 3


@pytest.mark.parametrize("switch", ["disable_log_stats", "REPORT_CUSTOM_METRICS"])
def test_switched_off(start_server: StartServer, tmp_path: Path, switch: str) -> None:
    """By either switch of Triton's vLLM backend: the model answers, and has no series."""
    settings: dict[str, Any] = {"disable_log_stats": True} if switch == "disable_log_stats" else {}
    repository = Repository(tmp_path / "models", **settings)
    if switch == "REPORT_CUSTOM_METRICS":
        old = 'parameters { key: "role"'
        new = 'parameters { key: "REPORT_CUSTOM_METRICS" value { string_value: "no" } }\n'
        repository.edit("generation", old, new + old)
    server = start_server(repository).wait_ready()
    assert server.generate("ensemble", input_ids=[5], max_tokens=2)["text_output"] == "t5 t5"
    server.generate_error("generation", input_ids=[-1])
    assert server.page().ours() == {}


def test_what_is_refused(server: Server) -> None:
    """Once for each request: by the backend, and by the engine."""
    before = server.page()
    server.generate_error("generation", input_ids=[-1])
    server.generate_error("generation", input_ids=[5], max_tokens=-1)
    server.generate_error("ensemble", input_ids=[ERROR_ID], n=3)
    after = server.page()
    refused = "quire:requests_refused_total"
    assert after.value(refused, reason="invalid") - before.value(refused, reason="invalid") == 3
    assert after.value(refused) - before.value(refused) == 3
    assert after.value("quire:requests_cancelled_total") == before.value("quire:requests_cancelled_total")
