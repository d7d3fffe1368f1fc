"""libquire_guard.so in a process that is not tritonserver: what send() does with full sockets."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from quire.triton.installation import find_guard_library

_PRELUDE = """
import ctypes, os, select, socket, struct, subprocess, sys

MANY = 5000  # more than any socket pair holds

def message(number):
    return struct.pack("<qqq", number, 0, 0)

def pair():
    ends = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    for end in ends:
        end.setblocking(False)
    return ends

def read(end, count):
    numbers = []
    while len(numbers) < count:
        assert select.select([end], [], [], 60)[0], f"only {len(numbers)} arrived"
        numbers.append(struct.unpack("<qqq", end.recv(24))[0])
    return numbers

def count_until_full(end, bytes, *flags):
    for sent in range(MANY):
        try:
            end.send(bytes, *flags)
        except BlockingIOError:
            return sent
    return MANY
"""


def run(program: str, *, guard: bool = True) -> str:
    """What the program prints, in a process with the guard preloaded."""
    environment = {name: value for name, value in os.environ.items() if name != "LD_PRELOAD"}
    if guard:
        environment["LD_PRELOAD"] = str(find_guard_library())
    result = subprocess.run(
        [sys.executable, "-c", _PRELUDE + program],
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


def test_no_message_is_lost() -> None:
    """Messages to a full socket pair arrive all, in order, also with others that come while some wait."""
    program = """
near, far = pair()
for number in range(MANY):
    assert near.send(message(number)) == 24
numbers = read(far, MANY // 2)
for number in range(MANY, 2 * MANY):
    near.send(message(number))
assert numbers + read(far, MANY + MANY // 2) == list(range(2 * MANY))
assert count_until_full(near, message(0)) == MANY, "and it goes on so"
"""
    run(program)


def test_without_the_guard_messages_are_refused() -> None:
    """The pair that the test before fills holds a few hundred messages: it does test the guard."""
    assert "full" in run(
        "near, far = pair()\nassert count_until_full(near, message(0)) < MANY\nprint('full')", guard=False
    )


@pytest.mark.parametrize(
    "full",
    [
        pytest.param("count_until_full(near, b'x' * 65)", id="larger"),
        pytest.param("count_until_full(near, message(0), socket.MSG_NOSIGNAL)", id="flags"),
        pytest.param("count_until_full(datagrams, message(0))", id="datagrams"),
        pytest.param("count_until_full(tcp, b'x' * 64)", id="tcp"),
    ],
)
def test_other_sockets_are_left_alone(full: str) -> None:
    """Who sends anything else is told that a socket is full, also while messages wait."""
    program = f"""
busy, _busy = pair()
for number in range(MANY):
    busy.send(message(number))
near, far = pair()
datagrams, others = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
datagrams.setblocking(False)
listener = socket.create_server(("127.0.0.1", 0))
tcp = socket.create_connection(listener.getsockname())
tcp.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
peer, address = listener.accept()
tcp.setblocking(False)
MANY = 1_000_000
assert {full} < MANY
"""
    run(program)


def test_delivery_is_told() -> None:
    """Who asks is called back once when the message has gone from the queue into the socket, in order."""
    program = """
guard = ctypes.CDLL(None)
guard.quire_guard_after_delivery.restype = ctypes.c_bool
Delivered = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
delivered = []
told = Delivered(lambda argument: delivered.append(argument))
def ask(number):
    return guard.quire_guard_after_delivery(told, ctypes.c_void_p(number))

near, far = pair()
near.send(message(0))
assert not ask(1), "it went straight into the socket"
waiting = []
for number in range(1, MANY):
    near.send(message(number))
    if ask(number):
        waiting.append(number)
        assert not ask(number), "asked once"
assert waiting == list(range(waiting[0], MANY))
assert not delivered, "nobody has read yet"
near.send(message(MANY))
guard.quire_guard_forget()
assert not ask(MANY), "forgotten"
read(far, MANY + 1)
near.send(message(0)), read(far, 1)
while len(delivered) < len(waiting):
    select.select([], [], [], 0.01)
assert delivered == waiting
"""
    run(program)


def test_threads_beside_each_other() -> None:
    """Many senders and sockets at once: every socket gets its messages whole and each sender's in order."""
    program = """
import threading
pairs = [pair() for _ in range(4)]
def work(sender):
    for number in range(1000):
        for near, _ in pairs:
            near.send(message(sender * 1000 + number))
threads = [threading.Thread(target=work, args=(sender,)) for sender in range(8)]
for thread in threads:
    thread.start()
received = [read(far, 8000) for _, far in pairs]
for thread in threads:
    thread.join()
for numbers in received:
    assert sorted(numbers) == list(range(8000))
    for sender in range(8):
        mine = [number for number in numbers if number // 1000 == sender]
        assert mine == sorted(mine)
"""
    run(program)


def test_closed_sockets() -> None:
    """Messages to a socket that is closed meanwhile are dropped, and its number may be used again."""
    program = """
near, far = pair()
for number in range(MANY):
    near.send(message(number))
far.close()
near.close()
near, far = pair()
for number in range(MANY):
    near.send(message(number))
assert read(far, MANY) == list(range(MANY))
"""
    run(program)


def test_no_descriptor_is_left() -> None:
    """Messages wait and arrive also where the process cannot open anything more."""
    program = """
near, far = pair()
held = []
try:
    while True:
        held.append(os.open("/dev/null", os.O_RDONLY))
except OSError:
    pass
for number in range(MANY):
    near.send(message(number))
assert read(far, MANY) == list(range(MANY))
"""
    run("import resource\nresource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))\n" + program)


def test_children_start_without_it() -> None:
    """The guard takes itself, and nothing else, out of LD_PRELOAD."""
    assert run("print(os.environ.get('LD_PRELOAD'))").strip() == "None"
