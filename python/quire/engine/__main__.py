"""``python -m quire.engine --config model.json --fd N``: serve one client over the socket `N` until it goes
away.

What a load has read holds for every engine of that load: the client hands over the content of model.json as
it was then (`--settings-fd`) and, from the second engine on, what the first one said of the model's folder
(`--loaded`).

Exit status 0: the client is gone. 1: could not start (the client got the reason), or a step failed (the log
has it).
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from quire import _core
from quire.end_with_parent import end_with_parent
from quire.errors import InvalidArgument, QuireError, told
from quire.runner.threads import SHARED_CORES

if TYPE_CHECKING:
    from quire.config import EngineConfig

log = logging.getLogger("quire.engine")


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m quire.engine", description=__doc__)
    parser.add_argument("--config", type=Path, required=True, help="the settings: generation/1/model.json")
    parser.add_argument("--fd", type=int, required=True, help="the connected stream socket to serve")
    parser.add_argument("--settings-fd", type=int, help="has the settings, in place of the file's content")
    parser.add_argument("--loaded", help="the model's folder as an engine before this one found it")
    arguments = parser.parse_args()
    # The socket says when the client is gone, too, but not to an engine that is stopped or hangs.
    end_with_parent(os.getppid())
    faulthandler.enable()
    logging.basicConfig(format="%(asctime)s quire.engine %(levelname)s %(message)s", level=logging.INFO)
    # Control-C reaches the whole process group. The server drains its requests then, and closes the socket:
    # that is our signal.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    SHARED_CORES.apply()
    return run(arguments.config, arguments.fd, settings_fd=arguments.settings_fd, loaded=arguments.loaded)


def run(file: Path, fd: int, *, settings_fd: int | None = None, loaded: str | None = None) -> int:
    """Serves the client at `fd` until it goes; the exit status. Arguments as on the command line."""
    try:
        # Not at the top: torch may be missing or broken, and the client should hear of it.
        from quire.config import EngineConfig
        from quire.engine.build import build
        from quire.engine.loop import StepLog, serve
        from quire.fingerprint import LoadedFolder
        from quire.sampling_params import SamplingParams

        if settings_fd is None:
            config = EngineConfig.from_file(file)
        else:
            with os.fdopen(settings_fd, "rb") as settings:
                config = EngineConfig.from_content(settings.read(), file)
        if loaded:
            folder = LoadedFolder.from_text(loaded)
            folder.check()
        else:
            model_folder = config.model_folder()
            folder = LoadedFolder.of(model_folder, config.tokenizer_folder(model_folder))
        engine = build(config, SHARED_CORES, folder.folder, folder.tokenizer)
    except Exception as error:
        message = _start_error(error, file)
        log.error("cannot start: %s", message, exc_info=None if isinstance(error, QuireError) else error)
        _core.send_start_error(fd, message)
        return 1

    server = _core.EngineServer(engine.core, fd)
    server.send_ready(
        config.model,
        SamplingParams(**engine.defaults).to_core(),
        engine.vocabulary,
        folder.to_text(),
        _cache_config(config, engine.core.stats().num_blocks),
    )
    try:
        serve(server, engine.core, engine.runner, None if config.disable_log_stats else StepLog())
    except Exception:
        log.exception("stopped")
        return 1
    log.info("the client is gone")
    return 0


def _cache_config(config: EngineConfig, num_blocks: int) -> dict[str, str]:
    """How the KV cache is set up, by vLLM's names."""
    names = (
        "block_size",
        "enable_prefix_caching",
        "gpu_memory_utilization",
        "kv_cache_memory_bytes",
        "num_gpu_blocks_override",
    )
    values = {name: getattr(config, name) for name in names}
    values |= {"cache_dtype": config.kv_cache_dtype, "num_gpu_blocks": num_blocks}
    return {name: str(value) for name, value in values.items()}


def _start_error(error: Exception, file: Path) -> str:
    """One line for the client, naming the file when the error only names a setting."""
    message = f"{file}: {error}" if isinstance(error, InvalidArgument) else told(error)
    return " ".join(message.split())


if __name__ == "__main__":
    sys.exit(main())
