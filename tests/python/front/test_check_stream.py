"""`quire check-stream` finds each defect of a broken server by its name, and none in a good one."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from quire.check_stream import CHECKS, CheckStreamError, Lab, Result, connect, run_checks
from quire.check_stream.lab import difference
from quire.cli import app
from stream_stub import Stub, running
from typer.testing import CliRunner

PROMPTS = ("one two", "drei vier", "cinq")

# defect of the stub -> the check that must name it
DEFECTS = {
    "drops spaces": "spaces",
    "splits characters": "characters",
    "finish twice": "finish-reason",
    "loses the last chunk": "joined-text",
    "500 for a bad parameter": "bad-parameter",
    "does not name the parameter": "bad-parameter",
    "empty chunks": "empty-chunks",
    "cumulative counts": "usage",
    "stop inside chunks only": "stop-across-chunks",
    "ignores max_tokens": "max-tokens",
    "all at the end": "chunks-in-time",
    "keeps the stop string": "stop-cut",
    "never keeps it": "stop-included",
    "loses held text": "stop-partial",
    "always says stop": "finish-value",
    "ends with a bad neighbour": "bad-parameter-beside",
    "mixes streams up": "concurrent",
    "ends beside a large body": "beside-large-body",
    "changes its answers": "unchanged-after",
}
# One of each kind, for make test-fast: a defect takes a second.
QUICK = {
    "drops spaces",
    "finish twice",
    "500 for a bad parameter",
    "keeps the stop string",
    "all at the end",
    "ends with a bad neighbour",
    "changes its answers",
}
# What may fail besides.
_TEXT = {
    "joined-text",
    "concurrent",
    "beside-large-body",
    "stop-cut",
    "stop-across-chunks",
    "stop-included",
}
_ALSO = {
    "drops spaces": _TEXT | {"stop-partial", "empty-chunks"},
    "splits characters": _TEXT | {"stop-partial", "usage", "max-tokens"},
    "loses the last chunk": _TEXT | {"stop-partial", "usage", "max-tokens", "finish-reason", "finish-value"},
    "stop inside chunks only": {"stop-cut", "stop-included", "finish-value"},
    "ignores max_tokens": {"finish-value"},
    "cumulative counts": {"max-tokens"},
    "finish twice": {"finish-value"},
    "mixes streams up": {"beside-large-body"},
    "keeps the stop string": {"stop-across-chunks"},
}


def check(stub: Stub, **options: str) -> dict[str, Result]:
    adapter = connect(stub.url, timeout=20, **options)  # type: ignore[arg-type]
    return {result.check.name: result for result in run_checks(Lab(adapter, PROMPTS, concurrency=8))}


def failures(results: dict[str, Result]) -> dict[str, str]:
    return {name: result.outcome.seen for name, result in results.items() if result.outcome.status == "fail"}


def test_a_good_triton_server_passes() -> None:
    """Every check that applies passes, and says what it looked at."""
    with running(Stub()) as stub:
        results = check(stub)
    assert {} == failures(results)
    skipped = {name for name, result in results.items() if result.outcome.status == "n/a"}
    assert skipped <= {"done-marker", "disconnect"}
    assert [item.name for item in CHECKS] == list(results)


@pytest.mark.parametrize(
    "defect",
    [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in DEFECTS],
)
def test_a_defect_is_found_by_its_check(defect: str) -> None:
    """The named check fails with what was sent, seen and expected; unrelated checks do not."""
    with running(Stub(defect)) as stub:
        results = check(stub)
    name = DEFECTS[defect]
    failed = failures(results)
    assert name in failed
    outcome = results[name].outcome
    assert outcome.sent
    assert outcome.seen
    assert outcome.expected
    assert set(failed) <= {name} | _ALSO.get(defect, set())


def test_a_model_with_a_tensor_for_each_field_is_asked_by_them() -> None:
    """TensorRT-LLM's ensemble: stop_words, no seed, no finish reason; what has no place is not applicable."""
    with running(Stub(typed=True)) as stub:
        results = check(stub)
    assert {} == failures(results)
    skipped = {name for name, result in results.items() if result.outcome.status == "n/a"}
    assert {"finish-reason", "finish-value", "usage", "stop-included", "done-marker"} <= skipped
    for name in (
        "joined-text",
        "stop-cut",
        "stop-across-chunks",
        "max-tokens",
        "bad-parameter",
        "concurrent",
    ):
        assert "pass" == results[name].outcome.status
    with running(Stub("drops spaces", typed=True)) as stub:
        assert "spaces" in failures(check(stub))


@pytest.mark.parametrize("api", [None, "openai", "openai-chat"])
def test_a_good_openai_server_passes(api: str | None) -> None:
    """Both endpoints; an extension that the server ignores is not applicable."""
    with running(Stub(triton=False)) as stub:
        results = check(stub, **({"api": api} if api else {}))
    assert {} == failures(results)
    assert "pass" == results["done-marker"].outcome.status
    assert "pass" == results["usage"].outcome.status
    assert "n/a" == results["stop-included"].outcome.status


@pytest.mark.parametrize(
    ("defect", "name"),
    [
        ("splits characters", "characters"),
        ("500 for a bad parameter", "bad-parameter"),
        ("no [DONE]", "done-marker"),
    ],
)
def test_a_defect_is_found_on_an_openai_server_too(defect: str, name: str) -> None:
    """The same checks judge every protocol."""
    with running(Stub(defect, triton=False)) as stub:
        results = check(stub)
    assert "fail" == results[name].outcome.status


@pytest.mark.parametrize(
    ("triton", "path", "api"),
    [
        (True, "", "triton-http"),
        (True, "/v2/models/stub/generate_stream", "triton-http"),
        (False, "", "openai"),
        (False, "/v1", "openai"),
        (False, "/v1/chat/completions", "openai-chat"),
    ],
)
def test_the_protocol_is_found_out(triton: bool, path: str, api: str) -> None:
    """From what the server answers, or from the endpoint in the URL."""
    with running(Stub(triton=triton)) as stub:
        adapter = connect(stub.url + path, timeout=20)
    assert (api, "stub") == (adapter.api, adapter.model)


def test_a_server_without_completions_is_asked_by_chat() -> None:
    """/v1/completions answers 404 there."""
    with running(Stub(triton=False, completions=False)) as stub:
        assert "openai-chat" == connect(stub.url, timeout=20).api


def test_what_cannot_be_checked_is_an_error_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody there, no such protocol, no such model, no gRPC client."""
    with pytest.raises(CheckStreamError, match=r"GET /v2: .*GET /v1/models: "):
        connect("http://127.0.0.1:9", timeout=2)
    with pytest.raises(CheckStreamError, match="triton-http, triton-grpc, openai"):
        connect("http://127.0.0.1:9", api="kserve")
    with pytest.raises(CheckStreamError, match="allowed: http://"):
        connect("ftp://host")
    with running(Stub()) as stub, pytest.raises(CheckStreamError, match="404"):
        connect(stub.url, model="other", timeout=20)
    monkeypatch.setitem(sys.modules, "tritonclient.grpc", None)
    with pytest.raises(CheckStreamError, match=r"tritonclient\[grpc\]"):
        connect("grpc://127.0.0.1:9")


def test_the_command_reports_and_its_status_says_what_it_found(tmp_path: Path) -> None:
    """0: nothing broken; 1: a check failed; 2: could not check. JSON on request."""
    prompts, out = tmp_path / "prompts.json", tmp_path / "out.json"
    prompts.write_text(json.dumps(PROMPTS))
    options = ["--prompt-file", str(prompts), "--json", str(out), "--concurrency", "4"]
    with running(Stub()) as stub:
        good = CliRunner().invoke(app, ["check-stream", stub.url, *options])
    assert 0 == good.exit_code
    assert "0 failed" in good.output
    prompts.write_text("\n".join(PROMPTS))
    with running(Stub("loses the last chunk")) as stub:
        bad = CliRunner().invoke(app, ["check-stream", stub.url, *options])
        document = json.loads(out.read_text())
        assert (stub.url, "triton-http", "stub") == tuple(document[key] for key in ("url", "api", "model"))
    assert 1 == bad.exit_code
    assert "missing at the end" in bad.output
    failed = [item for item in document["checks"] if item["status"] == "fail"]
    assert document["summary"]["fail"] == len(failed)
    assert {"name", "rule", "status", "sent", "seen", "expected", "seconds"} == set(failed[0])
    assert 2 == CliRunner().invoke(app, ["check-stream", "http://127.0.0.1:9"]).exit_code


@pytest.mark.parametrize("text", ["", "[]", "[1]", '{"a": "b"}'])
def test_a_bad_prompt_file_is_named(tmp_path: Path, text: str) -> None:
    """Nothing is sent then."""
    (tmp_path / "prompts").write_text(text)
    result = CliRunner().invoke(
        app, ["check-stream", "http://127.0.0.1:9", "--prompt-file", f"{tmp_path}/prompts"]
    )
    assert 2 == result.exit_code
    assert "--prompt-file" in result.output


@pytest.mark.parametrize(
    ("seen", "words"),
    [("abc", "1 characters are missing"), ("abcde", "1 characters too many"), ("axcd", "at character 1")],
)
def test_a_difference_is_told_in_words(seen: str, words: str) -> None:
    """Where two texts part."""
    assert words in difference("abcd", seen)


def test_the_documentation_names_every_check() -> None:
    """docs/check_stream.md has a row for each, in order, and for no other."""
    page = (Path(__file__).parents[3] / "docs" / "check_stream.md").read_text()
    rows = [
        line.split("`")[1]
        for line in page.splitlines()
        if line.startswith("| `") and not line.startswith("| `--")
    ]
    assert [item.name for item in CHECKS] == rows
