"""Role unary with a tokenizer model of somebody's own: what reaches that one and what of it reaches the
engine, errors, cancellation in every stage, models that are not there."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc as grpc
from backend_server import FAKE_ENGINE_PATH, ROOT, Repository, wait_for
from fake_engine import STALL_ID
from quire.triton.server import TritonServer

STEP_SECONDS = 0.1
UNARY = "ensemble_unary"
TOKENIZER = "word_tokenizer"


class WordRepository(Repository):
    """The fake engine behind ensemble_unary, with a tokenizer for which a word is a number."""

    def __init__(self, path: Path, **engine: Any) -> None:
        super().__init__(path, **engine)
        shutil.rmtree(path / "ensemble")
        shutil.copytree(ROOT / "model_repository" / UNARY, path / UNARY)
        shutil.copytree(Path(__file__).parent / TOKENIZER, path / TOKENIZER)
        self.words_path = path.parent / "words.log"
        self.edit(UNARY, 'string_value: "tokenizer"', f'string_value: "{TOKENIZER}"')
        self.edit(TOKENIZER, 'string_value: ""', f'string_value: "{self.words_path}"')

    def tokenized(self, line: str) -> bool:
        """Whether the tokenizer wrote this line."""
        return self.words_path.exists() and line in self.words_path.read_text().splitlines()

    def serve(self, models: list[str] | None = None) -> TritonServer:
        environment = {"PYTHONPATH": FAKE_ENGINE_PATH}
        return TritonServer(self.path, models=models, env=environment)


class Client(grpc.InferenceServerClient):  # type: ignore[misc]
    """Unary gRPC to ensemble_unary."""

    def __init__(self, server: TritonServer) -> None:
        super().__init__(server.grpc_url)

    def ask(self, *texts: str, request_id: str = "", **parameters: Any) -> list[str]:
        result = self.infer(UNARY, self.inputs(texts), request_id=request_id, parameters=parameters)
        return [text.decode() for text in result.as_numpy("text_output")]

    def error(self, *texts: str, **parameters: Any) -> tuple[str, str]:
        """Status and message of a request that fails."""
        with pytest.raises(grpc.InferenceServerException) as error:
            self.ask(*texts, **parameters)
        return str(error.value.status()).removeprefix("StatusCode."), str(error.value.message())

    def answers(self, *texts: str, **parameters: Any) -> bool:
        try:
            self.ask(*texts, **parameters)
        except grpc.InferenceServerException:
            return False
        return True

    def begin(self, *texts: str, **parameters: Any) -> Any:
        """A call that can be cancelled; nobody reads its answer."""
        return self.async_infer(
            UNARY, self.inputs(texts), callback=lambda result, error: None, parameters=parameters
        )

    @staticmethod
    def inputs(texts: tuple[str, ...]) -> list[grpc.InferInput]:
        tensor = grpc.InferInput("text_input", [len(texts)], "BYTES")
        return [tensor.set_data_from_numpy(np.array([text.encode() for text in texts], np.object_))]


@pytest.fixture(scope="module")
def repository(tmp_path_factory: pytest.TempPathFactory) -> WordRepository:
    return WordRepository(tmp_path_factory.mktemp("words") / "models", step_seconds=STEP_SECONDS)


@pytest.fixture(scope="module")
def server(repository: WordRepository) -> Iterator[TritonServer]:
    with repository.serve() as running:
        yield running


@pytest.fixture
def client(server: TritonServer) -> Iterator[Client]:
    with Client(server) as client:
        yield client


def num_inferences(client: Client, model: str) -> int:
    (statistics,) = client.get_inference_statistics(model).model_stats
    return int(statistics.inference_count)


def num_pending(server: TritonServer, model: str) -> int:
    """Requests in the model's queue."""
    pattern = rf'^nv_inference_pending_request_count\{{model="{model}",version="1"\}} (\d+)$'
    return sum(map(int, re.findall(pattern, server.metrics(), re.MULTILINE)))


def test_what_passes_through(client: Client) -> None:
    """Inputs, id and parameters reach the tokenizer; of its outputs those count that generation_unary has.
    The parameters, which this tokenizer does not read, are then generation's. Each model counts its own."""
    before = [num_inferences(client, model) for model in (UNARY, TOKENIZER)]
    assert client.ask("7 8", max_tokens=3) == ["t7 t8 t7"]
    assert client.ask("7 8", "9", max_tokens=2, n=2) == ["t7 t8", "t8 t7", "t9 t9", "t9 t9"]
    assert client.ask("echo 5", max_tokens=1, request_id="abc") == ["abc: t5"]
    # Counted behind the response, as every backend of Triton does.
    wait_for(
        lambda: [num_inferences(client, model) for model in (UNARY, TOKENIZER)] == [n + 3 for n in before]
    )


def test_only_what_is_asked_for(client: Client) -> None:
    """Outputs that the request does not name are not sent."""
    parameters = {"max_tokens": 1, "return_finish_reason": True}
    for name in ("text_output", "finish_reason"):
        outputs = [grpc.InferRequestedOutput(name)]
        result = client.infer(UNARY, client.inputs(("7",)), outputs=outputs, parameters=parameters)
        assert [output.name for output in result.get_response().outputs] == [name]


def test_errors(client: Client) -> None:
    """Those of the tokenizer keep status and message, those of generation too; the next request works."""
    assert client.error("refuse") == ("UNAVAILABLE", "no words today")
    assert client.error("7", temperature=5) == (
        "INVALID_ARGUMENT",
        "temperature: got 5; allowed: a number in [0, 2]",
    )
    assert client.error("901") == (
        "INVALID_ARGUMENT",
        "input_ids: got id 901; allowed: ids that the fake engine likes",
    )
    assert client.ask("7", max_tokens=1) == ["t7"]


def test_cancelled_while_tokenizing(client: Client, repository: WordRepository) -> None:
    """The tokenizer is told, and the engine never hears of the request."""
    call = client.begin("wait 11", max_tokens=1000)
    wait_for(lambda: repository.tokenized("wait 11: begins"))
    call.cancel()
    wait_for(lambda: repository.tokenized("wait 11: cancelled"))
    assert client.ask("12", max_tokens=1) == ["t12"]
    assert not repository.events("add", prompt=[11])


def test_cancelled_in_the_tokenizer_s_queue(
    server: TritonServer, client: Client, repository: WordRepository
) -> None:
    """Its turn comes, the engine's does not. Who stands in front and behind is answered."""
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(client.ask, "sleep 13", max_tokens=1)
        wait_for(lambda: repository.tokenized("sleep 13: begins"))
        call = client.begin("wait 14", max_tokens=1000)
        wait_for(lambda: num_pending(server, TOKENIZER) == 1 or repository.tokenized("wait 14: begins"))
        call.cancel()
        assert client.ask("15", max_tokens=1) == ["t15"]
        assert first.result() == ["t13"]
    assert repository.tokenized("wait 14: cancelled")
    assert not repository.events("add", prompt=[14])


def test_client_timeout(client: Client, repository: WordRepository) -> None:
    """tritonclient's own timeout is a cancellation."""
    with pytest.raises(grpc.InferenceServerException, match="Deadline Exceeded"):
        client.infer(
            UNARY, client.inputs((f"16 {STALL_ID}",)), client_timeout=3, parameters={"max_tokens": 100}
        )
    (request,) = repository.events("add", prompt=[16, STALL_ID])
    wait_for(lambda: repository.events("cancel", request_id=request["request_id"]))


@pytest.mark.parametrize("texts", [("20",), ("21", "21")])
@pytest.mark.parametrize("n", [1, 2])
def test_cancelled_while_generating(
    client: Client, repository: WordRepository, texts: tuple[str, ...], n: int
) -> None:
    """Every sequence of every row ends long before its answer would; a request beside them is answered as
    ever."""
    prompt = [int(texts[0]), n]
    with ThreadPoolExecutor(1) as pool:
        other = pool.submit(client.ask, "30 31", max_tokens=12)
        call = client.begin(*(f"{text} {n}" for text in texts), max_tokens=1000, n=n)
        wait_for(lambda: len(repository.events("add", prompt=prompt)) == len(texts))
        time.sleep(3 * STEP_SECONDS)
        call.cancel()
        assert other.result() == [" ".join(["t30 t31"] * 6)]
    for request in repository.events("add", prompt=prompt):
        ends = repository.events("cancel", request_id=request["request_id"])
        assert len(ends) == n
        assert all(end["num_out"] < 100 for end in ends)


class TwoUnderWay:
    """A request that is being generated for, of 60 steps, and one that is being tokenized."""

    def __init__(self, client: Client, repository: WordRepository, pool: ThreadPoolExecutor) -> None:
        self.generated = pool.submit(client.ask, "7", max_tokens=60)
        wait_for(lambda: repository.events("add", prompt=[7]))
        self.tokenized = pool.submit(client.ask, "sleep 8", max_tokens=3)
        wait_for(lambda: repository.tokenized("sleep 8: begins"))

    def check(self) -> None:
        """Both are answered."""
        assert self.tokenized.result() == ["t8 t8 t8"]
        assert self.generated.result() == [" ".join(["t7"] * 60)]


def test_models_that_are_not_loaded(tmp_path: Path) -> None:
    """Each is named; loaded later it serves, and unloaded again it does not."""
    repository = WordRepository(tmp_path / "models")
    with repository.serve([UNARY]) as server, Client(server) as client:
        status, message = client.error("7", max_tokens=1)
        assert status == "UNAVAILABLE"
        assert message.startswith("generation_model: no model 'generation' of backend quire")
        server.load_model("generation")
        for _ in range(2):
            status, message = client.error("7", max_tokens=1)
            assert status == "UNAVAILABLE"
            assert message.startswith(f"tokenizer_model: no model '{TOKENIZER}' is loaded")
            server.load_model(TOKENIZER)
            assert client.ask("7", max_tokens=1) == ["t7"]
            server.unload_model(TOKENIZER)


def test_unload_while_requests_run(tmp_path: Path) -> None:
    """What is being tokenized and what is being generated is answered before the models are gone."""
    repository = WordRepository(tmp_path / "models", step_seconds=0.05)
    with repository.serve([UNARY, TOKENIZER, "generation"]) as server, Client(server) as client:
        with ThreadPoolExecutor(2) as pool:
            under_way = TwoUnderWay(client, repository, pool)
            server.unload_model(TOKENIZER)
            server.unload_model(UNARY)
            under_way.check()
        assert client.error("7")[0] in ("NOT_FOUND", "UNAVAILABLE")
        server.load_model(UNARY)
        server.load_model(TOKENIZER)
        assert client.ask("7", max_tokens=1) == ["t7"]


def test_generation_is_unloaded_while_requests_run(tmp_path: Path) -> None:
    """It goes when it has answered what was under way, as a step of an ensemble would. New requests are
    refused."""
    repository = WordRepository(tmp_path / "models", step_seconds=0.05)
    with repository.serve([UNARY, TOKENIZER, "generation"]) as server, Client(server) as client:
        with ThreadPoolExecutor(2) as pool:
            under_way = TwoUnderWay(client, repository, pool)
            server.unload_model("generation")
            # Triton tells our backend a moment after it has told us.
            wait_for(lambda: not client.answers("9", max_tokens=1))
            status, message = client.error("9", max_tokens=1)
            assert not under_way.generated.done()
            under_way.check()
        assert status == "UNAVAILABLE"
        assert "generation_model: no model 'generation'" in message
        wait_for(lambda: repository.events("end"))


def test_a_server_that_stops_answers_first(tmp_path: Path) -> None:
    """What is being tokenized and generated has until the exit timeout."""
    repository = WordRepository(tmp_path / "models", step_seconds=0.05)
    with repository.serve() as server, Client(server) as client, ThreadPoolExecutor(3) as pool:
        under_way = TwoUnderWay(client, repository, pool)
        stopped = pool.submit(server.stop)
        under_way.check()
        stopped.result()


def test_a_server_that_stops_does_not_wait_for_ever(tmp_path: Path) -> None:
    """When the exit timeout is over, open requests get an error, and the server ends."""
    repository = WordRepository(tmp_path / "models")
    server = TritonServer(repository.path, env={"PYTHONPATH": FAKE_ENGINE_PATH}, exit_timeout=1)
    with server, Client(server) as client, ThreadPoolExecutor(1) as pool:
        stalled = pool.submit(client.error, f"1 {STALL_ID}", max_tokens=10)
        wait_for(lambda: repository.events("add", prompt=[1, STALL_ID]))
        server.stop()
        assert stalled.result() == ("UNAVAILABLE", "the server ends")  # which a killed server could not say
    wait_for(lambda: repository.events("end"))
