"""The verb ``pull``: words on stderr, one JSON object, exit codes."""

import json
from pathlib import Path

import pytest

from latticeq.cli.main import main
from latticeq.errors import LatticeqError


def test_pull_reports_where_the_model_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "model.safetensors").write_bytes(bytes(1234))
    monkeypatch.setattr("latticeq.model.pull.pull", lambda _, revision: tmp_path)
    assert main(["pull", "some-model", "--json"]) == 0
    out, err = capsys.readouterr()
    result = json.loads(out)
    assert result.pop("seconds") >= 0
    expected = {"name": "some-model", "folder": str(tmp_path), "nbytes": 1234, "origin": None}
    assert result == expected
    assert f"some-model is in {tmp_path}" in err


@pytest.mark.parametrize(
    ("failure", "code"),
    [(LatticeqError("the index is away"), 1), (KeyboardInterrupt(), 130)],
)
def test_failures_have_exit_codes(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    failure: BaseException,
    code: int,
) -> None:
    def pull(_: str, revision: str | None) -> None:
        raise failure

    monkeypatch.setattr("latticeq.model.pull.pull", pull)
    assert main(["pull", "some-model"]) == code
    out, err = capsys.readouterr()
    assert out == ""
    assert "the index is away" in err or "Run the same command to go on" in err


def test_unknown_name_is_wrong_usage(
    cache_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["pull", "no-such-model"]) == 2
    assert "no model is named 'no-such-model'" in capsys.readouterr().err
    assert list(cache_folder.iterdir()) == []


def test_pull_takes_a_revision_and_says_which_commit_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    origin = {"name": "org/model", "revision": "v1.0", "commit": 40 * "a"}
    (tmp_path / "hub.json").write_text(json.dumps(origin))
    seen = []

    def pull(name: str, revision: str | None) -> Path:
        seen.append((name, revision))
        return tmp_path

    monkeypatch.setattr("latticeq.model.pull.pull", pull)
    assert main(["pull", "org/model", "--revision", "v1.0", "--json"]) == 0
    assert seen == [("org/model", "v1.0")]
    assert json.loads(capsys.readouterr().out)["origin"] == origin
