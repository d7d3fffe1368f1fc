"""Keeps the last ids of a prompt."""

import triton_python_backend_utils as pb_utils

MAX_PROMPT = 256


class TritonPythonModel:
    def execute(self, requests: list) -> list:
        return [self.answer(request) for request in requests]

    def answer(self, request: object) -> object:
        ids = pb_utils.get_input_tensor_by_name(request, "all_ids").as_numpy()
        tensor = pb_utils.Tensor("last_ids", ids[-MAX_PROMPT:])
        return pb_utils.InferenceResponse(output_tensors=[tensor])
