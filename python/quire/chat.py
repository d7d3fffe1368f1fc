"""Conversations to prompts, by the chat template that comes with a model, as transformers renders them."""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from quire.chat_options import ChatOptions
from quire.errors import InvalidArgument, UnsupportedModel, describe, not_one_of
from quire.model_files import read_text

if TYPE_CHECKING:
    import jinja2

_FILE, _FOLDER = "chat_template.jinja", "additional_chat_templates"
# Names of a message's reasoning; templates read the first, those of gpt-oss the second.
_REASONING = ("reasoning_content", "thinking", "reasoning")
_OWN = ("messages", "tools", "documents", "add_generation_prompt")
_END = "CONTINUE_FINAL_MESSAGE_TAG "  # where the final message ends; a template may trim the space


@dataclass(frozen=True, kw_only=True)
class ChatTemplates:
    """Templates by name. `special_tokens`: bos_token and others, which templates know by name, too."""

    templates: Mapping[str, str] = field(default_factory=dict)
    special_tokens: Mapping[str, str] = field(default_factory=dict)
    trusts_requests: bool = False  # a request may bring its own template

    def warnings(self) -> list[str]:
        """What keeps a template from rendering anything."""
        found = []
        for name, template in self.templates.items():
            try:
                _compiled(template)
            except InvalidArgument as error:
                found.append(
                    f"chat template {describe(name)}: got {error.given}: requests with messages fail"
                )
        return found

    def render(self, chat: ChatOptions) -> str:
        """The prompt of a conversation. Raises InvalidArgument, with the template's own words where it
        refuses the messages."""
        kwargs = {**self.special_tokens, **(chat.chat_template_kwargs or {})}
        for name in _OWN:
            if name in kwargs:
                raise InvalidArgument("chat_template_kwargs", f"the key {describe(name)}", "other keys")
        template = self._choose(chat)
        messages = [_plain_message(message) for message in chat.messages or ()]
        if chat.continue_final_message:
            final = _mark_end(messages)
        try:
            text = _compiled(template).render(
                messages=messages,
                tools=chat.tools,
                documents=chat.documents,
                add_generation_prompt=chat.add_generation_prompt,
                **kwargs,
            )
        except InvalidArgument:
            raise
        except MemoryError:
            raise
        except Exception as error:  # a template is a program
            given = f"messages that the chat template refuses: {_words(error)}"
            raise InvalidArgument("messages", given, "messages as the template has them") from None
        return _cut(text, final) if chat.continue_final_message else text

    def _choose(self, chat: ChatOptions) -> str:
        wanted = chat.chat_template
        if wanted is not None:
            if wanted in self.templates:
                return self.templates[wanted]
            if self.trusts_requests:
                return wanted
            names = self.templates or {"nothing (the model has no chat template)": ""}
            raise InvalidArgument(
                "chat_template",
                not_one_of(wanted, names).removeprefix("got ").partition("; allowed: ")[0],
                f"{', '.join(names)}; or any with the setting trust_request_chat_template",
            )
        name = "tool_use" if chat.tools is not None and "tool_use" in self.templates else "default"
        if name in self.templates:
            return self.templates[name]
        if self.templates:
            raise InvalidArgument("chat_template", "nothing", ", ".join(self.templates))
        raise InvalidArgument(
            "messages",
            "a conversation, but the model has no chat template",
            f"text_input, or a model folder with {_FILE}, or with chat_template in tokenizer_config.json",
        )


def read_templates(folder: Path, config: Mapping[str, Any]) -> dict[str, str]:
    """The templates of a model folder by name. Those of `config`, which is tokenizer_config.json, count where
    no file holds one. Raises ModelError."""
    files = {path.stem: path for path in sorted((folder / _FOLDER).glob("*.jinja"))}
    if (folder / _FILE).exists():
        files["default"] = folder / _FILE
    return {name: read_text(path) for name, path in files.items()} or _of_config(config.get("chat_template"))


def _of_config(given: Any) -> dict[str, str]:
    """One template, or a list of named ones."""
    if isinstance(given, str):
        return {"default": given}
    if isinstance(given, list) and all(isinstance(item, dict) for item in given):
        given = {str(item.get("name")): item.get("template") for item in given}
    if given is None or (isinstance(given, dict) and all(isinstance(item, str) for item in given.values())):
        return dict(given or {})
    allowed = "a string, or a list of objects with name and template"
    raise UnsupportedModel(f"tokenizer_config.json: chat_template: got {describe(given)}; allowed: {allowed}")


def _plain_message(message: Mapping[str, Any]) -> dict[str, Any]:
    """A copy without what is null, which templates would print; its reasoning under all of its names."""
    plain = {key: value for key, value in message.items() if value is not None}
    reasoning = next((plain[name] for name in _REASONING if name in plain), None)
    return (
        {"thinking": reasoning, **plain, "reasoning_content": reasoning} if reasoning is not None else plain
    )


def _mark_end(messages: list[dict[str, Any]]) -> str:
    """Marks where the final message ends; its text."""
    message = messages[-1]
    if isinstance(message["content"], str):
        text: str = message["content"]
        message["content"] = text + _END
        return text
    parts = [*message["content"]]
    for index in reversed(range(len(parts))):
        if isinstance(parts[index], dict) and isinstance(parts[index].get("text"), str):
            text = parts[index]["text"]
            parts[index] = {**parts[index], "text": text + _END}
            message["content"] = parts
            return text
    name = f"messages[{len(messages) - 1}].content"
    raise InvalidArgument(name, "parts without text", "text, which continue_final_message goes on with")


def _cut(text: str, final: str) -> str:
    """A rendered conversation up to the end of its final message."""
    at = text.rfind(_END.strip())
    if at < 0 or final.strip() not in text:
        given = "true, but the chat template leaves out or changes the final message"
        raise InvalidArgument("continue_final_message", given, "false for these messages")
    # A template that trims has trimmed the message's own space, too.
    return text[:at] if text[at:].startswith(_END) else text[:at].rstrip()


def _words(error: Exception) -> str:
    """What a template says, on one line."""
    message = " ".join(str(error).split())
    kind = type(error).__name__
    return describe(message) if kind == "TemplateError" else f"{describe(message)} ({kind})"


@functools.lru_cache(maxsize=32)
def _compiled(template: str) -> jinja2.Template:
    import jinja2

    try:
        return _environment().from_string(template)
    except (jinja2.TemplateSyntaxError, RecursionError) as error:
        given = f"no Jinja template: {_words(error)}"
        if isinstance(error, jinja2.TemplateSyntaxError):
            given += f" at line {error.lineno}"
        raise InvalidArgument("chat_template", given, "a Jinja template") from None


@functools.cache
def _environment() -> jinja2.Environment:
    """The sandbox that transformers uses: templates come from anywhere."""
    # Not at the top: a start that meets no template does without it.
    from jinja2 import TemplateError, nodes
    from jinja2.exceptions import SecurityError
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment
    from jinja2.utils import Namespace

    class Generation(Extension):
        """{% generation %} marks what a model said, which training reads: here, its content."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: Any) -> nodes.Node:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    class SafeNamespace(Namespace):
        """Holds no names of Python's own."""

        def __init__(*args: Any, **kwargs: Any) -> None:
            self, *rest = args
            Namespace.__init__(self, {})
            for name, value in dict(*rest, **kwargs).items():
                self[name] = value

        def __setitem__(self, name: str, value: Any) -> None:
            if isinstance(name, str) and name.startswith("_"):
                raise SecurityError(f"a namespace has no attribute {name}")
            super().__setitem__(name, value)

    class Dict:
        """dict(), without the type's attributes."""

        def __call__(self, *args: Any, **kwargs: Any) -> dict[Any, Any]:
            return dict(*args, **kwargs)

        def fromkeys(self, *args: Any) -> dict[Any, Any]:
            return dict.fromkeys(*args)

    def raise_exception(message: str) -> None:
        raise TemplateError(message)

    def tojson(
        value: Any,
        ensure_ascii: bool = False,
        indent: Any = None,
        separators: Any = None,
        sort_keys: bool = False,
    ) -> str:
        return json.dumps(
            value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
        )

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = tojson
    environment.globals |= {
        "raise_exception": raise_exception,
        "strftime_now": lambda form: datetime.now().strftime(form),
        "dict": Dict(),
        "namespace": SafeNamespace,
    }
    return environment
