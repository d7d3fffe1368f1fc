"""`quire check-stream`: the stream contract, checked on any Triton or OpenAI-style server.

url -> detect.connect -> Adapter (triton, openai) -> Lab (prompts, answers) -> run.CHECKS -> results
"""

from quire.check_stream.detect import connect
from quire.check_stream.lab import Lab
from quire.check_stream.protocol import CheckStreamError
from quire.check_stream.run import CHECKS, Result, run_checks

__all__ = ["CHECKS", "CheckStreamError", "Lab", "Result", "connect", "run_checks"]
