"""`ChatOptions`: a conversation in place of a prompt."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from quire.errors import InvalidArgument, describe
from quire.field import fields_of, spec
from quire.table import Table

# What a message may have to say instead of content.
_INSTEAD_OF_CONTENT = ("tool_calls", "reasoning_content", "reasoning", "thinking")


@dataclass(frozen=True, kw_only=True)
class ChatOptions(Table):
    """A conversation in place of `text_input`: the model's chat template makes its prompt (docs/chat.md)."""

    messages: Sequence[Mapping[str, Any]] | None = spec(None, min_items=1)
    """Objects with `role` and `content`, and whatever else the template knows, such as `tool_calls`."""
    tools: Sequence[Mapping[str, Any]] | None = spec(None)
    """What the model may call, as JSON schemas. A template named tool_use is used where there is one."""
    documents: Sequence[Mapping[str, Any]] | None = spec(None)
    """What the model may quote: objects with `title` and `text`, as the template has them."""
    chat_template: str | None = spec(None)
    """The name of one of the model's templates; or, with the setting trust_request_chat_template, a template
    itself. Default: "default"."""
    chat_template_kwargs: Mapping[str, Any] | None = spec(None)
    """Further variables of the template, such as {"enable_thinking": false}."""
    add_generation_prompt: bool = spec(True)
    """End with the beginning of an answer. Default: true, but false with continue_final_message."""
    continue_final_message: bool = spec(False)
    """Leave the last message open, for the model to go on with it."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.messages is None:
            for name in self.given:
                if getattr(self, name) not in (fields_of(ChatOptions)[name].default, [], {}):
                    raise InvalidArgument(name, "a value without messages", "only with messages")
        for index, message in enumerate(self.messages or ()):
            _check_message(f"messages[{index}]", message)
        if self.continue_final_message:
            if "add_generation_prompt" not in self.given:
                object.__setattr__(self, "add_generation_prompt", False)
            if self.add_generation_prompt:
                allowed = "one of them"
                raise InvalidArgument("continue_final_message, add_generation_prompt", "both true", allowed)
            if self.messages and not isinstance(self.messages[-1].get("content"), (str, list)):
                name = f"messages[{len(self.messages) - 1}].content"
                given = describe(self.messages[-1].get("content"))
                raise InvalidArgument(name, given, "text, which continue_final_message goes on with")


def _check_message(name: str, message: Mapping[str, Any]) -> None:
    for key, types, allowed in (
        ("role", str, 'a string, such as "user"'),
        ("content", (str, list, dict), "a string, or a list of parts"),
    ):
        value = message.get(key)
        if value is None and key == "content" and any(message.get(other) for other in _INSTEAD_OF_CONTENT):
            continue
        if not isinstance(value, types):
            given = describe(value) if key in message else "nothing"
            raise InvalidArgument(f"{name}.{key}", given, allowed)
