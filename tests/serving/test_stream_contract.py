"""Our own server under `quire check-stream`, by both of Triton's protocols."""

from __future__ import annotations

import pytest
from quire.check_stream import CheckStreamError, Lab, connect, run_checks
from quire.triton.server import TritonServer


@pytest.mark.parametrize(
    ("protocol", "load"),
    [("triton-http", {}), ("triton-grpc", {"concurrency": 4, "body_megabytes": 2})],
    ids=["triton-http", "triton-grpc"],
)
def test_our_own_server_keeps_the_stream_contract(
    server: TritonServer, protocol: str, load: dict[str, int]
) -> None:
    """Every check passes; only [DONE], which Triton has not, and timing may be not applicable."""
    url = server.http_url if protocol == "triton-http" else f"grpc://{server.grpc_url}"
    adapter = connect(url, timeout=60)
    assert (protocol, "ensemble") == (adapter.api, adapter.model)
    results = run_checks(Lab(adapter, **load))
    failed = {item.check.name: item.outcome for item in results if item.outcome.status == "fail"}
    assert {} == failed
    skipped = {item.check.name for item in results if item.outcome.status == "n/a"}
    assert skipped <= {"done-marker", "disconnect", "chunks-in-time", "bad-parameter-beside"}


def test_a_bare_address_that_speaks_grpc_is_found_out(server: TritonServer) -> None:
    """HOST:PORT without a scheme; with http:// the error says what to write."""
    with pytest.raises(CheckStreamError, match="grpc://HOST:PORT"):
        connect(f"http://{server.grpc_url}", timeout=20)
    assert "triton-grpc" == connect(server.grpc_url, timeout=20).api
    assert "triton-http" == connect(server.http_url.removeprefix("http://"), timeout=20).api
