"""Refuses by its size what cannot fit, before any work goes into it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quire.errors import InvalidArgument
from quire.triton.tensors import StageRequest

# Bytes of text of a request, where its length does not say whether it fits: with truncate_prompt_tokens, with
# several prompts, with a tokenizer that drops text. A context that holds more of usual text raises it.
MAX_TEXT_BYTES = 4 << 20
_USUAL_BYTES_PER_TOKEN = 16  # and more: text has three to five
_MIN_PROBE = 1 << 18


@dataclass(frozen=True)
class PromptBounds:
    """The limits of a model's prompts. bytes_per_token: the most text that a token can be; None: no such
    number."""

    max_model_len: int | None
    bytes_per_token: int | None

    @property
    def max_tokens(self) -> int | None:
        """The tokens of one prompt, at most."""
        return None if self.max_model_len is None else self.max_model_len - 1

    @property
    def max_prompt_bytes(self) -> int | None:
        """More than so many are more than max_tokens. None: nobody can tell."""
        if self.max_tokens is None or self.bytes_per_token is None:
            return None
        return self.max_tokens * self.bytes_per_token

    @property
    def max_text_bytes(self) -> int:
        """The text of all prompts of a request together, at most, whether or not they are truncated."""
        usual = (self.max_tokens or 0) * _USUAL_BYTES_PER_TOKEN
        return max(MAX_TEXT_BYTES, usual, self.max_prompt_bytes or 0)

    @property
    def probe_length(self) -> int:
        """The beginning of a much longer text, in characters, which shows whether it is far too long."""
        return max(_MIN_PROBE, (self.max_tokens or 0) * _USUAL_BYTES_PER_TOKEN)

    def needs_probe(self, text: str) -> bool:
        return self.max_tokens is not None and len(text) > 2 * self.probe_length

    def check_probe(self, text: str, num_tokens: int, name: str = "text_input") -> None:
        """`num_tokens`: of the beginning of `text`. What follows may change the last of them, not half."""
        if self.max_tokens is not None and num_tokens > 2 * self.max_tokens:
            beginning = f"the first {self.probe_length} characters are {num_tokens} tokens"
            given = f"{_num_bytes(text)} bytes, of which {beginning}"
            raise InvalidArgument(name, given, f"at most {self.max_tokens} tokens (max_model_len - 1)")

    def check_strings(self, request: StageRequest) -> None:
        """Raises InvalidArgument that names a tensor or a parameter with too much text."""
        texts = [
            (name, sum(map(len, tensor.flat)))
            for name, tensor in request.tensors.items()
            if tensor.dtype == object
        ]
        texts += [(name, _num_bytes(value)) for name, value in request.parameters if isinstance(value, str)]
        for name, size in texts:
            if size > self.max_text_bytes and name != "sampling_parameters":  # whose reader has its own limit
                raise InvalidArgument(name, f"{size} bytes", f"at most {self.max_text_bytes} bytes")

    def check_prompts(self, texts: Sequence[str], name: str = "text_input") -> None:
        """Raises InvalidArgument that names the text which is too long."""
        if self.max_prompt_bytes is None:
            return
        for index, text in enumerate(texts):
            if (size := _num_bytes(text)) > self.max_prompt_bytes:
                at = f" at {index}" if len(texts) > 1 else ""
                allowed = (
                    f"at most {self.max_prompt_bytes} bytes ({self.max_tokens} tokens, max_model_len - 1, "
                    f"of at most {self.bytes_per_token} bytes)"
                )
                raise InvalidArgument(name, f"{size} bytes{at}", allowed)


def _num_bytes(text: str) -> int:
    return len(text) if text.isascii() else len(text.encode("utf-8", "replace"))
