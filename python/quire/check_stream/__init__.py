"""`quire check-stream`: the stream contract, checked on any Triton or OpenAI-style server.

url -> detect.connect -> Adapter (triton, openai) -> Lab (prompts, answers) -> run.CHECKS -> report
"""

from quire.check_stream.detect import APIS, connect
from quire.check_stream.lab import Lab
from quire.check_stream.outcome import Outcome
from quire.check_stream.protocol import CheckStreamError
from quire.check_stream.run import CHECKS, Check, Result, run_checks

__all__ = [
    "APIS",
    "CHECKS",
    "Check",
    "CheckStreamError",
    "Lab",
    "Outcome",
    "Result",
    "connect",
    "run_checks",
]
