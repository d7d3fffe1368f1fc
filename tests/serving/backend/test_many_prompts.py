"""One request with many prompts does not keep the engine to itself."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import quire
import tritonclient.grpc as grpc
from backend_server import ROOT, Repository, Server, StartServer, grpc_inputs, wait_for

UNARY = "generation_unary"
MAX_NUM_SEQS = 8
MAX_ROWS = MAX_NUM_SEQS - 1  # one place is for others


@pytest.fixture
def repository(tmp_path: Path) -> Repository:
    made = Repository(tmp_path / "models", step_seconds=0.01, max_num_seqs=MAX_NUM_SEQS)
    shutil.copytree(ROOT / "model_repository" / UNARY, made.path / UNARY)
    return made


def ask(server: Server, ids: list[int], **fields: int) -> list[str]:
    """A prompt of one id for each of `ids`."""
    inputs = grpc_inputs({"input_ids": ids, "prompt_lengths": [1] * len(ids)})
    with grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client:
        return [
            text.decode() for text in client.infer(UNARY, inputs, parameters=fields).as_numpy("text_output")
        ]


def places(repository: Repository) -> list[int]:
    """How many sequences of prompts the engine had after each of its events."""
    prompts: dict[int, int] = {}
    counts = []
    for event in repository.events():
        if event["event"] == "add" and event["prompt"] != [999]:
            prompts[event["request_id"]] = event["n"]
        elif event["event"] in ("finish", "cancel") and event["request_id"] in prompts:
            prompts[event["request_id"]] -= 1
        counts.append(sum(prompts.values()))
    return counts


@pytest.mark.parametrize("n", [1, 3])
def test_prompts_take_turns(start_server: StartServer, repository: Repository, n: int) -> None:
    """Only so many of all prompts together are with the engine that others find a place; two requests take
    turns, and all prompts are answered in their order."""
    server = start_server(repository).wait_ready()
    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(ask, server, [*range(1, 41)], max_tokens=10, n=n)
        wait_for(lambda: repository.events("add", prompt=[1]))
        second = pool.submit(ask, server, [*range(501, 506)], max_tokens=10, n=n)
        wait_for(lambda: repository.events("add", prompt=[501]))
        other = server.generate("generation", input_ids=[999], max_tokens=1)
        assert other["output_ids"] == 999
        assert not first.done()
        texts = [" ".join([f"t{i}"] * 10) for i in range(1, 41) for _ in range(n)]
        assert first.result() == texts
        assert len(second.result()) == 5 * n
    counts = places(repository)
    assert 0 < max(counts) <= MAX_ROWS
    prompts = [event["prompt"][0] for event in repository.events("add")]
    assert prompts.index(505) < prompts.index(30), "the second request did not wait for all of the first"
    assert prompts.index(999) < prompts.index(40)


def test_prompts_of_a_request_that_failed_do_not_go_to_the_engine(
    start_server: StartServer, repository: Repository
) -> None:
    """Once a prompt's error has ended the request, the places of its prompts are free for others."""
    server = start_server(repository).wait_ready()
    with pytest.raises(grpc.InferenceServerException, match="ids that the fake engine likes"):
        ask(server, [901, *range(1, 101)], max_tokens=2000)
    assert ask(server, [*range(201, 221)], max_tokens=2)[0] == "t201 t201"
    assert len(repository.events("add")) < 101


@pytest.mark.parametrize(
    ("prompts", "n", "given"),
    [(4097, 1, "4097 prompts with n 1"), (33, 128, "33 prompts with n 128")],
)
def test_more_prompts_than_a_request_may_have(
    start_server: StartServer, repository: Repository, prompts: int, n: int, given: str
) -> None:
    """Refused with the limit, and the engine never hears of it."""
    server = start_server(repository).wait_ready()
    with pytest.raises(grpc.InferenceServerException) as error:
        ask(server, [1] * prompts, n=n, max_tokens=1)
    assert f"prompt_lengths: got {given}; allowed: at most 4096 prompts x n" in str(error.value)
    assert not repository.events("add")


def test_a_request_of_too_many_bytes(start_server: StartServer, repository: Repository) -> None:
    """Refused by the tensor that has them; one whose prompts or sequences would multiply its bytes, too."""
    server = start_server(repository).wait_ready()

    def error_of(ids: list[int], prompt_lengths: list[int], request: bytes) -> str:
        inputs = grpc_inputs({"input_ids": ids, "prompt_lengths": prompt_lengths, "request": request})
        with (
            grpc.InferenceServerClient(f"127.0.0.1:{server.grpc_port}") as client,
            pytest.raises(grpc.InferenceServerException) as error,
        ):
            client.infer(UNARY, inputs)
        return str(error.value.message())

    message = error_of([1], [1], bytes(128 << 20))
    assert message.startswith("request: got 134217728 bytes; allowed: at most 134217728 bytes in all")
    request = quire.encode_request(max_tokens=1, n=128, prompt_text="a" * (2 << 20))
    message = error_of([1], [1], request)
    assert message.startswith(
        "prompt_text: got 2097152 bytes with n 128; allowed: at most 134217728 bytes x n"
    )
    request = quire.encode_request(max_tokens=1, allowed_token_ids=[0] * 10_000)
    message = error_of([1] * 4096, [1] * 4096, request)
    assert message.startswith(
        "prompt_lengths: got 4096 prompts with 40000 bytes of lists each; allowed: at most 13"
    )
    assert not repository.events("add")
