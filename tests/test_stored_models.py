"""Models of a store, as jobs and the commands `models …` use them: in a folder and in S3."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import helper

from batchpredict import s3
from batchpredict.cli import main
from batchpredict.model.registry.cache import Cache
from batchpredict.run.scorer import Scorer
from tests import fault_proxy, models
from tests.commands import receipt

ROWS = 40
# So that a run can be stopped in the middle.
SLOWLY = ("--batch_rows=5", "--workers=1")


def write_adder(directory: Path, number: int, **more: Any) -> Path:
    """`prediction` is x + number."""
    graph = models.model(
        [helper.make_node("Add", ["x", "number"], ["variable"])],
        [models.value("x", "float32", ("N", 1))],
        [models.value("variable", "float32", ("N", 1))],
        [models.tensor("number", np.array([[number]], np.float32))],
    )
    return models.write(directory, graph, **more)


@pytest.fixture(params=["folder", "s3"])
def store(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[str]:
    """Where the store is; the commands find it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if request.param == "folder":
        place = str(tmp_path / "store")
    else:
        place = f"s3://{request.getfixturevalue('s3_bucket')}/our models/"
    monkeypatch.setenv("BATCHPREDICT_MODEL_STORE", place)
    monkeypatch.chdir(tmp_path)
    for number in (100, 200):
        write_adder(tmp_path / str(number), number)
    (tmp_path / "rows.csv").write_text("x\n" + "".join(f"{n}\n" for n in range(ROWS)))
    yield place
    s3.connect_to(None, None)


def printed(capsys: pytest.CaptureFixture[str], *arguments: str) -> Any:
    """What a command gives as JSON."""
    capsys.readouterr()
    assert main(["models", *arguments, "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def refused(capsys: pytest.CaptureFixture[str], code: int, *arguments: str) -> str:
    """The line that a command is refused with."""
    assert main(list(arguments)) == code
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1, lines
    return lines[0]


def scored(model: str, *options: str) -> dict[str, Any]:
    """The receipt of a run, all of whose rows were scored by the version that it names."""
    assert main(["--input_file=rows.csv", f"--model={model}", *options]) == 0
    found = receipt(Path("rows.scored.csv.receipt.json"))
    lines = Path("rows.scored.csv").read_text().splitlines()[1:]
    assert len(lines) == ROWS
    for number, line in enumerate(lines):
        assert float(line.split(",")[1]) == number + 100 * int(found["model"]["version"])
    return found


class TestLife:
    """One model from its first push to its roll-back, as the acceptance asks."""

    def test_push_run_promote_roll_back_run(
        self, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        first = printed(capsys, "push", "100", "adder", "--alias=champion", "--meta=by=us")
        assert (first["version"], first["existed"]) == ("1", False)
        assert scored("adder@champion")["model"] == {
            "name": "adder",
            "version": "1",
            "alias": "champion",
            "sha256": first["model_sha256"],
            "manifest_sha256": first["manifest_sha256"],
            "store": store if s3.is_url(store) else str(tmp_path / "store"),
        }

        second = printed(capsys, "push", "200", "adder")
        assert second["version"] == "2"
        assert scored("adder@champion")["model"]["version"] == "1"
        assert scored("adder")["model"]["version"] == "2"

        printed(capsys, "promote", "adder", "latest", "--alias=champion", "--why=better")
        assert scored("adder@champion")["model"]["version"] == "2"

        blobs = sorted((tmp_path / "cache" / "batchpredict" / "models" / "blobs").iterdir())
        changed = [blob.stat().st_ctime_ns for blob in blobs]
        assert printed(capsys, "rollback", "adder", "--alias=champion")["version"] == "1"
        assert scored("adder@champion")["model"]["version"] == "1"
        assert [blob.stat().st_ctime_ns for blob in blobs] == changed  # nothing was fetched

        (shown,) = printed(capsys, "list", "adder")
        history = {alias["alias"]: alias["history"] for alias in shown["aliases"]}
        assert [(c["action"], c["from"], c["to"], c["why"]) for c in history["champion"]] == [
            ("push", None, "1", ""),
            ("promote", "1", "2", "better"),
            ("rollback", "2", "1", ""),
        ]
        assert [version["metadata"] for version in shown["versions"]] == [{"by": "us"}, {}]

    def test_the_same_again_is_the_same_version(
        self, store: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        printed(capsys, "push", "100", "adder")
        again = printed(capsys, "push", "100", "adder", "--alias=champion")
        assert (again["version"], again["existed"], again["stored_bytes"]) == ("1", True, 0)
        assert scored("adder@champion")["model"]["version"] == "1"

    def test_a_model_that_does_not_load_is_not_pushed(
        self, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        golden = "[[golden]]\nrow = { x = 1 }\nprediction = 5\n"
        write_adder(tmp_path / "wrong", 100, manifest=golden)
        printed(capsys, "push", "200", "adder")
        assert "golden row 1" in refused(capsys, 78, "models", "push", "wrong", "adder")
        (found,) = printed(capsys, "list")
        assert (len(found["versions"]), found["unfinished"]) == (1, [])

    def test_remove_and_verify(
        self, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        for directory in ("100", "200"):
            printed(capsys, "push", directory, "adder")
        assert printed(capsys, "verify", "adder@1")["findings"] == []
        assert "latest names" in refused(capsys, 2, "models", "remove", "adder", "2")
        assert printed(capsys, "remove", "adder", "1")["removed_bytes"] > 0
        assert "no such version" in refused(capsys, 69, "models", "show", "adder@1")
        assert [v["version"] for v in printed(capsys, "show", "adder")["versions"]] == ["2"]

    def test_pull_and_prune(
        self, store: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        printed(capsys, "push", "100", "adder")
        pulled = printed(capsys, "pull", "adder@1")
        directory = Path(pulled["directory"])
        assert (directory / "model.onnx").read_bytes() == (
            tmp_path / "100" / "model.onnx"
        ).read_bytes()
        printed(capsys, "push", "200", "adder")
        assert printed(capsys, "pull", "adder")["version"] == "2"
        pruned = printed(capsys, "prune", "--keep=1")
        assert pruned["removed"] == [["adder", "1"]]
        assert pruned["freed_bytes"] > 0
        assert not directory.exists()
        assert printed(capsys, "pull", "adder@2", "--offline")["version"] == "2"
        assert "--offline" in refused(capsys, 69, "models", "pull", "adder@1", "--offline")


class TestText:
    """What people see; the README shows the rest."""

    def test_control_characters_reach_no_terminal(
        self, store: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert main(["models", "push", "100", "adder", "--meta=k=\x1b[31mred", "--why=a\nb"]) == 0
        assert main(["models", "show", "adder"]) == 0
        shown = capsys.readouterr().out
        assert "k=\\x1b[31mred" in shown
        assert "a\\nb" in shown
        assert "\x1b" not in shown

    def test_no_store(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        assert "pass --model_store" in refused(capsys, 2, "models", "list")

    def test_a_key_twice(self, store: str, capsys: pytest.CaptureFixture[str]) -> None:
        arguments = ("models", "push", "100", "adder", "--meta=a=1", "--meta=a=2")
        assert "twice" in refused(capsys, 2, *arguments)


class TestResume:
    """A run that was stopped goes on with the version it began with."""

    @pytest.fixture
    def stopped(
        self, store: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A run by champion, version 1, is interrupted; then champion is version 2."""
        printed(capsys, "push", "100", "adder", "--alias=champion")
        printed(capsys, "push", "200", "adder")
        infer, calls = Scorer.infer, iter(range(100))

        def interrupted(self: Scorer, *arguments: Any) -> Any:
            if next(calls) == 4:
                raise KeyboardInterrupt
            return infer(self, *arguments)

        with monkeypatch.context() as patch:
            patch.setattr(Scorer, "infer", interrupted)
            arguments = ["--input_file=rows.csv", "--model=adder@champion", *SLOWLY]
            assert main(arguments) == 130
        capsys.readouterr()
        printed(capsys, "promote", "adder", "2", "--alias=champion")

    @pytest.mark.usefixtures("stopped")
    def test_it_goes_on_with_its_version(self, store: str) -> None:
        found = scored("adder@champion", *SLOWLY)
        assert (found["model"]["version"], found["model"]["alias"]) == ("1", "champion")
        assert 0 < found["resumed"]["rows"] < ROWS
        assert scored("adder@champion")["model"]["version"] == "2"

    @pytest.mark.usefixtures("stopped")
    def test_not_if_it_is_to_start_over(self, store: str) -> None:
        assert scored("adder@champion", "--no_resume")["model"]["version"] == "2"

    @pytest.mark.usefixtures("stopped")
    def test_not_if_the_input_has_changed(self, store: str) -> None:
        os.utime("rows.csv", ns=(1, 1))
        found = scored("adder@champion")
        assert (found["model"]["version"], found["resumed"]["rows"]) == ("2", 0)

    @pytest.mark.usefixtures("stopped")
    def test_it_starts_over_where_its_version_cannot_be_had(
        self, store: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        printed(capsys, "remove", "adder", "1")
        assert Cache.of_user().prune(0).removed
        found = scored("adder@champion")
        assert (found["model"]["version"], found["resumed"]["rows"]) == ("2", 0)
        said = capsys.readouterr().out
        assert "version 1, which the interrupted run used, cannot be had any more" in said

    def test_retry_uses_the_version_of_the_run(
        self, store: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        printed(capsys, "push", "100", "adder", "--alias=champion")
        Path("rows.csv").write_text("x\n1\nword\n")
        run = ["--input_file=rows.csv", "--model=adder@champion", "--output_file=out.csv"]
        assert main([*run, "--max_rejects=50%"]) == 3
        capsys.readouterr()
        printed(capsys, "push", "200", "adder", "--alias=champion")
        rejects = Path("out.csv.rejects.jsonl")
        rejects.write_text(rejects.read_text().replace("word", "7"))
        assert main(["retry", "out.csv.receipt.json"]) == 0
        assert Path("out.csv").read_text().split() == ["x,prediction", "1,101", "7,107"]
        cached = os.environ["XDG_CACHE_HOME"]
        held = [str(link.resolve()) for link in Path("/proc/self/fd").iterdir()]
        assert [name for name in held if name.startswith(cached)] == []


@pytest.fixture
def ended(store: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[], None]]:
    """Called, it makes the store go away."""
    if not s3.is_url(store):
        yield lambda: os.rename(store, f"{store}.away")  # noqa: PTH104 - it returns nothing
        return
    with fault_proxy.proxy_of(os.environ["AWS_ENDPOINT_URL"]) as proxy:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        s3.connect_to(None, None)
        yield lambda: proxy.faults.append(fault_proxy.Fault("500"))


class TestUnreachable:
    def test_a_warning_reaches_the_receipt(
        self, store: str, ended: Callable[[], None], capsys: pytest.CaptureFixture[str]
    ) -> None:
        printed(capsys, "push", "100", "adder")
        assert scored("adder")["warnings"] == []
        ended()
        (warning,) = scored("adder")["warnings"]
        assert "version 1 is used" in warning
        assert scored("adder", "--offline")["warnings"] == []
        assert warning in capsys.readouterr().err
        error = refused(capsys, 69, "--input_file=rows.csv", "--model=adder", "--max_model_age=0")
        assert "--max_model_age" in error


class TestRemoveAlias:
    def test_a_slip_of_the_pen(self, store: str, capsys: pytest.CaptureFixture[str]) -> None:
        printed(capsys, "push", "100", "adder", "--alias=chmapion")
        assert "either a VERSION or an --alias" in refused(capsys, 2, "models", "remove", "adder")
        assert printed(capsys, "remove", "adder", "--alias=chmapion")["alias"] == "chmapion"
        (found,) = printed(capsys, "list", "adder")
        assert [alias["alias"] for alias in found["aliases"]] == ["latest"]
        refused(capsys, 69, "models", "remove", "adder", "--alias=chmapion")
