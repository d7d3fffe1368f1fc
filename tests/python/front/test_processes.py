"""The tests' own view of other processes."""

from __future__ import annotations

import os
import subprocess
import sys

import processes


def test_a_process_that_ends_while_it_is_looked_at() -> None:
    """It is a child while it runs, and neither as a zombie nor when it is gone is it alive or an error."""
    command = [sys.executable, "-c", "input()"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, env=os.environ | {"MARK": "a b"}) as process:
        assert processes.is_alive(process.pid)
        assert process.pid in processes.children(os.getpid())
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)  # ended, and not yet collected
        assert processes.state_and_parent(process.pid) == ("Z", os.getpid())
        assert not processes.is_alive(process.pid)
        assert process.pid not in processes.children(os.getpid())
    assert processes.state_and_parent(process.pid) == ("", 0)
    assert not processes.is_alive(process.pid)


def test_what_a_child_was_started_with() -> None:
    """The command line and the environment of a process are found by its id."""
    command = ["sh", "-c", "echo; read line", "a b"]
    environment = {"PATH": os.environ["PATH"], "MARK": "1 2"}
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    ) as process:
        assert process.stdout
        process.stdout.readline()  # the program has replaced the copy of this one
        assert processes.children(os.getpid())[process.pid] == "sh -c echo; read line a b "
        assert processes.with_environment("MARK=1 2") == [process.pid]
        process.kill()
