"""Stores in a folder and in buckets of two servers: the same operations, the same outcome."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchpredict import s3
from batchpredict.errors import ConfigInvalid, TryAgain, Unavailable, UsageError
from batchpredict.model.registry import aliases, pushing, removal
from batchpredict.model.registry.aliases import Alias, moved, parse_alias
from batchpredict.model.registry.bucket import BucketObjects
from batchpredict.model.registry.collecting import collect
from batchpredict.model.registry.pushing import PushOptions, push
from batchpredict.model.registry.reference import (
    Reference,
    is_reference,
    names_selector,
    parse_reference,
)
from batchpredict.model.registry.removal import remove
from batchpredict.model.registry.store import Store, open_store
from batchpredict.model.registry.verification import verify
from batchpredict.model.registry.versions import (
    MOST_FILES,
    StoredFile,
    made,
    parse_manifest,
    unusable_paths,
)
from batchpredict.s3 import Missing, Refused
from tests import stores


def _store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "folder":
        return open_store(str(tmp_path / "store"))
    return open_store(f"s3://{request.getfixturevalue(request.param)}/models")


@pytest.fixture(params=["folder", "s3_bucket", "seaweed_bucket"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    return _store(request, tmp_path)


@pytest.fixture(params=["folder", "s3_bucket"])
def either(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """Where a second server would tell nothing new."""
    return _store(request, tmp_path)


@pytest.fixture
def folder(tmp_path: Path) -> Store:
    return open_store(str(tmp_path / "store"))


@pytest.fixture
def one_write_at_a_time(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """moto looks at a condition and writes in two steps, which S3 does in one."""
    if "s3_bucket" not in request.node.callspec.id:
        return
    write, lock = s3.S3.write, threading.Lock()

    def alone(*arguments: Any, **options: Any) -> str:
        with lock:
            return write(*arguments, **options)

    monkeypatch.setattr(s3.S3, "write", alone)


def version_of(store: Store, reference: str) -> str:
    return store.resolve(parse_reference(reference)).manifest.version


def test_push_promote_roll_back_remove(store: Store, tmp_path: Path) -> None:
    first = stores.pushed(store, stores.model(tmp_path / "a"), metadata={"auc": "0.9"})
    assert (first.manifest.version, first.existed, first.aliases) == ("1", False, ("latest",))
    assert dict(first.manifest.metadata) == {"auc": "0.9"}
    second = stores.pushed(
        store, stores.model(tmp_path / "b", "b", sub__more=b"x"), latest=False, aliases=("next",)
    )
    assert second.manifest.version == "2"
    assert (version_of(store, "reviews"), version_of(store, "reviews@next")) == ("1", "2")
    store.promote("reviews", "1", "champion", "first")
    store.promote("reviews", "2", "champion", "better")
    assert store.resolve(parse_reference("reviews@champion")).alias == "champion"
    back = store.rollback("reviews", "champion", "worse")
    assert (back.alias.version, back.skipped) == ("1", ())
    told = [(c.action, c.before, c.to, c.why) for c in back.alias.history]
    assert told == [
        ("promote", None, "1", "first"),
        ("promote", "1", "2", "better"),
        ("rollback", "2", "1", "worse"),
    ]
    assert all("@" in c.who and c.when.endswith("Z") for c in back.alias.history)
    with pytest.raises(UsageError, match=r"reviews@2: is what next names"):
        remove(store, "reviews", "2")
    store.promote("reviews", "1", "next")
    assert remove(store, "reviews", "2") == second.manifest.size
    assert not stores.keys(store, "reviews/versions/2/")
    with pytest.raises(Missing, match="no such version"):
        store.promote("reviews", "2", "champion")
    (listed,) = store.models()
    assert [manifest.version for manifest in listed.versions] == ["1"]
    assert listed.aliases_of("1") == ("champion", "latest", "next")
    # The number of a removed version never means anything else.
    third = stores.pushed(store, stores.model(tmp_path / "c", "c"))
    assert third.manifest.version == "3"
    again = stores.pushed(store, tmp_path / "b")
    assert again.manifest.version == "4"


def test_the_same_content_is_the_same_version(folder: Store, tmp_path: Path) -> None:
    source = stores.model(tmp_path / "a")
    assert stores.pushed(folder, source).manifest.version == "1"
    before = stores.keys(folder)
    again = stores.pushed(folder, source, aliases=("champion",))
    assert (again.manifest.version, again.existed, again.stored_bytes) == ("1", True, 0)
    assert set(stores.keys(folder)) - set(before) == {"reviews/aliases/champion.json"}
    latest = folder.alias("reviews", "latest")
    assert latest is not None
    assert len(latest.history) == 1
    other = stores.pushed(folder, source, metadata={"by": "hand"})
    assert other.manifest.version == "2"


def test_given_versions(folder: Store, tmp_path: Path) -> None:
    a, b = stores.model(tmp_path / "a"), stores.model(tmp_path / "b", "b")
    assert stores.pushed(folder, a, version="2024-05.rc1").manifest.version == "2024-05.rc1"
    assert stores.pushed(folder, a, version="2024-05.rc1").existed
    with pytest.raises(UsageError, match="is taken and has other files"):
        stores.pushed(folder, b, version="2024-05.rc1")
    assert stores.pushed(folder, b, version="7").manifest.version == "7"
    assert stores.pushed(folder, stores.model(tmp_path / "c", "c")).manifest.version == "8"
    with pytest.raises(UsageError, match="is a version of reviews"):
        folder.promote("reviews", "7", "2024-05.rc1")
    folder.promote("reviews", "7", "champion")
    for wrong in ("champion", "latest", "007", "0", ".x", "a/b", ""):
        with pytest.raises(UsageError):
            stores.pushed(folder, stores.model(tmp_path / "d", "d"), version=wrong)
    with pytest.raises(UsageError, match="digits alone"):
        folder.promote("reviews", "7", "12")
    assert version_of(folder, "reviews@2024-05.rc1") == "2024-05.rc1"


def test_neighbours_do_not_mix(either: Store, tmp_path: Path) -> None:
    stores.pushed(either, stores.model(tmp_path / "a"), "a")
    stores.pushed(either, stores.model(tmp_path / "ab", "ab", extra=b"1"), "ab")
    stores.pushed(either, stores.model(tmp_path / "x", "x"), "a", version="1-b")
    stores.pushed(either, stores.model(tmp_path / "b", "b"), "a")
    assert [model.name for model in either.models()] == ["a", "ab"]
    assert either.versions("a") == ("1", "2", "1-b")
    assert verify(either, Reference("a", "1"))[1] == []
    either.promote("a", "2", "latest")
    remove(either, "a", "1")
    assert verify(either, Reference("ab", "1"))[1] == []
    assert verify(either, Reference("a", "1-b"))[1] == []


def test_what_there_is_not(folder: Store, tmp_path: Path) -> None:
    with pytest.raises(Unavailable):
        version_of(folder, "reviews")
    stores.pushed(folder, stores.model(tmp_path / "a"), latest=False)
    with pytest.raises(Missing, match=r"no such model in .*, did you mean 'reviews'\?.*=\./review"):
        version_of(folder, "review")
    with pytest.raises(Missing, match="reviews@latest: no such alias or version"):
        version_of(folder, "reviews")
    with pytest.raises(Missing, match="reviews@2: no such version"):
        version_of(folder, "reviews@2")
    with pytest.raises(Missing, match="no such alias"):
        folder.rollback("reviews", "champion")
    with pytest.raises(Missing):
        remove(folder, "reviews", "2")
    with pytest.raises(Missing):
        folder.model("others")


def test_only_the_manifest_that_is_given(folder: Store, tmp_path: Path) -> None:
    first = stores.pushed(folder, stores.model(tmp_path / "a")).manifest
    second = stores.pushed(folder, stores.model(tmp_path / "b", "b")).manifest
    assert version_of(folder, f"reviews@2#sha256:{second.sha256}") == "2"
    assert version_of(folder, f"reviews#sha256:{first.sha256}") == "1"
    with pytest.raises(ConfigInvalid, match="is not accepted"):
        version_of(folder, f"reviews@latest#sha256:{first.sha256}")
    with pytest.raises(ConfigInvalid, match="is not accepted"):
        version_of(folder, f"reviews#sha256:{'0' * 64}")


@pytest.mark.usefixtures("one_write_at_a_time")
def test_concurrent_promotes_are_all_in_the_history(store: Store, tmp_path: Path) -> None:
    for version in "123":
        stores.pushed(store, stores.model(tmp_path / version, version))

    def promote(number: int) -> None:
        open_store(store.url).promote("reviews", str(number % 3 + 1), "champion", f"by {number}")

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(promote, range(8)))
    alias = store.alias("reviews", "champion")
    assert alias is not None
    assert sorted(change.why for change in alias.history) == [f"by {n}" for n in range(8)]
    assert [c.before for c in alias.history] == [None, *(c.to for c in alias.history[:-1])]
    assert alias.version == alias.history[-1].to


@pytest.mark.usefixtures("one_write_at_a_time")
def test_concurrent_pushes_converge_or_get_numbers_of_their_own(
    store: Store, tmp_path: Path
) -> None:
    sources = [stores.model(tmp_path / name, name) for name in ("a", "b", "a2", "b2")]
    for same in (2, 3):
        (sources[same] / "batchpredict.toml").write_bytes(
            (sources[same - 2] / "batchpredict.toml").read_bytes()
        )
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda s: stores.pushed(open_store(store.url), s), sources))
    versions = [push.manifest.version for push in found]
    assert versions[:2] == versions[2:]
    assert sorted(set(versions)) == ["1", "2"]
    for version in "12":
        assert verify(store, Reference("reviews", version))[1] == []


def _push(url: str, source: Path) -> pushing.Pushed:
    return stores.pushed(open_store(url), source)


def test_numbers_of_pushes_that_switch_at_every_step(tmp_path: Path) -> None:
    sources = [stores.model(tmp_path / name, name[0]) for name in ("a", "b", "a2", "b2")]
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        for number in range(5):
            url = str(tmp_path / f"store{number}")
            with ThreadPoolExecutor(4) as pool:
                found = list(pool.map(partial(_push, url), sources))
            versions = [push.manifest.version for push in found]
            assert versions[:2] == versions[2:]
            assert sorted(set(versions)) == ["1", "2"]
    finally:
        sys.setswitchinterval(interval)


def test_a_killed_push_is_gone_on_with(either: Store, tmp_path: Path) -> None:
    source = stores.model(tmp_path / "a", z=b"last")
    os.utime(source / "z", (1, 1))
    os.utime(source / "model.onnx", (1, 1))

    class Killed(BaseException):
        pass

    upload = either.objects.upload

    def stopped(path: Path, key: str, watch: Callable[[int], None]) -> None:
        if key.endswith("/z"):
            raise Killed
        upload(path, key, watch)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(either.objects, "upload", stopped)
        with pytest.raises(Killed):
            stores.pushed(either, source)
    assert either.model("reviews").versions == ()
    assert either.model("reviews").unfinished == ("1",)
    with pytest.raises(Missing):
        version_of(either, "reviews@1")
    other = stores.pushed(either, stores.model(tmp_path / "b", "b"))
    assert other.manifest.version == "2"
    again = stores.pushed(either, source)
    assert (again.manifest.version, again.existed) == ("1", False)
    assert again.stored_bytes <= again.manifest.size - (source / "model.onnx").stat().st_size
    assert verify(either, Reference("reviews", "1"))[1] == []


def test_a_file_that_was_another_one_when_a_push_was_killed(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = stores.model(tmp_path / "a")
    with monkeypatch.context() as patch:
        patch.setattr(pushing, "_finish", lambda *_: sys.exit(1))
        with pytest.raises(SystemExit):
            stores.pushed(folder, source)
    stored = tmp_path / "store" / "reviews" / "versions" / "1" / "model.onnx"
    stored.write_bytes(b"x" * stored.stat().st_size)
    os.utime(stored, (1, 1))
    assert stores.pushed(folder, source).manifest.version == "1"
    assert verify(folder, Reference("reviews", "1"))[1] == []


def test_verify_finds_what_was_changed(either: Store, tmp_path: Path) -> None:
    source = stores.model(tmp_path / "a", one=b"1", two=b"2", three=b"3")
    stores.pushed(either, source)
    at = "reviews/versions/1/"
    for key, content in (("one", b"7"), ("two", b"22"), ("four", b"4"), ("sub/5", b"5")):
        (tmp_path / "changed").write_bytes(content)
        either.objects.upload(tmp_path / "changed", at + key, lambda _: None)
    either.objects.remove(f"{at}three")
    manifest, findings = verify(either, Reference("reviews"))
    assert manifest is not None
    assert [f.split(" ")[0] for f in findings] == ["four:", "sub/5:", "one:", "three:", "two:"]
    content, _ = either.objects.read(f"{at}manifest.json", 1 << 20)
    other = json.loads(content) | {"by": "somebody else"}
    (tmp_path / "changed").write_text(json.dumps(other))
    either.objects.upload(tmp_path / "changed", f"{at}manifest.json", lambda _: None)
    manifest, findings = verify(either, Reference("reviews"))
    assert manifest is None
    assert "is not the one that was promoted" in findings[0]


@pytest.mark.parametrize(
    ("actions", "past"),
    [
        (["1"], []),
        (["1", "2", "3"], ["1", "2"]),
        (["1", "2", "3", "<2"], ["1"]),
        (["1", "2", "3", "<2", "<1"], []),
        (["1", "2", "3", "<2", "4"], ["1", "2"]),
        (["1", "2", "3", "<2", "4", "<2", "<1"], []),
        (["1", "2", "2", "1"], ["1", "2"]),
        (["1", "2", "3", "<1"], []),  # 2 had been removed
    ],
)
def test_rolling_back_goes_further_each_time(actions: list[str], past: list[str]) -> None:
    alias: Alias | None = None
    for action in actions:
        kind: aliases.Action = "rollback" if action[0] == "<" else "promote"
        alias = moved(alias, "champion", (action.lstrip("<"), "0" * 64), kind)
    assert alias is not None
    assert list(alias.past()) == past
    assert parse_alias(alias.encode(), "here") == alias


def test_rollback_skips_what_was_removed(folder: Store, tmp_path: Path) -> None:
    for version in "123":
        stores.pushed(folder, stores.model(tmp_path / version, version))
    remove(folder, "reviews", "2")
    back = folder.rollback("reviews", "latest")
    assert (back.alias.version, back.skipped) == ("1", ("2",))
    with pytest.raises(ConfigInvalid, match="nothing to go back to from version 1"):
        folder.rollback("reviews", "latest")


def test_no_push_where_one_of_its_aliases_is_damaged(folder: Store, tmp_path: Path) -> None:
    stores.pushed(folder, stores.model(tmp_path / "1", "1"), aliases=("champion",))
    (tmp_path / "store" / "reviews" / "aliases" / "champion.json").write_text("{}")
    with pytest.raises(ConfigInvalid, match="champion"):
        stores.pushed(folder, stores.model(tmp_path / "2", "2"), aliases=("champion",))
    assert folder.versions("reviews") == ("1",)


def test_a_rollback_never_ends_where_it_began(folder: Store, tmp_path: Path) -> None:
    for version in "12":
        stores.pushed(folder, stores.model(tmp_path / version, version))
    folder.promote("reviews", "1", "latest")
    remove(folder, "reviews", "2")
    with pytest.raises(ConfigInvalid, match=r"nothing to go back to .*\(2 have been removed"):
        folder.rollback("reviews", "latest")


def test_what_is_damaged_or_unfinished_hides_nothing_and_can_be_removed(
    folder: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for version in "123":
        stores.pushed(folder, stores.model(tmp_path / version, version))
    versions = tmp_path / "store" / "reviews" / "versions"
    (versions / "1" / "manifest.json").write_text("{}")
    (versions / "2" / "manifest.json").unlink()
    (model,) = folder.models()
    assert [manifest.version for manifest in model.versions] == ["3"]
    assert model.unfinished == ("1", "2")
    assert "only layout 1" in caplog.text
    for version in "12":
        assert remove(folder, "reviews", version) > 0
    assert folder.model("reviews").unfinished == ()
    assert stores.pushed(folder, stores.model(tmp_path / "again", "1")).manifest.version == "4"
    with pytest.raises(Missing):
        remove(folder, "reviews", "9")


def test_a_promotion_during_a_removal_wins(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in "12":
        stores.pushed(folder, stores.model(tmp_path / version, version))
    mark = removal._mark
    promoted: list[Alias] = []

    def promote_meanwhile(store: Store, name: str, version: str, removed: str | None) -> None:
        if not promoted:
            promoted.append(folder.promote("reviews", "1", "champion"))
        mark(store, name, version, removed)

    monkeypatch.setattr(removal, "_mark", promote_meanwhile)
    with pytest.raises(UsageError, match="champion names"):
        remove(folder, "reviews", "1")
    assert verify(folder, Reference("reviews", "champion"))[1] == []
    assert stores.pushed(folder, tmp_path / "1").existed


def test_a_promotion_of_what_is_removed_meanwhile_is_undone(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for version in "123":
        stores.pushed(folder, stores.model(tmp_path / version, version))
    folder.promote("reviews", "1", "champion")
    create, replace = folder.objects.create, folder.objects.replace

    def removed_first(key: str, content: bytes, etag: str) -> None:
        monkeypatch.setattr(folder.objects, "replace", replace)
        remove(folder, "reviews", "2")
        replace(key, content, etag)

    monkeypatch.setattr(folder.objects, "replace", removed_first)
    with pytest.raises(Unavailable, match="version 2 was removed at the same time"):
        folder.promote("reviews", "2", "champion")
    assert version_of(folder, "reviews@champion") == "1"
    stores.pushed(folder, stores.model(tmp_path / "4", "4"))

    def removed_again(key: str, content: bytes) -> None:
        monkeypatch.setattr(folder.objects, "create", create)
        folder.promote("reviews", "4", "latest")
        remove(folder, "reviews", "3")
        create(key, content)

    monkeypatch.setattr(folder.objects, "create", removed_again)
    with pytest.raises(Unavailable, match="version 3 was removed at the same time"):
        folder.promote("reviews", "3", "new")
    assert folder.alias("reviews", "new") is None


@pytest.mark.parametrize("operation", ["create", "replace"])
def test_a_change_whose_answer_was_lost_is_made_once(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, operation: str
) -> None:
    for version in "12":
        stores.pushed(folder, stores.model(tmp_path / version, version))
    if operation == "replace":
        folder.promote("reviews", "1", "champion")
    change = getattr(folder.objects, operation)

    def lost(*arguments: Any) -> None:
        monkeypatch.setattr(folder.objects, operation, change)
        change(*arguments)
        raise Refused("of the second attempt")

    monkeypatch.setattr(folder.objects, operation, lost)
    changed = folder.promote("reviews", "2", "champion")
    assert [c.to for c in changed.history] == (["1", "2"] if operation == "replace" else ["2"])


def test_a_push_whose_version_is_removed_meanwhile(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two pushes of the same: one has ended, and the version was removed, while the other goes
    on."""
    source = stores.model(tmp_path / "a")
    finish = pushing._finish

    def removed_first(*arguments: Any) -> Any:
        monkeypatch.setattr(pushing, "_finish", finish)
        stores.pushed(folder, source, latest=False)
        remove(folder, "reviews", "1")
        return finish(*arguments)

    monkeypatch.setattr(pushing, "_finish", removed_first)
    with pytest.raises(TryAgain, match="removed"):
        stores.pushed(folder, source)
    assert not folder.exists("reviews", "1")
    assert stores.pushed(folder, source).manifest.version == "2"


def test_a_killed_removal_is_gone_on_with(
    folder: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores.pushed(folder, stores.model(tmp_path / "a"), latest=False)
    delete = folder.objects.remove

    def killed(key: str) -> None:
        delete(key)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(folder.objects, "remove", killed)
        with pytest.raises(KeyboardInterrupt):
            remove(folder, "reviews", "1")
    assert not folder.exists("reviews", "1")
    assert remove(folder, "reviews", "1") > 0
    assert not stores.keys(folder, "reviews/versions/")


def test_what_is_pushed(folder: Store, tmp_path: Path) -> None:
    source = stores.model(tmp_path / "a", deep__er__file=b"1")
    (source / ".git").mkdir()
    (source / ".git" / "config").write_text("")
    (source / ".hidden").write_text("")
    (source / "link.json").symlink_to("config.json")
    found = collect(source)
    assert found.hidden == (".git", ".hidden")
    assert [file.path for file in found.files] == [
        "batchpredict.toml",
        "config.json",
        "deep/er/file",
        "link.json",
        "model.onnx",
        "tokenizer.json",
    ]
    assert found.package.digest
    for file in found.files:
        assert hashlib.sha256(found.path(file).read_bytes()).hexdigest() == file.sha256
    alone = collect(source / "model.onnx")
    assert {file.path for file in alone.files} == {name for name, _, _ in alone.package.files}
    assert "deep/er/file" not in {file.path for file in alone.files}


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda d: (d / "x").symlink_to("/etc/passwd"), "outside of the model's directory"),
        (lambda d: (d / "x").symlink_to(d.parent), "outside|a directory"),
        (lambda d: os.mkfifo(d / "x"), "is a FIFO"),
        (lambda d: (d / "manifest.json").write_text("{}"), "version's own manifest.json"),
        (lambda d: (d / "a\nb").write_text("{}"), "not allowed"),
        (lambda d: (d / "MODEL.ONNX").write_text("{}"), "are one on some file systems"),
        (lambda d: (d / os.fsdecode(b"\xff")).write_text("{}"), "is not UTF-8"),
    ],
)
def test_what_is_not_pushed(tmp_path: Path, wrong: Callable[[Path], Any], says: str) -> None:
    source = stores.model(tmp_path / "a")
    wrong(source)
    with pytest.raises(ConfigInvalid, match=says):
        collect(source)


@pytest.mark.parametrize("when", ["before", "meanwhile"])
def test_a_file_that_changes_is_not_pushed(folder: Store, tmp_path: Path, when: str) -> None:
    source = stores.model(tmp_path / "a", z=b"1" * 1000)
    found = collect(source)
    upload = folder.objects.upload

    def changing(path: Path, key: str, watch: Callable[[int], None]) -> None:
        upload(path, key, watch)
        if path.name == "z":
            path.write_bytes(b"2" * 1000)

    if when == "before":
        (source / "z").write_bytes(b"2" * 1000)
    else:
        folder.objects.upload = changing  # type: ignore[method-assign]
    with pytest.raises(TryAgain, match="has changed while it was pushed"):
        push(folder, found, "reviews", PushOptions())
    assert not folder.exists("reviews", "1")
    assert not any(key.endswith("/z") for key in stores.keys(folder))


# --- manifests of strangers


def document(**changes: Any) -> dict[str, Any]:
    file = StoredFile("model.onnx", 3, "a" * 64)
    manifest = made(
        [file], name="n", version="1", created="", by="", tool="", model_sha256=None, metadata={}
    )
    return {**json.loads(manifest.content), **changes}


@pytest.mark.parametrize(
    "path",
    ["../x", "a/../x", "/x", "a//x", "./x", "a\\x", "x\0", "", "a/", ".x", "a/.x", " x", "x\n",
     "x" * 600, "manifest.json", "MANIFEST.JSON", "a\u2028b", "\ud800"],
)  # fmt: skip
def test_paths_that_are_refused(path: str) -> None:
    files = [{"path": path, "size": 3, "sha256": "a" * 64}]
    with pytest.raises(ConfigInvalid, match=r"^here: .*\Z") as caught:
        parse_manifest(json.dumps(document(files=files)).encode(), "here")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "paths", [["a", "a"], ["a", "A"], ["a", "a/b"], ["é", "e\u0301"], ["a/b", "A/B"], ["A", "a/b"]]
)
def test_paths_that_are_one(paths: list[str]) -> None:
    assert unusable_paths(paths)


@pytest.mark.parametrize(
    "change",
    [
        {"manifest": 2}, {"manifest": True}, {"name": "../x"}, {"version": ""}, {"files": []},
        {"files": None}, {"files": [3]}, {"metadata": {"a": 1}}, {"metadata": []}, {"more": 1},
        {"model_sha256": "x"}, {"created": None},
        {"files": [{"path": "a", "size": -1, "sha256": "a" * 64}]},
        {"files": [{"path": "a", "size": True, "sha256": "a" * 64}]},
        {"files": [{"path": "a", "size": 1.5, "sha256": "a" * 64}]},
        {"files": [{"path": "a", "size": 10**30, "sha256": "a" * 64}]},
        {"files": [{"path": "a", "size": 1, "sha256": "A" * 64}]},
        {"files": [{"path": "a", "size": 1, "sha256": "a" * 64, "url": "x"}]},
        {"files": [{"path": str(n), "size": 1, "sha256": "a" * 64} for n in range(MOST_FILES + 1)]},
    ],
)  # fmt: skip
def test_manifests_that_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigInvalid, match=r"^here: "):
        parse_manifest(json.dumps(document(**change)).encode(), "here")


@pytest.mark.parametrize("content", [b"", b"[]", b"[" * 100_000, b'{"a":' * 9999, b"\xff", b"NaN"])
def test_what_is_no_manifest(content: bytes) -> None:
    with pytest.raises(ConfigInvalid, match=r"^here: "):
        parse_manifest(content, "here")
    with pytest.raises(ConfigInvalid, match=r"^here: "):
        parse_alias(content, "here")


names = st.text("ab/.\\AÄé\u0301 \n", max_size=8)


@given(st.lists(names, max_size=5))
def test_paths_that_are_usable_stay_where_they_belong(paths: list[str]) -> None:
    if unusable_paths(paths) is None:
        for path in paths:
            assert os.path.normpath(f"/root/{path}") == f"/root/{path}"
        assert len({path.casefold() for path in paths}) == len(paths)


def test_a_manifest_of_another_version(folder: Store, tmp_path: Path) -> None:
    stores.pushed(folder, stores.model(tmp_path / "a"))
    root = tmp_path / "store" / "reviews" / "versions"
    (root / "1").rename(root / "2")
    with pytest.raises(ConfigInvalid, match="is the manifest of reviews@1"):
        version_of(folder, "reviews@2")


# --- references


@given(st.text(max_size=20))
def test_references_are_parsed_or_refused(text: str) -> None:
    try:
        found = parse_reference(text)
    except UsageError:
        return
    assert str(found) == text
    assert is_reference(text) or text.endswith(".onnx")


@pytest.mark.parametrize(
    "text", ["", "a@", "@b", "a b", "a#", "a#sha256:12", f"a#sha256:{'G' * 64}", "a@b@c", "-a",
             f"a@b#sha256:{'a' * 65}", "a" * 65, "a\n", "ä", "a.onnx", "a.onnx@1"]
)  # fmt: skip
def test_references_that_are_refused(text: str) -> None:
    with pytest.raises(UsageError):
        parse_reference(text)


def test_what_is_a_reference() -> None:
    for text in ("reviews", "reviews@7", f"reviews#sha256:{'a' * 64}", "a.b"):
        assert is_reference(text)
    for text in ("./reviews", "a/b", "model.onnx", "~x", ".", "..", "s3://a/b", ""):
        assert not is_reference(text)
    assert names_selector("reviews@7")
    assert not names_selector("reviews")


# --- folders


def test_links_in_a_store_are_refused(folder: Store, tmp_path: Path) -> None:
    stores.pushed(folder, stores.model(tmp_path / "a"))
    version = tmp_path / "store" / "reviews" / "versions" / "1"
    (tmp_path / "secret").write_text("")
    (version / "link").symlink_to(tmp_path / "secret")
    (finding,) = verify(folder, Reference("reviews"))[1]
    assert "a link has no place" in finding
    (version / "link").unlink()
    version.rename(tmp_path / "elsewhere")
    version.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigInvalid, match="a link has no place"):
        version_of(folder, "reviews@1")


def test_a_folder_that_is_not_mounted(tmp_path: Path) -> None:
    for there in (False, True):
        if there:
            (tmp_path / "store").mkdir()
        with pytest.raises(Unavailable, match="check the mount") as caught:
            version_of(open_store(str(tmp_path / "store")), "reviews")
        assert not isinstance(caught.value, Missing)


def test_drafts_of_killed_pushes_are_removed(folder: Store, tmp_path: Path) -> None:
    stores.pushed(folder, stores.model(tmp_path / "a"))
    claims = tmp_path / "store" / "reviews" / "aliases"
    (claims / ".champion.json.00000000.part").write_text("half")
    assert stores.keys(folder, "reviews/aliases/") == ["reviews/aliases/latest.json"]
    folder.promote("reviews", "1", "champion")
    assert sorted(p.name for p in claims.iterdir()) == ["champion.json", "latest.json"]


# --- servers without conditions


class _Unconditional:
    """What s3.store() gives, of a server that ignores conditions or refuses to know them."""

    def __init__(self, real: Any, after_write: Callable[[str], None]) -> None:
        self._real = real
        self._after = after_write

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def is_conditional(self, folder: Any) -> bool:
        return False

    def write(self, address: Any, content: bytes, **conditions: Any) -> str:
        assert not conditions
        etag: str = self._real.write(address, content)
        self._after(address.key)
        return etag


def test_a_server_without_conditions_is_told_and_safe_for_one_writer(
    s3_bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    real = s3.store()
    others: list[Callable[[str], None]] = [lambda _: None]
    monkeypatch.setattr(s3, "store", lambda: _Unconditional(real, lambda key: others[0](key)))
    store = open_store(f"s3://{s3_bucket}/")
    with caplog.at_level(logging.WARNING):
        stores.pushed(store, stores.model(tmp_path / "a"))
        stores.pushed(store, stores.model(tmp_path / "b", "b"))
        store.promote("reviews", "1", "champion")
        store.promote("reviews", "2", "champion")
        store.rollback("reviews", "champion")
    assert version_of(store, "reviews@champion") == "1"
    assert len([r for r in caplog.records if "only one process at a time" in r.message]) == 1
    objects = store.objects
    assert isinstance(objects, BucketObjects)
    with pytest.raises(Refused):
        objects.create("reviews/aliases/champion.json", b"")
    with pytest.raises(Refused):
        objects.replace("reviews/aliases/champion.json", b"", '"0"')

    def overwrite(key: str) -> None:
        others[0] = lambda _: None
        alias = store.alias("reviews", "champion")
        other = moved(alias, "champion", ("2", "0" * 64), "promote", "the other")
        real.write(s3.Address(s3_bucket, key), other.encode())

    # What is overwritten between writing and looking is noticed, and done again on top.
    others[0] = overwrite
    store.promote("reviews", "2", "champion", "mine")
    alias = store.alias("reviews", "champion")
    assert alias is not None
    assert [change.why for change in alias.history[-2:]].count("mine") >= 1


def test_threads_share_a_store(folder: Store, tmp_path: Path) -> None:
    stores.pushed(folder, stores.model(tmp_path / "a"))
    found: list[str] = []
    threads = [
        threading.Thread(target=lambda: found.append(version_of(folder, "reviews")))
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["1"] * 4


def test_a_full_history_can_be_read(folder: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However long the reasons are, and whatever they are made of."""
    found = None
    for _ in range(50):
        found = aliases.moved(found, "latest", ("1", "0" * 64), "promote", "\x01" * 5000)
    assert found is not None
    assert len(found.encode()) / 50 * aliases._MOST_CHANGES < aliases.MOST_BYTES
