"""A tokenizer's process for tests: the first word of a text says what happens.

<number>      the id
sleep <s>     takes so long
die           ends by SIGKILL
stop          stops by SIGSTOP
refuse        an error of the client's
"""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from quire.errors import InvalidArgument, QuireError
from quire.triton import tokenizer_worker
from quire.triton.tensors import StageRequest, Tensor, read_list


def start(
    folder: Path, parameters: Mapping[str, str], snapshot: bytes
) -> tuple[tokenizer_worker.Answer, bytes]:
    """Fails while there is a file `broken` beside the model's folder, and logs each request there."""
    if (folder.parent / "broken").exists():
        raise QuireError("broken: got a file; allowed: none")

    def answer(request: StageRequest) -> dict[str, Tensor]:
        [text] = read_list(request.tensors["text_input"], "text_input")
        with (folder.parent / "words.log").open("a") as log:
            log.write(f"{os.getpid()} {text[:20]}\n")
        command, *rest = text.split()
        if command == "sleep":
            time.sleep(float(rest[0]))
        if command == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if command == "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        if command == "refuse":
            raise InvalidArgument("text_input", command, "a number")
        ids = [int(word) for word in text.split() if word.isdigit()]
        return {"input_ids": np.asarray(ids, np.int32)}

    return answer, snapshot or b"read"


if __name__ == "__main__":
    sys.exit(tokenizer_worker.main(start))
