"""Two repositories with models of one name (--model-namespacing=true) do not touch each other."""

from __future__ import annotations

import shutil
from pathlib import Path

from backend_server import ROOT, Repository, StartServer


def make_repository(path: Path, name: str) -> Repository:
    """A generation model, and a unary model of a name of its own that uses it."""
    repository = Repository(path / name / "models", vocabulary=f"{name} {name}")
    shutil.rmtree(repository.path / "ensemble")
    shutil.copytree(ROOT / "model_repository" / "generation_unary", repository.path / f"unary_{name}")
    repository.edit(f"unary_{name}", '"generation_unary"', f'"unary_{name}"')
    shutil.move(repository.path / "detokenizer", repository.path / f"text_{name}")
    repository.edit(f"text_{name}", 'name: "detokenizer"', f'name: "text_{name}"')
    return repository


def test_models_of_one_name(start_server: StartServer, tmp_path: Path) -> None:
    """A model finds the generation model of its own repository, and each engine has series of its own."""
    first, second = (make_repository(tmp_path, name) for name in ("a", "b"))
    server = start_server(first, f"--model-repository={second.path}", "--model-namespacing=true").wait_ready()
    for repository, name in ((first, "a"), (second, "b")):
        answer = server.generate(f"unary_{name}", input_ids=[7], max_tokens=2, vocabulary=f"{name} x")
        assert answer["text_output"] == "t7 t7"
        assert len(repository.events("add")) == 1
        assert server.generate(f"text_{name}", output_ids=[5])["text_output"] == "t5"
    error = server.generate_error("unary_a", input_ids=[7], vocabulary="b x")[1]
    assert error.startswith("vocabulary: got ids of the tokenizer of model 'x'; allowed: of model 'a'")
    labels = [dict(given) for name, given in server.page().ours() if name == "quire:kv_blocks_total"]
    assert len(labels) == 2
    assert all(given["model_name"] == given["model"] == "ensemble" for given in labels)
    [named] = [given["namespace"] for given in labels if "namespace" in given]
    assert named in {str(first.path), str(second.path)}


def test_a_name_that_other_repositories_have(start_server: StartServer, tmp_path: Path) -> None:
    """A model whose repository has no such generation model does not get any one of several."""
    first, second = (make_repository(tmp_path, name) for name in ("a", "b"))
    third = tmp_path / "c" / "models"
    third.mkdir(parents=True)
    shutil.move(second.path / "unary_b", third / "unary_b")
    options = [f"--model-repository={path}" for path in (second.path, third)]
    server = start_server(first, *options, "--model-namespacing=true").wait_ready()
    error = server.generate_error("unary_b", input_ids=[7])[1]
    assert error.startswith("generation_model: got 'generation', which several model repositories have")
