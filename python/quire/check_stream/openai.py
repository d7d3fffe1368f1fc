"""/v1/completions and /v1/chat/completions with server-sent events."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

from quire.check_stream.http_client import HttpClient, event_json
from quire.check_stream.protocol import Adapter, Chunk, Recording, Reply, Request, RequestError


class OpenAI(Adapter):
    """An OpenAI-style server. `chat`: the prompt is one message of the user."""

    ends_with_done = True
    knows_include_stop = False  # vLLM's extension; others ignore it

    def __init__(self, http: HttpClient, model: str, *, chat: bool) -> None:
        self.api = "openai-chat" if chat else "openai"
        self.model = model
        self.timeout = http.timeout
        self._http = http
        self._chat = chat
        self._path = "/v1/chat/completions" if chat else "/v1/completions"

    def answer(self, request: Request) -> Reply:
        answer = self._http.post(self._path, self._body(request, stream=False))
        choice = _choice(answer)
        if choice is None:
            raise RequestError(f"an answer without choices: {json.dumps(answer)[:200]}")
        counts = _usage(answer) or Reply(text="")
        return Reply(
            text=self._text(choice, "message"),
            finish_reason=choice.get("finish_reason") or "",
            num_input_tokens=counts.num_input_tokens,
            num_output_tokens=counts.num_output_tokens,
            num_total_tokens=counts.num_total_tokens,
        )

    def events(self, request: Request, recording: Recording) -> Iterator[Chunk]:
        for data in self._http.events(self._path, self._body(request, stream=True)):
            if data.strip() == "[DONE]":
                recording.num_done += 1
                continue
            event = event_json(data)
            usage, choice = _usage(event), _choice(event)
            recording.usage = usage or recording.usage
            purpose = "usage" if usage and choice is None else ""
            if choice is not None and self._chat:
                delta = choice.get("delta") or {}
                if delta.get("reasoning_content") or delta.get("reasoning"):
                    purpose = "reasoning"
                elif "role" in delta and not recording.chunks:
                    purpose = "role"
            yield Chunk(
                time=time.monotonic(),
                text=self._text(choice, "delta") if choice else "",
                finish_reason=(choice or {}).get("finish_reason") or "",
                purpose=purpose,
            )

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


def _usage(event: Any) -> Reply | None:
    usage = event.get("usage") if isinstance(event, dict) else None
    if not isinstance(usage, dict):
        return None
    return Reply(
        text="",
        num_input_tokens=usage.get("prompt_tokens"),
        num_output_tokens=usage.get("completion_tokens"),
        num_total_tokens=usage.get("total_tokens"),
    )
