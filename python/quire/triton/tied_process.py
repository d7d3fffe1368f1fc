"""A child process that never outlives this one."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from typing import Any

from quire import end_with_parent


def start_tied(command: Sequence[str], env: Mapping[str, str], **options: Any) -> subprocess.Popen[bytes]:
    """Starts `command`, which the kernel kills when this process ends, however that ends. `options`: those of
    Popen."""
    launcher = [sys.executable, "-I", "-S", str(end_with_parent.__file__), str(os.getpid())]
    # What is preloaded is for the command alone: it may take itself out of the environment.
    if preload := env.get("LD_PRELOAD"):
        launcher += ["env", f"LD_PRELOAD={preload}"]
    env = {name: value for name, value in env.items() if name != "LD_PRELOAD"}
    started: Future[subprocess.Popen[bytes]] = Future()

    def keep() -> None:
        try:
            process = subprocess.Popen([*launcher, *command], env=env, **options)
        except BaseException as error:
            started.set_exception(error)
            return
        started.set_result(process)
        # The kernel would take the end of this thread for the end of the parent.
        with contextlib.suppress(ChildProcessError):
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

    threading.Thread(target=keep, name=f"keeps {command[0]}", daemon=True).start()
    return started.result()
