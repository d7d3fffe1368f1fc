"""Puts a line before each prompt."""

import numpy as np
import triton_python_backend_utils as pb_utils

FIRST_LINE = b"# Python 3\n"


class TritonPythonModel:
    def execute(self, requests: list) -> list:
        return [self.answer(request) for request in requests]

    def answer(self, request: object) -> object:
        texts = pb_utils.get_input_tensor_by_name(request, "text").as_numpy()
        prompts = np.array([FIRST_LINE + text for text in texts], np.object_)
        tensor = pb_utils.Tensor("prompt", prompts)
        return pb_utils.InferenceResponse(output_tensors=[tensor])
