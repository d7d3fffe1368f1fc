"""Servers for the tests of the native backend."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # fake_engine

from backend_server import Repository, Server, StartServer, serving


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One server for all tests that do not break it."""
    with serving(tmp_path_factory.mktemp("server")) as server:
        yield server


@pytest.fixture
def start_server(tmp_path: Path) -> Iterator[StartServer]:
    """Starts servers of a test's own."""
    servers: list[Server] = []

    def start(repository: Repository, *options: str) -> Server:
        work = tmp_path / f"server{len(servers)}"
        work.mkdir()
        servers.append(Server(repository, work, *options))
        return servers[-1]

    yield start
    for server in servers:
        server.stop()
