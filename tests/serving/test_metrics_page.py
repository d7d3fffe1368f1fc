"""docs/metrics.md, compared with a live server."""

from __future__ import annotations

import re
from pathlib import Path

from metrics_page import Page
from quire.triton.server import TritonServer

PAGE = Path(__file__).parents[2] / "docs" / "metrics.md"
# Labels of every series, and of a histogram's buckets.
EVERYWHERE = {"model_name", "model", "engine", "version", "le"}
OF_TOKENIZERS = {"quire:tokenizer_restarts_total"}
OF_VLLM_BACKEND = [
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_per_output_token_seconds_bucket",
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_params_n_bucket",
]
# By panel: what the queries of "vLLM" (examples/observability in its repository) name.
OF_VLLMS_BOARD = [
    "vllm:e2e_request_latency_seconds_bucket",
    "vllm:e2e_request_latency_seconds_count",
    "vllm:e2e_request_latency_seconds_sum",
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:inter_token_latency_seconds_bucket",
    "vllm:inter_token_latency_seconds_count",
    "vllm:inter_token_latency_seconds_sum",
    "vllm:num_requests_running",
    "vllm:num_requests_waiting",
    "vllm:time_to_first_token_seconds_bucket",
    "vllm:time_to_first_token_seconds_count",
    "vllm:time_to_first_token_seconds_sum",
    "vllm:kv_cache_usage_perc",
    "vllm:request_prompt_tokens_bucket",
    "vllm:request_generation_tokens_bucket",
    "vllm:request_success_total",
    "vllm:request_queue_time_seconds_sum",
    "vllm:request_prefill_time_seconds_sum",
    "vllm:request_decode_time_seconds_sum",
    "vllm:request_max_num_generation_tokens_sum",
]


def test_the_page_lists_every_series(server: TritonServer) -> None:
    """Name, label, kind and model of every series of ours on /metrics stand on the page, and no other."""
    scraped = Page.scrape(server.metrics_url)
    live = set()
    # A tokenizer has the name of its ensemble: only generation has none of TensorRT-LLM's.
    of_trtllm = {name for name, labels in scraped.ours() if ("model_name", "ensemble_trtllm") in labels}
    for (name, labels), _ in scraped.ours().items():
        family = name if name in scraped.kinds() else re.sub("_(bucket|sum|count)$", "", name)
        own = [f"{label}={value}" for label, value in labels if label not in EVERYWHERE]
        role = "either" if family in of_trtllm - OF_TOKENIZERS else "generation"
        role = "tokenizer" if family in OF_TOKENIZERS else role
        if family != "vllm:cache_config_info":  # its labels are settings
            live.add((family, "".join(own), scraped.kinds()[family], role))
    rows = re.findall(
        r"^\| `([\w:]+)` ?(\S*) \| (\w+)(?:, \w+)? \| (\w+) \|", PAGE.read_text("utf-8"), re.MULTILINE
    )
    assert set(rows) == live
    assert len(rows) == len(live)


def test_labels(server: TritonServer) -> None:
    """Every series says what clients call the model, under both names of the label, and which replica and
    version it is."""
    for name, labels in Page.scrape(server.metrics_url).ours():
        given = dict(labels)
        clients_call = "ensemble_trtllm" if given["model_name"] == "ensemble_trtllm" else "ensemble"
        assert given["model_name"] == given["model"] == clients_call, name
        assert (given["engine"], given["version"]) == ("0", "1")


def test_the_buckets_are_those_of_vllm(server: TritonServer) -> None:
    """A histogram has the upper bounds that the page gives its set, and lengths go up to max_model_len."""
    page = PAGE.read_text("utf-8")
    sets = dict(re.findall(r"^\| (\w+) \| ([\d., ]+) \|$", page, re.MULTILINE))
    bounds = {name: [float(bound) for bound in text.split(", ")] for name, text in sets.items()}
    bounds["Lengths"] = [1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000]
    used = dict(re.findall(r"^\| `([\w:]+)` ?\S* \| histogram, (\w+)", page, re.MULTILINE))
    scraped: dict[str, set[float]] = {}
    for name, labels in Page.scrape(server.metrics_url).ours():
        if name.endswith("_bucket"):
            scraped.setdefault(name.removesuffix("_bucket"), set()).add(float(dict(labels)["le"]))
    assert scraped == {name: {*bounds[of], float("inf")} for name, of in used.items()}


def test_the_cache_is_described(server: TritonServer) -> None:
    """vllm:cache_config_info is 1, and has the settings of the cache by vLLM's names."""
    page = Page.scrape(server.metrics_url)
    assert page.value("vllm:cache_config_info", block_size="16", enable_prefix_caching="True") == 1
    [labels] = [dict(labels) for name, labels in page.ours() if name == "vllm:cache_config_info"]
    assert int(labels["num_gpu_blocks"]) == page.value("quire:kv_blocks_total")


def test_what_tritons_vllm_backend_exports(server: TritonServer) -> None:
    """The eight series of Triton's vLLM backend are there, with its names and labels."""
    found = {(name, dict(labels).get("model")) for name, labels in Page.scrape(server.metrics_url).ours()}
    assert found >= {(name, "ensemble") for name in OF_VLLM_BACKEND}


def test_every_query_of_vllms_board_finds_a_series(server: TritonServer) -> None:
    """The series that the Grafana board in vLLM's repository queries are there."""
    names = {name for name, _ in Page.scrape(server.metrics_url).ours()}
    assert names >= set(OF_VLLMS_BOARD)
