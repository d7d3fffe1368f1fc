"""The other end of the engine's socket, written from the description in wire.cc and not from its code."""

from __future__ import annotations

import socket
import struct
from dataclasses import dataclass, field

from quire.sampling_params import SamplingParams

MAGIC, VERSION = b"QUIR", 4
REQUESTS, READY, START_ERROR, STEP = 1, 2, 3, 4
FINISH_REASONS = ("", "stop", "length", "cancelled", "error", "deadline")
RECEIPT_SIZE = 80
STATS = (
    "step",
    "num_running",
    "num_waiting",
    "num_free_blocks",
    "num_blocks",
    "num_preemptions",
    "prefix_cache_queries",
    "prefix_cache_hits",
    "num_prompt_tokens",
    "num_generation_tokens",
)


@dataclass
class Release:
    request_id: int
    index: int
    ids: list[int]
    num_text_ids: int
    trim: int
    is_first: bool
    open_text: int
    finish_reason: str
    num_prompt_tokens: int
    num_cached_tokens: int
    receipt: bytes | None
    error: str
    stop_reason: str | int | None = None
    logprobs: list[list[tuple[int, float, int]]] | None = None  # of each id; None: not asked for
    prompt_logprobs: list[list[tuple[int, float, int]]] | None = None
    cumulative_logprob: float = 0.0


@dataclass
class Step:
    stats: dict[str, int]
    releases: list[Release]


@dataclass
class Answer:
    """All that came back for one request."""

    ids: list[int] = field(default_factory=list)
    finish_reason: str = ""
    error: str = ""


def frame(kind: int, payload: bytes, *, version: int = VERSION, magic: bytes = MAGIC) -> bytes:
    return struct.pack("<4sHHI", magic, version, kind, len(payload)) + payload


def addition(
    request_id: int,
    prompt_ids: list[int],
    params: SamplingParams,
    bad_word_ids: list[list[int]] = [],  # noqa: B006 (only read)
    **times: int,
) -> bytes:
    """`times`: arrival_ns, tokenize_ns; return_receipt: 0 or 1."""
    bits = (
        (params.seed is not None)
        | params.ignore_eos << 1
        | params.skip_special_tokens << 2
        | params.include_stop_str_in_output << 3
        | params.detokenize << 4
    )
    stops = [text.encode() for text in params.stop]
    penalties = (params.presence_penalty, params.frequency_penalty, params.repetition_penalty)
    logprobs, prompt_logprobs = (
        -1 if value is None else value for value in (params.logprobs, params.prompt_logprobs)
    )
    salt = (params.cache_salt or "").encode()
    deadline_ns = times.get("arrival_ns", 0) + params.deadline_ms * 10**6 if params.deadline_ms else 0
    return b"".join(
        [
            struct.pack("<Q", request_id),
            _ints(prompt_ids),
            struct.pack(
                "<iqqqB",
                params.priority,
                times.get("arrival_ns", 0),
                times.get("tokenize_ns", 0),
                deadline_ns,
                times.get("return_receipt", 0),
            ),
            struct.pack(
                "<iiffi", params.max_tokens, params.min_tokens, params.temperature, params.top_p, params.top_k
            ),
            struct.pack("<qB", params.seed or 0, bits),
            struct.pack("<I", len(stops)),
            *(struct.pack("<I", len(text)) + text for text in stops),
            _ints(list(params.stop_token_ids)),
            struct.pack("<iffff", params.n, params.min_p, *penalties),
            struct.pack("<I", len(params.logit_bias)),
            *(struct.pack("<if", token_id, bias) for token_id, bias in params.logit_bias),
            _ints(list(params.allowed_token_ids or ())),
            struct.pack("<I", len(bad_word_ids)),
            *map(_ints, bad_word_ids),
            struct.pack("<iii", logprobs, prompt_logprobs, params.stream_interval),
            struct.pack("<I", len(salt)) + salt,
        ]
    )


def requests(additions: list[bytes] = [], cancellations: list[int] = []) -> bytes:  # noqa: B006 (only read)
    """One kRequests frame."""
    payload = struct.pack("<I", len(additions)) + b"".join(additions)
    payload += struct.pack(f"<I{len(cancellations)}Q", len(cancellations), *cancellations)
    return frame(REQUESTS, payload)


class Client:
    """Reads frames from a socket and remembers what each request was answered."""

    def __init__(self, connection: socket.socket, timeout: float = 60.0) -> None:
        self.connection = connection
        connection.settimeout(timeout)
        self.answers: dict[int, Answer] = {}
        self.steps: list[Step] = []

    def send(self, data: bytes) -> None:
        self.connection.sendall(data)

    def add(self, request_id: int, prompt_ids: list[int], **params: object) -> None:
        self.send(requests([addition(request_id, prompt_ids, SamplingParams(**params))]))  # type: ignore[arg-type]

    def cancel(self, request_id: int) -> None:
        self.send(requests([], [request_id]))

    def read_frame(self) -> tuple[int, bytes]:
        """The next frame's type and payload. Raises EOFError when the engine is gone."""
        magic, version, kind, size = struct.unpack("<4sHHI", self._read(12))
        assert (magic, version) == (MAGIC, VERSION)
        return kind, self._read(size)

    def read_step(self) -> Step:
        kind, payload = self.read_frame()
        assert kind == STEP
        step = decode_step(payload)
        self.steps.append(step)
        for release in step.releases:
            answer = self.answers.setdefault(release.request_id, Answer())
            assert answer.finish_reason == "", "nothing may follow the end"
            answer.ids += release.ids
            answer.finish_reason = release.finish_reason
            answer.error = release.error
        return step

    def finish(self, *request_ids: int) -> list[Answer]:
        """Read until these requests have ended."""
        while not all(self.answers.get(i, Answer()).finish_reason for i in request_ids):
            self.read_step()
        return [self.answers[i] for i in request_ids]

    def read_rest(self) -> bytes:
        """What is left until the engine closes the connection."""
        data = bytearray()
        while part := self.connection.recv(4096):
            data += part
        return bytes(data)

    def _read(self, size: int) -> bytes:
        data = bytearray()
        while len(data) < size:
            part = self.connection.recv(size - len(data))
            if not part:
                raise EOFError
            data += part
        return bytes(data)


def decode_step(payload: bytes) -> Step:
    reader = _Reader(payload)
    stats = dict(zip(STATS, reader.unpack("QIIIIQQQQQ"), strict=True))
    token_ids = reader.ints()
    receipts = [reader.take(RECEIPT_SIZE) for _ in range(reader.unpack("I")[0])]
    releases = []
    for _ in range(reader.unpack("I")[0]):
        (
            request_id,
            index,
            begin,
            num_ids,
            num_text_ids,
            trim,
            is_first,
            open_text,
            reason,
            prompt,
            cached,
            receipt,
        ) = reader.unpack("QIIIIiBIBIIi")
        releases.append(
            Release(
                request_id,
                index,
                token_ids[begin : begin + num_ids],
                num_text_ids,
                trim,
                bool(is_first),
                open_text,
                FINISH_REASONS[reason],
                prompt,
                cached,
                receipts[receipt] if receipt >= 0 else None,
                reader.string(),
            )
        )
        if releases[-1].finish_reason == "stop":
            (token_id,) = reader.unpack("i")
            releases[-1].stop_reason = reader.string() or (token_id if token_id >= 0 else None)
    runs = [reader.unpack("IIIIId") for _ in range(reader.unpack("I")[0])]
    entries = [reader.unpack("ifi") for _ in range(reader.unpack("I")[0])]
    for release_idx, begin, num_per_id, num_prompt_places, num_per_prompt_place, cumulative in runs:
        release = releases[int(release_idx)]
        release.cumulative_logprob = cumulative
        end = begin + len(release.ids) * num_per_id
        release.logprobs = _places(entries[int(begin) : int(end)], int(num_per_id))
        last = end + num_prompt_places * num_per_prompt_place
        release.prompt_logprobs = _places(entries[int(end) : int(last)], int(num_per_prompt_place))
    assert reader.at_end
    return Step(stats, releases)


def _places(entries: list[tuple[int, ...]], size: int) -> list[list[tuple[int, float, int]]] | None:
    return [entries[i : i + size] for i in range(0, len(entries), size)] if size else None


def decode_ready(payload: bytes) -> dict[str, object]:
    reader = _Reader(payload)
    model = reader.string()
    names = (
        "max_model_len",
        "vocab_size",
        "block_size",
        "num_blocks",
        "max_num_seqs",
        "max_num_batched_tokens",
    )
    limits = dict(zip(names, reader.unpack("6i"), strict=True))
    names = ("max_tokens", "min_tokens", "temperature", "top_p", "top_k", "seed", "bits")
    defaults = dict(zip(names, reader.unpack("iiffiqB"), strict=True))
    assert reader.unpack("II") == (0, 0)  # neither stop strings nor stop tokens
    names = ("n", "min_p", "presence_penalty", "frequency_penalty", "repetition_penalty")
    defaults |= dict(zip(names, reader.unpack("iffff"), strict=True))
    assert reader.unpack("III") == (0, 0, 0)  # no biases, allowed ids, bad words
    names = ("logprobs", "prompt_logprobs", "stream_interval")
    defaults |= dict(zip(names, reader.unpack("iii"), strict=True))
    assert reader.string() == ""  # cache_salt
    (size,) = reader.unpack("I")
    table = reader.take(size)
    texts = {"vocabulary": reader.string(), "loaded": reader.string()}
    assert reader.at_end
    return {"model": model, **limits, "defaults": defaults, "token_table": table, **texts}


class _Reader:
    def __init__(self, payload: bytes) -> None:
        self.payload = payload
        self.offset = 0

    @property
    def at_end(self) -> bool:
        return self.offset == len(self.payload)

    def take(self, size: int) -> bytes:
        self.offset += size
        assert self.offset <= len(self.payload)
        return self.payload[self.offset - size : self.offset]

    def unpack(self, layout: str) -> tuple[int, ...]:
        return struct.unpack("<" + layout, self.take(struct.calcsize("<" + layout)))

    def ints(self) -> list[int]:
        (count,) = self.unpack("I")
        return list(self.unpack(f"{count}i"))

    def string(self) -> str:
        (size,) = self.unpack("I")
        return self.take(size).decode()


def _ints(values: list[int]) -> bytes:
    return struct.pack(f"<I{len(values)}i", len(values), *values)
