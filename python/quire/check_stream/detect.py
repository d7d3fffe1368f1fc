"""From a URL to an adapter: which protocol is spoken there, and which model is asked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any
from urllib.parse import urlsplit

from quire.check_stream.http_client import HttpClient
from quire.check_stream.openai import OpenAI
from quire.check_stream.protocol import Adapter, CheckStreamError, Request, RequestError
from quire.check_stream.triton import TritonGrpc, TritonHttp, grpc_client, takes_text

APIS = ("triton-http", "triton-grpc", "openai", "openai-chat")


def connect(
    url: str,
    *,
    api: str | None = None,
    model: str | None = None,
    timeout: float = 60.0,
    headers: Mapping[str, str] | None = None,
) -> Adapter:
    """An adapter that has reached its server. Raises CheckStreamError saying what was tried."""
    if api is not None and api not in APIS:
        raise CheckStreamError(f"--api: got {api}; allowed: {', '.join(APIS)}")
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    if scheme not in ("", "http", "https", "grpc") or not rest:
        raise CheckStreamError(f"URL: got {url!r}; allowed: http://, https:// or grpc://HOST:PORT")
    try:
        if scheme == "grpc" or api == "triton-grpc":
            return _grpc(urlsplit(f"grpc://{rest}").netloc, model, timeout)
        address = f"{scheme or 'http'}://{rest}".rstrip("/")
        http, asked = _split(HttpClient(base=address, timeout=timeout, headers=headers or {}))
        api = api or asked or _detect(http, url)
        if api == "triton-http":
            return TritonHttp(http, model or _triton_model(http))
        if api == "triton-grpc":
            return _grpc(urlsplit(address).netloc, model, timeout)
        return _openai(http, model, api)
    except RequestError as error:
        raise CheckStreamError(f"{url}: {error}") from error


def _split(http: HttpClient) -> tuple[HttpClient, str | None]:
    """Without the path of an endpoint, and the protocol which that path means."""
    for path, api in (("/v1/chat/completions", "openai-chat"), ("/v1/completions", "openai"), ("/v1", None)):
        if http.base.endswith(path):
            return replace(http, base=http.base.removesuffix(path)), api
    base, found, _ = http.base.partition("/v2")
    return replace(http, base=base), "triton-http" if found else None


def _detect(http: HttpClient, url: str) -> str:
    tried = []
    for path, key, api in (("/v2", "extensions", "triton-http"), ("/v1/models", "data", "openai")):
        try:
            answer = http.ask(path)
            if isinstance(answer, dict) and key in answer:
                return api
            tried.append(f"GET {path}: no {key} in the answer")
        except RequestError as error:
            tried.append(f"GET {path}: {error}")
            if error.lost and "://" not in url:
                return _detect_grpc(http, url, tried)
    hint = "; a gRPC port? then grpc://HOST:PORT" if any("BadStatusLine" in item for item in tried) else ""
    problem = f"neither Triton nor an OpenAI-style server ({'; '.join(tried)}){hint}"
    raise CheckStreamError(f"{url}: {problem.encode('unicode_escape').decode()}")


def _detect_grpc(http: HttpClient, url: str, tried: list[str]) -> str:
    """A bare HOST:PORT that does not speak HTTP."""
    try:
        with grpc_client(urlsplit(http.base).netloc) as client:
            client.is_server_live(client_timeout=min(5.0, http.timeout))
    except RequestError as error:
        raise CheckStreamError(f"{url}: no server found ({'; '.join([*tried, f'gRPC: {error}'])})") from None
    return "triton-grpc"


def _triton_model(http: HttpClient) -> str:
    names = [item["name"] for item in http.ask("/v2/repository/index", {"ready": True})]
    return _choose(names, lambda name: http.ask(f"/v2/models/{name}"))


def _grpc(address: str, model: str | None, timeout: float) -> TritonGrpc:
    if model is None:
        with grpc_client(address) as client:
            index = client.get_model_repository_index(as_json=True).get("models", [])
            names = [item["name"] for item in index if item.get("state") == "READY"]
            model = _choose(names, lambda name: client.get_model_metadata(name, as_json=True))
    return TritonGrpc(address, model, timeout)


def _choose(names: list[str], metadata: Callable[[str], Mapping[str, Any]]) -> str:
    """The ensemble, else the only model that takes text."""
    texts = [name for name in names if takes_text(metadata(name))]
    if "ensemble" in texts:
        return "ensemble"
    if len(texts) == 1:
        return texts[0]
    problem = "several models take text" if texts else "no model takes text_input and gives text_output"
    raise CheckStreamError(f"--model: {problem}; this server has {', '.join(texts or names) or 'none'}")


def _openai(http: HttpClient, model: str | None, api: str) -> OpenAI:
    if model is None:
        listed = http.ask("/v1/models").get("data") or []
        if not listed:
            raise CheckStreamError("--model: the server's /v1/models lists none; give one")
        model = str(listed[0]["id"])
    if api == "openai":
        adapter = OpenAI(http, model, chat=False)
        try:
            adapter.answer(Request(prompt="Hello", max_tokens=1))
            return adapter
        except RequestError as error:
            if error.status not in (404, 405, 501):
                raise
    return OpenAI(http, model, chat=True)
