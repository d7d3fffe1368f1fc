"""Watches over a tritonserver: passes on what it says, tells how it ended, starts it again when asked to."""

from __future__ import annotations

import time

from quire.cli.common import console, start
from quire.errors import ServerStartError
from quire.triton.server import TritonServer
from quire.triton.server_log import is_information

MAX_RESTARTS = 5
FIRST_PAUSE = 1.0  # seconds; each further one is twice as long
FORGIVEN_AFTER = 600.0  # a server that ran so long begins to count anew


def supervise(server: TritonServer, models: int, *, restart: bool, verbose: bool) -> None:
    """Never returns: a KeyboardInterrupt ends it, or ServerStartError that says how the server ended.
    `server` runs."""
    num_restarts = 0
    while True:
        began = time.monotonic()
        _follow(server, verbose)
        problem = f"tritonserver {server.ending}"
        server.stop()
        while True:  # until it has started again
            if not restart:
                raise ServerStartError(problem)
            if time.monotonic() - began > FORGIVEN_AFTER:
                num_restarts = 0
            if num_restarts == MAX_RESTARTS:
                raise ServerStartError(f"given up after {num_restarts} restarts: {problem}")
            pause = FIRST_PAUSE * 2**num_restarts
            num_restarts += 1
            console.print(problem, style="red", markup=False)
            console.print(f"restart {num_restarts} of {MAX_RESTARTS} in {pause:g} s")
            time.sleep(pause)
            try:
                start(server, models)
                break
            except ServerStartError as error:
                problem = str(error)


def _follow(server: TritonServer, verbose: bool) -> None:
    """Passes on what the server and the engine say, until the server ends."""
    while server.is_running:
        show_lines(server, verbose)
        time.sleep(0.2)
    show_lines(server, verbose)


def show_lines(server: TritonServer, verbose: bool) -> None:
    for line in server.new_log_lines():
        if verbose or not is_information(line):
            console.print(line, markup=False)
