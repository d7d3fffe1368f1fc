"""/v1/completions and /v1/chat/completions with server-sent events."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from quire.check_stream.http_client import HttpClient, parse_object
from quire.check_stream.protocol import Adapter, Chunk, Recording, Reply, Request, RequestError

_COUNTS = {
    "num_input_tokens": "prompt_tokens",
    "num_output_tokens": "completion_tokens",
    "num_total_tokens": "total_tokens",
}


class OpenAI(Adapter):
    """An OpenAI-style server. `chat`: the prompt is one message of the user."""

    ends_with_done = True

    def __init__(self, http: HttpClient, model: str, *, chat: bool) -> None:
        self.api = "openai-chat" if chat else "openai"
        self.model = model
        self.timeout = http.timeout
        self._http = http
        self._chat = chat
        self._path = "/v1/chat/completions" if chat else "/v1/completions"

    def answer(self, request: Request) -> Reply:
        answer = self._http.ask(self._path, self._body(request, stream=False))
        choice = _choice(answer)
        if choice is None:
            raise RequestError(f"an answer without choices: {json.dumps(answer)[:200]}")
        text, finish_reason = self._text(choice, "message"), choice.get("finish_reason") or ""
        return Reply(text=text, finish_reason=finish_reason, **_counts(answer))

    def events(self, request: Request, recording: Recording) -> Iterator[Chunk]:
        for data in self._http.events(self._path, self._body(request, stream=True)):
            if data.strip() == "[DONE]":
                recording.num_done += 1
                continue
            event = parse_object(data)
            counts, choice = _counts(event), _choice(event)
            if counts:
                recording.usage = Reply(**counts)
            purpose = "usage" if counts and choice is None else ""
            if choice is not None and self._chat:
                delta = choice.get("delta") or {}
                if delta.get("reasoning_content") or delta.get("reasoning"):
                    purpose = "reasoning"
                elif "role" in delta and not recording.chunks:
                    purpose = "role"
            choice = choice or {}
            finish_reason = choice.get("finish_reason") or ""
            yield Chunk(text=self._text(choice, "delta"), finish_reason=finish_reason, purpose=purpose)

    def show(self, request: Request, *, stream: bool) -> str:
        return f"POST {self._path} {json.dumps(self._body(request, stream=stream), ensure_ascii=False)}"

    def _body(self, request: Request, *, stream: bool) -> dict[str, Any]:
        if self._chat:
            body: dict[str, Any] = {"messages": [{"role": "user", "content": request.prompt}]}
        else:
            body = {"prompt": request.prompt}
        body |= {"model": self.model, "stream": stream, **request.sampling()}
        if stream:
            body["stream_options"] = {"include_usage": True}
        return body

    def _text(self, choice: dict[str, Any], part: str) -> str:
        value = (choice.get(part) or {}).get("content") if self._chat else choice.get("text")
        return str(value or "")


def _choice(event: Any) -> dict[str, Any] | None:
    choices = event.get("choices") if isinstance(event, dict) else None
    return choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], dict) else None


def _counts(event: dict[str, Any]) -> dict[str, Any]:
    """What Reply calls the counts of `usage`; none where it is missing."""
    usage = event.get("usage")
    return {name: usage.get(key) for name, key in _COUNTS.items()} if isinstance(usage, dict) else {}
