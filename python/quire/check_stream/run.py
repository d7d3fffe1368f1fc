"""The list of checks, and how they are run one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from quire.check_stream import checks_form, checks_load, checks_server, checks_text
from quire.check_stream.lab import Lab
from quire.check_stream.outcome import Outcome, failed, skipped
from quire.check_stream.protocol import RequestError, Unsupported


@dataclass(frozen=True)
class Check:
    """A named rule of the contract."""

    name: str
    rule: str
    run: Callable[[Lab], Outcome]


@dataclass(frozen=True, kw_only=True)
class Result:
    """A check and what it said."""

    check: Check
    outcome: Outcome
    seconds: float


CHECKS = (
    Check(
        "joined-text", "the joined chunks are the answer in one piece, byte for byte", checks_text.joined_text
    ),
    Check("spaces", "no white space is lost or added, not even at the beginning", checks_text.spaces),
    Check("characters", "no character is split by a chunk border", checks_text.characters),
    Check("empty-chunks", "no chunk is empty", checks_form.empty_chunks),
    Check("finish-reason", "a finish reason comes once, in the last chunk", checks_form.finish_reason),
    Check("finish-value", "the finish reason is stop or length, as it was", checks_form.finish_value),
    Check("done-marker", "[DONE] comes once", checks_form.done_marker),
    Check("stop-cut", "a stop string ends the text right before it", checks_text.stop_cut),
    Check(
        "stop-across-chunks", "a stop string is found across chunk borders", checks_text.stop_across_chunks
    ),
    Check("stop-included", "the stop string stays when that is asked for", checks_text.stop_included),
    Check("stop-partial", "text that only begins like a stop string is not lost", checks_text.stop_partial),
    Check("max-tokens", "max_tokens is kept", checks_form.max_tokens),
    Check("usage", "token counts of stream and answer in one piece agree", checks_form.usage),
    Check("chunks-in-time", "chunks arrive while text is generated", checks_form.chunks_in_time),
    Check("bad-parameter", "a bad value is a client error that names it", checks_server.bad_parameter),
    Check("bad-parameter-beside", "bad requests do not disturb a stream", checks_server.bad_parameter_beside),
    Check("concurrent", "many streams at once are each complete and correct", checks_load.concurrent),
    Check(
        "beside-large-body",
        "another client's large body takes nothing from a stream",
        checks_load.beside_large_body,
    ),
    Check("disconnect", "a client that leaves frees the server (informative)", checks_server.disconnect),
    Check("unchanged-after", "after all that, the same answer as before", checks_server.unchanged_after),
)


def run_checks(lab: Lab, on_result: Callable[[Result], None] = lambda result: None) -> list[Result]:
    """All checks, in order. Raises CheckStreamError where the server answers nothing at all."""
    lab.samples  # noqa: B018 - asked first, and not counted as the first check's time
    results = []
    for check in CHECKS:
        began = time.monotonic()
        try:
            outcome = check.run(lab)
        except Unsupported as error:
            outcome = skipped(str(error))
        except RequestError as error:
            outcome = failed(
                sent=f"a request of the check {check.name}", seen=str(error), expected="an answer"
            )
        result = Result(check=check, outcome=outcome, seconds=time.monotonic() - began)
        results.append(result)
        on_result(result)
    return results
