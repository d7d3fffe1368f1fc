"""Triton's Python backend calls this; the work is in quire.triton.tokenizer_stage."""

import triton_python_backend_utils as pb_utils
from quire.triton.tokenizer_stage import TokenizerStage


class TritonPythonModel:
    def initialize(self, args):
        self.stage = TokenizerStage.from_args(args)

    def execute(self, requests):
        return self.stage.execute(requests, pb_utils)
