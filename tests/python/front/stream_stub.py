"""A small server with a stand-in for a model, correct or with one defect, to test `quire check-stream`."""

from __future__ import annotations

import contextlib
import json
import threading
import time
import zlib
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

_WORDS = (
    " the",
    " quick",
    "\n",
    "  fox",
    " jumps",
    " 日",
    "本",
    "語",
    ",",
    " caf",
    "é",
    " 😀",
    "e\u0302",
    " x=",
    "1",
)
_SECONDS = 0.001  # between tokens
_LARGE = 1_000_000  # bytes of a body


class BadRequestError(Exception):
    """Named as it should be; the handler knows how to break it."""


class Stub(ThreadingHTTPServer):
    """Triton's generate extension and OpenAI's two endpoints, side by side. `defect` "": none."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(
        self, defect: str = "", *, triton: bool = True, completions: bool = True, typed: bool = False
    ) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.defect = defect
        self.triton = triton
        self.completions = completions
        self.num_refused = 0
        self.num_streams = 0  # open now
        self.num_large = 0  # bodies
        self.lock = threading.Lock()
        self.typed = typed  # a tensor for each field, no finish reason, as in TensorRT-LLM's ensemble

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextlib.contextmanager
def running(stub: Stub) -> Iterator[Stub]:
    thread = threading.Thread(target=stub.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield stub
    finally:
        stub.shutdown()
        stub.server_close()
        thread.join()


def chunks_of(prompt: str, fields: dict[str, Any], defect: str) -> tuple[list[str], str]:
    """The texts of a correct stream, and why it ends."""
    _check(fields)
    limit = 64 if defect == "ignores max_tokens" else fields.get("max_tokens", 16)
    start = zlib.crc32(prompt.encode()) + (fields.get("seed") or 0)
    chunks = [_WORDS[(start + 7 * step + step * step // 5) % len(_WORDS)] for step in range(limit)]
    for stop in fields.get("stop") or fields.get("stop_words") or []:
        if defect == "stop inside chunks only":
            at = next((index for index, chunk in enumerate(chunks) if stop in chunk), None)
            text = "".join(chunks) if at is None else "".join(chunks[:at]) + chunks[at].partition(stop)[0]
            found = at is not None
        else:
            text, found, _ = "".join(chunks).partition(stop)
        if found:
            included = bool(fields.get("include_stop_str_in_output"))
            included = {"keeps the stop string": True, "never keeps it": False}.get(defect, included)
            text += stop if included else ""
            return _cut(chunks, len(text)), "stop"
        if defect == "loses held text":
            del chunks[-1]
    return chunks, "stop" if defect == "always says stop" else "length"


def _cut(chunks: list[str], length: int) -> list[str]:
    kept = []
    for chunk in chunks:
        if length <= 0:
            break
        kept.append(chunk[:length])
        length -= len(chunk)
    return kept


def _check(fields: dict[str, Any]) -> None:
    ranges = {"temperature": (0, 2), "top_p": (0.001, 1), "max_tokens": (1, 10000)}
    for name, (low, high) in ranges.items():
        value = fields.get(name, high)
        if not isinstance(value, (int, float)) or not low <= value <= high:
            raise BadRequestError(f"{name}: got {value!r}; allowed: [{low}, {high}]")


def broken(chunks: list[str], defect: str) -> list[str]:
    """What a defective detokenizer or writer makes of them."""
    if defect == "drops spaces":
        return [chunk.lstrip() for chunk in chunks]
    if defect == "splits characters":
        parts = [(chunk.encode()[:-1], chunk.encode()[-1:]) for chunk in chunks]
        return [half.decode("utf-8", "replace") for pair in parts for half in pair if half]
    if defect == "loses the last chunk":
        return chunks[:-1]
    if defect == "empty chunks":
        return [piece for chunk in chunks for piece in (chunk, "")]
    return chunks


class _Handler(BaseHTTPRequestHandler):
    server: Stub

    def log_message(self, *_: object) -> None:
        pass

    def do_GET(self) -> None:
        tensors = ("text_input", "stream", "sampling_parameters", "exclude_input_in_output")
        outputs = ("text_output", "finish_reason", "num_input_tokens", "num_output_tokens")
        if self.server.typed:
            tensors = ("text_input", "stream", "max_tokens", "temperature", "top_k", "top_p", "stop_words")
            outputs = ("text_output",)
        pages: dict[str, Any] = {
            "/v2": {"name": "triton", "extensions": []},
            "/v2/models/stub": {
                "inputs": [{"name": name, "datatype": "BYTES", "shape": [1]} for name in tensors],
                "outputs": [{"name": name, "datatype": "BYTES", "shape": [1]} for name in outputs],
            },
            "/v1/models": {"data": [{"id": "stub"}]},
        }
        hidden = "/v1" if self.server.triton else "/v2"
        page = None if self.path.startswith(hidden) else pages.get(self.path)
        self._json(200 if page else 404, page or {"error": "not found"})

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        if size > _LARGE:
            self.server.num_large += 1
        body = json.loads(self.rfile.read(size))
        if self.path == "/v2/repository/index":
            return self._json(200, [{"name": "stub", "state": "READY"}])
        if self.path == "/v1/completions" and not self.server.completions:
            return self._json(404, {"detail": "Not Found"})
        try:
            if self.path.startswith("/v2"):
                self._triton(body)
            else:
                self._openai(body)
        except BadRequestError as error:
            self._refuse(str(error))
        except OSError:  # the client left
            pass
        return None

    def _refuse(self, message: str) -> None:
        defect = self.server.defect
        self.server.num_refused += 1
        if defect == "500 for a bad parameter":
            return self._json(500, {"error": "'<' not supported between instances of 'str' and 'int'"})
        if defect == "does not name the parameter":
            return self._json(400, {"error": "invalid request"})
        error = message if self.server.triton else {"message": message, "code": 400}
        return self._json(400, {"error": error})

    def _triton(self, body: dict[str, Any]) -> None:
        try:
            fields = body if self.server.typed else json.loads(body["sampling_parameters"])
        except ValueError:
            raise BadRequestError("sampling_parameters: not JSON") from None
        is_other = self.server.defect == "changes its answers" and self.server.num_refused > 0
        prompt = body["text_input"] + ("!" if is_other else "")
        chunks, reason = chunks_of(prompt, fields, self.server.defect)
        if self.server.typed:
            if self.path.endswith("/generate"):  # the prompt belongs to it there
                return self._json(200, {"text_output": body["text_input"] + "".join(chunks)})
            texts = [*broken(chunks, self.server.defect), ""]
            return self._events([json.dumps({"text_output": text}) for text in texts])
        counts = {"num_input_tokens": len(body["text_input"]), "num_output_tokens": len(chunks)}
        if self.path.endswith("/generate"):
            return self._json(200, {"text_output": "".join(chunks), "finish_reason": reason} | counts)
        events = [
            {"text_output": text, "finish_reason": "", "num_output_tokens": 1, "num_input_tokens": 1}
            for text in broken(chunks, self.server.defect)
        ]
        for index, event in enumerate(events):
            event["num_input_tokens"] = counts["num_input_tokens"]
            if self.server.defect == "cumulative counts":
                event["num_output_tokens"] = index + 1
            if self.server.defect == "empty chunks" and not event["text_output"]:
                event["num_output_tokens"] = 0
        if not events:
            events = [{"text_output": "", "num_output_tokens": 0} | counts]
        events[-1]["finish_reason"] = reason
        if self.server.defect == "finish twice":
            events.append({**events[-1], "text_output": "", "num_output_tokens": 0})
        return self._events([json.dumps(event, ensure_ascii=False) for event in events])

    def _openai(self, body: dict[str, Any]) -> None:
        is_chat = self.path.endswith("/chat/completions")
        prompt = body["messages"][0]["content"] if is_chat else body["prompt"]
        fields = {name: value for name, value in body.items() if name != "include_stop_str_in_output"}
        chunks, reason = chunks_of(prompt, fields, self.server.defect)
        usage = {"prompt_tokens": len(prompt), "completion_tokens": len(chunks)}
        usage["total_tokens"] = sum(usage.values())
        if not body["stream"]:
            text = "".join(chunks)
            part = {"message": {"role": "assistant", "content": text}} if is_chat else {"text": text}
            choice = part | {"finish_reason": reason}
            return self._json(200, {"choices": [choice], "usage": usage})
        first: list[Any] = [{"delta": {"role": "assistant", "content": ""}}] if is_chat else []
        texts = [*broken(chunks, self.server.defect), ""]
        choices = first + [{"delta": {"content": text}} if is_chat else {"text": text} for text in texts]
        choices[-1]["finish_reason"] = reason
        events = [json.dumps({"choices": [choice]}) for choice in choices]
        done = [] if self.server.defect == "no [DONE]" else ["[DONE]"]
        return self._events([*events, json.dumps({"choices": [], "usage": usage}), *done])

    def _events(self, events: list[str]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        if self.server.defect == "all at the end":
            time.sleep(_SECONDS * len(events))
            self.wfile.write("".join(f"data: {event}\n\n" for event in events).encode())
            return
        refused = self.server.num_refused
        num_large = self.server.num_large
        with self.server.lock:
            self.server.num_streams += 1
        try:
            for event in events:
                time.sleep(_SECONDS)
                if self.server.defect == "ends with a bad neighbour" and self.server.num_refused > refused:
                    return
                if self.server.defect == "ends beside a large body" and self.server.num_large > num_large:
                    return
                if self.server.defect != "mixes streams up" or self.server.num_streams == 1:
                    self.wfile.write(f"data: {event}\n\n".encode())
        finally:
            with self.server.lock:
                self.server.num_streams -= 1

    def _json(self, status: int, value: Any) -> None:
        data = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)
