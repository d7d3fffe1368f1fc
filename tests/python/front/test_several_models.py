"""quire add-model, remove-model, list: several models in one repository."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from checked_repository import REPOSITORY, checked_model, checked_repository, edit
from quire.cli import app
from quire.runner.memory import available_memory
from quire.runner.plan import MemoryClaim
from quire.triton.check import check_repository
from quire.triton.check_settings import check_claims
from quire.triton.model_copy import add_model, copy_for_model
from quire.triton.repository import parameter, read_configs
from typer.testing import CliRunner


def command(*arguments: object) -> tuple[int, str]:
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.output
    return result.exit_code, result.output


# What /metrics calls the packaged models that have series, in a repository of the model "coder".
NAMED = {"generation": "coder", "tokenizer": "coder", "tokenizer_trtllm": "coder_trtllm"}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return checked_model(tmp_path / "model")


@pytest.fixture
def repository(tmp_path: Path, model: Path) -> Path:
    """Has the models `one` and `two`."""
    folder = tmp_path / "repository"
    for name in ("one", "two"):
        add_model(REPOSITORY, folder, str(model), name, {})
    return folder


def test_added_models(repository: Path) -> None:
    """Each has every packaged model under a name of its own, nothing of them means another's, and nothing
    but the names differs from the packaged ones."""
    assert check_repository(repository) == []
    names = {folder.name for folder in repository.iterdir()}
    assert len(names) == 2 * len(list(REPOSITORY.iterdir()))
    assert {"one", "one_unary", "one-tokenizer", "one-generation", "one-detokenizer"} < names
    assert all(name.startswith(("one", "two")) for name in names)
    for folder in repository.glob("one*"):
        text = (folder / "config.pbtxt").read_text()
        assert "two-" not in text
        rest = folder.name.removeprefix("one").removeprefix("-")
        packaged = f"ensemble{rest}" if rest[:1] in ("", "_") else rest
        original = (REPOSITORY / packaged / "config.pbtxt").read_text()
        for old in ("tokenizer", "generation", "detokenizer", "ensemble"):
            text = text.replace(f"one-{old}", old)
        for before in (
            'name: "',
            "../",
            'served_model_name" value { string_value: "',
            'value: { string_value: "',
        ):
            text = text.replace(f"{before}one", f"{before}ensemble")
        assert original == text


def test_the_name_on_metrics(tmp_path: Path, model: Path) -> None:
    """`quire serve --name` gives the engine's series the name of its ensemble, and so does add-model."""
    copy_for_model(REPOSITORY, tmp_path / "served", str(model), "coder", {})
    add_model(REPOSITORY, tmp_path / "added", str(model), "coder", {})
    for folder, prefix in ((tmp_path / "served", ""), (tmp_path / "added", "coder-")):
        configs, _ = read_configs(folder)
        served = {name: parameter(configs[f"{prefix}{name}"], "served_model_name") for name in NAMED}
        assert served == NAMED


def test_add_and_remove(tmp_path: Path, model: Path) -> None:
    """What add-model writes is listed with its model, remove-model leaves nothing of it, and others stay."""
    folder = tmp_path / "repository"
    for name, length in (("one", 32), ("two", 64)):
        given = ("add-model", model, "--name", name, "--repository", folder)
        status, output = command(*given, "--set", f"max_model_len={length}", "--set", "device=cpu")
        assert status == 0, output
    settings = json.loads((folder / "two-generation" / "1" / "model.json").read_text())
    assert settings == {"model": str(model), "max_model_len": 64, "device": "cpu"}
    status, output = command("list", "--repository", folder, "--url", "http://127.0.0.1:9")
    assert status == 0
    head, *rows = (line.split(maxsplit=3) for line in output.splitlines())
    assert head == ["NAME", "MODEL", "VERSIONS", "STATE"]
    assert rows == [[name, str(model), "1", "no server answers"] for name in ("one", "two")]
    assert command("remove-model", "one", "--repository", folder)[0] == 0
    assert all(path.name.startswith("two") for path in folder.iterdir())
    assert command("remove-model", "two", "--repository", folder)[0] == 0
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--name", "one"], '--name: got "one"; allowed: a name not in use: '),
        (["--name", "one-generation"], '--name: got "one-generation"; allowed: a name not in use: '),
        (["--name", "a/b"], '--name: got "a/b"; allowed: letters, digits, '),
        (["--name", ""], '--name: got ""; allowed: letters, digits, '),
        (
            ["--name", "x", "--set", "max_num_seq=4"],
            'max_num_seq: unknown key (did you mean "max_num_seqs"?)',
        ),
        (["--name", "x", "--repository", str(REPOSITORY)], "--repository: got "),
        (["--name", "x", "--repository", __file__], "--repository: got "),
        (["--name", "x", "--set", "max_model_len=4096000"], "max_model_len: got 4096000; allowed: at most "),
    ],
)
def test_add_refuses(repository: Path, model: Path, arguments: list[str], message: str) -> None:
    """One line names the option or the setting, and the repository stays as it was."""
    before = sorted(repository.rglob("*"))
    status, output = command("add-model", model, "--repository", repository, *arguments)
    assert status == 1
    assert message in output
    assert before == sorted(repository.rglob("*"))


def test_a_broken_model_is_not_added(tmp_path: Path, model: Path) -> None:
    """What `quire check` finds in the model's files keeps it out, unless told not to look."""
    (model / "model.safetensors").write_bytes(b"\0" * 64)
    given = ("add-model", model, "--name", "one", "--repository", tmp_path / "repository")
    status, output = command(*given)
    assert status == 1
    assert "model.safetensors: " in output
    assert not list((tmp_path / "repository").iterdir())
    assert command(*given, "--no-check")[0] == 0


def test_beside_the_packaged_models(tmp_path: Path, model: Path) -> None:
    """A copy of the packaged repository takes further models, lists its own too, and gets back to itself."""
    folder = checked_repository(tmp_path / "repository")
    before = sorted(folder.rglob("*"))
    add_model(REPOSITORY, folder, str(model), "one", {})
    assert check_repository(folder) == []
    listed = command("list", "--repository", folder, "--url", "http://127.0.0.1:9")[1].splitlines()
    assert [line.split()[0] for line in listed] == ["NAME", "ensemble", "one"]
    assert command("remove-model", "one", "--repository", folder)[0] == 0
    assert before == sorted(folder.rglob("*"))
    status, output = command("remove-model", "ensemble", "--repository", folder)
    assert status == 1
    assert output.startswith('NAME: got "ensemble"; allowed: none: ')


def test_memory_is_planned_together(repository: Path, model: Path) -> None:
    """Caches of which each fits, but not both, are refused with the models and the setting; of models that
    are not loaded together nothing is said."""
    size = int(available_memory() * 0.7)
    for name in ("one", "two"):
        settings = {"model": str(model), "kv_cache_memory_bytes": size, "device": "cpu"}
        (repository / f"{name}-generation" / "1" / "model.json").write_text(json.dumps(settings))
    (problem,) = check_repository(repository)
    assert re.match(
        r"kv_cache_memory_bytes: got \d+ \(one-generation/1\), \d+ \(two-generation/1\), which is 1\.\d\d "
        r"of the memory of this machine; allowed: at most 1 together \(\d+ MiB\)",
        problem.message,
    )
    assert check_repository(repository, ["one"]) == []


def test_shares_of_a_gpu() -> None:
    """The shares of one GPU are at most 1 together; those of another one do not count."""

    def claims(*values: float, device: str = "GPU 0") -> dict[str, MemoryClaim]:
        setting = "gpu_memory_utilization"
        return {
            f"model{idx}/1": MemoryClaim(
                device=device, num_bytes=int(80e9 * value), limit=int(80e9), setting=setting, value=value
            )
            for idx, value in enumerate(values)
        }

    assert list(check_claims(claims(0.5, 0.5))) == []
    assert list(check_claims(claims(0.7, 0.2, 0.1))) == []
    assert list(check_claims(claims(0.9) | {"other/1": claims(0.9, device="GPU 1")["model0/1"]})) == []
    (message,) = check_claims(claims(0.9, 0.45))
    assert message == (
        "gpu_memory_utilization: got 0.9 (model0/1), 0.45 (model1/1), which is 1.35 of the memory of GPU 0; "
        "allowed: at most 1 together (76293 MiB)"
    )


def test_remove_refuses(repository: Path) -> None:
    """A name that is not there, and a model that another one needs."""
    status, output = command("remove-model", "tow", "--repository", repository)
    assert (status, output) == (1, 'NAME: got "tow" (did you mean "two"?); allowed: one, two\n')
    edit(repository / "two_unary" / "config.pbtxt", '"two-tokenizer"', '"one-tokenizer"')
    status, output = command("remove-model", "one", "--repository", repository)
    assert (status, output) == (
        1,
        'NAME: got "one", whose one-tokenizer two_unary uses; allowed: a model that no other uses\n',
    )
    assert check_repository(repository, ["one"]) == []
