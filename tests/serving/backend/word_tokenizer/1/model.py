"""A word is a number, the id. The first word of a text may say what else happens:

sleep   take half a second
wait    take until the client has gone, five minutes at most
refuse  fail with status UNAVAILABLE
echo    the request's id comes back in front of the answer
"""

from __future__ import annotations

import importlib
import json
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import quire

pb_utils: Any = importlib.import_module("triton_python_backend_utils")


class TritonPythonModel:
    def initialize(self, args: Mapping[str, str]) -> None:
        parameters = json.loads(args["model_config"])["parameters"]
        self.log = Path(parameters["log"]["string_value"])

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        texts = [
            text.decode() for text in pb_utils.get_input_tensor_by_name(request, "text_input").as_numpy()
        ]
        command, *_ = texts[0].split()
        with self.log.open("a") as log:
            log.write(f"{texts[0]}: begins\n")
        if command == "sleep":
            time.sleep(0.5)
        if command == "wait":
            deadline = time.monotonic() + 300
            while not request.is_cancelled() and time.monotonic() < deadline:
                time.sleep(0.01)
        if command == "refuse":
            error = pb_utils.TritonError("no words today", pb_utils.TritonError.UNAVAILABLE)
            return pb_utils.InferenceResponse(error=error)
        with self.log.open("a") as log:
            log.write(f"{texts[0]}: {'cancelled' if request.is_cancelled() else 'done'}\n")
        rows = [[int(word) for word in text.split() if word.isdigit()] for text in texts]
        outputs = [
            pb_utils.Tensor("input_ids", np.concatenate([np.array(row, np.int32) for row in rows])),
            pb_utils.Tensor("prompt_lengths", np.array([len(row) for row in rows], np.int32)),
            pb_utils.Tensor("words", np.array([text.encode() for text in texts], np.object_)),
        ]
        if command == "echo":
            encoded = quire.encode_request(max_tokens=1, prompt_text=f"{request.request_id()}: ")
            outputs.append(pb_utils.Tensor("request", np.frombuffer(encoded, np.uint8)))
        return pb_utils.InferenceResponse(output_tensors=outputs)
