"""The cache: each content once, whole or not at all, checked before it is used."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import logging
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from batchpredict.errors import ConfigInvalid, OutputWriteFailed
from batchpredict.model.cache_folder import cache_folder
from batchpredict.model.registry import cache_locks
from batchpredict.model.registry.cache import Cache, Held
from batchpredict.model.registry.resolutions import Asked, Resolution, age_in_words
from batchpredict.model.registry.versions import StoredFile, VersionManifest, made
from tests import stores


def manifest(version: str = "1", name: str = "n", **files: bytes) -> VersionManifest:
    listed = [
        StoredFile(path.replace("__", "/"), len(content), hashlib.sha256(content).hexdigest())
        for path, content in (files or {"a": b"A", "sub__b": b"BB"}).items()
    ]
    return made(
        listed, name=name, version=version, created="", by="", tool="", model_sha256=None,
        metadata={},
    )  # fmt: skip


class Source:
    """What a store would bring, and what was asked of it."""

    def __init__(self, *contents: bytes) -> None:
        self._contents = {hashlib.sha256(c).hexdigest(): c for c in (*contents, b"A", b"BB", b"C")}
        self.asked: list[str] = []
        self.wrong = 0

    def __call__(self, file: StoredFile, path: Path) -> str:
        self.asked.append(file.path)
        content = self._contents[file.sha256]
        if self.wrong:
            self.wrong -= 1
            content = b"?" * len(content)
        path.write_bytes(content)
        return hashlib.sha256(content).hexdigest()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "models")


@pytest.fixture
def source() -> Source:
    return Source()


def names(directory: Path) -> set[str]:
    return {p.relative_to(directory).as_posix() for p in directory.rglob("*") if p.is_file()}


def manifest_above(path: Path) -> Path:
    return next(p / "manifest.json" for p in path.parents if (p / "files").is_dir())


def fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def fetched(cache: Cache, version: VersionManifest, source: Source) -> Held:
    held = cache.hold(version, source)
    held.release()
    return held


def test_a_version_is_fetched_once(cache: Cache, source: Source) -> None:
    assert cache.look(manifest().sha256) is None
    held = fetched(cache, manifest(), source)
    assert held.manifest == manifest()
    assert names(held.directory) == {"a", "sub/b"}
    assert (held.directory / "sub/b").read_bytes() == b"BB"
    assert os.lstat(held.directory / "a").st_mode & 0o777 == 0o444
    assert fetched(cache, manifest(), source).directory == held.directory
    found = cache.look(manifest().sha256)
    assert found is not None
    found.release()
    assert source.asked == ["a", "sub/b"]
    assert (cache.folder / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d17")
    assert not [p for p in (cache.folder / "versions").iterdir() if p.name.startswith(".")]


def test_a_content_that_two_versions_have_is_stored_once(cache: Cache, source: Source) -> None:
    first = fetched(cache, manifest("1", a=b"A", b=b"BB"), source)
    second = fetched(cache, manifest("2", other=b"A", c=b"C"), source)
    assert source.asked == ["a", "b", "c"]
    assert (first.directory / "a").samefile(second.directory / "other")
    assert os.lstat(first.directory / "a").st_nlink == 3


def test_where_there_are_no_links_files_are_copied(
    cache: Cache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any) -> None:
        raise OSError(errno.EMLINK, "too many links")

    monkeypatch.setattr(os, "link", refuse)
    held = fetched(cache, manifest(), source)
    assert (held.directory / "a").read_bytes() == b"A"
    fetched(cache, manifest("2", a=b"A"), source)
    assert source.asked == ["a", "sub/b"]


@pytest.mark.parametrize("name", ["a", "sub/b"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.unlink(),
        lambda path: (path.chmod(0o644), path.write_bytes(b"")),
        lambda path: (path.chmod(0o644), path.write_bytes(b"longer than it was")),
        lambda path: (path.rename(path.with_name("x")), path.symlink_to("x")),
        fifo,
        lambda path: (path.unlink(), path.mkdir()),
        lambda path: path.with_name("more").write_bytes(b""),
        lambda path: path.with_name(".more").write_bytes(b""),
        lambda path: path.with_name("more").symlink_to("/etc"),
        lambda path: manifest_above(path).write_bytes(b"{}"),
        lambda path: manifest_above(path).unlink(),
    ],
)
def test_what_is_damaged_is_fetched_anew(
    cache: Cache,
    source: Source,
    name: str,
    damage: Callable[[Path], Any],
    caplog: pytest.LogCaptureFixture,
) -> None:
    held = fetched(cache, manifest(), source)
    damage(held.directory / name)
    with caplog.at_level(logging.WARNING):
        assert cache.look(manifest().sha256) is None
    assert len(caplog.records) == 1
    again = fetched(cache, manifest(), source)
    assert {p: (again.directory / p).read_bytes() for p in names(again.directory)} == {
        "a": b"A",
        "sub/b": b"BB",
    }
    assert cache.findings(manifest().sha256) == []


def test_a_changed_byte_is_found_and_not_taken_from_a_blob(cache: Cache, source: Source) -> None:
    held = fetched(cache, manifest(), source)
    path = held.directory / "sub/b"
    path.chmod(0o644)
    path.write_bytes(b"BX")
    (finding,) = cache.findings(manifest().sha256)
    assert "sub/b: has other bytes" in finding
    # The blob is the same file. Another version that has it must not get it.
    other = fetched(cache, manifest("2", c=b"BB"), source)
    assert (other.directory / "c").read_bytes() == b"BB"
    cache.renew(manifest(), source).release()
    assert path.read_bytes() == b"BB"
    assert source.asked == ["a", "sub/b", "c"]
    cache.renew(manifest(), source).release()  # another process was faster
    assert source.asked == ["a", "sub/b", "c"]


def test_a_version_that_is_a_link_is_refused(cache: Cache, source: Source, tmp_path: Path) -> None:
    held = fetched(cache, manifest(), source)
    for path in (held.directory, held.directory.parent):
        path.rename(tmp_path / path.name)
        path.symlink_to(tmp_path / path.name)
        assert cache.look(manifest().sha256) is None
        fetched(cache, manifest(), source)
        assert not path.is_symlink()


def test_wrong_bytes_are_fetched_once_more_and_never_used(cache: Cache, source: Source) -> None:
    source.wrong = 1
    fetched(cache, manifest(), source)
    assert source.asked == ["a", "a", "sub/b"]
    source.wrong = 2
    with pytest.raises(ConfigInvalid, match="other bytes than the manifest says"):
        cache.hold(manifest("2", c=b"C"), source)
    assert cache.look(manifest("2", c=b"C").sha256) is None
    assert not list(cache.folder.rglob("*.part"))


def test_a_broken_download_goes_on(cache: Cache) -> None:
    def stops(file: StoredFile, path: Path) -> str:
        path.write_bytes(b"A" * 3)
        raise ConnectionResetError(errno.ECONNRESET, "reset")

    def goes_on(file: StoredFile, path: Path) -> str:
        assert path.read_bytes() == b"A" * 3
        path.write_bytes(b"A" * 5)
        return hashlib.sha256(b"A" * 5).hexdigest()

    with pytest.raises(ConfigInvalid, match="reset"):
        cache.hold(manifest("1", a=b"A" * 5), stops)
    assert cache.look(manifest("1", a=b"A" * 5).sha256) is None
    cache.hold(manifest("1", a=b"A" * 5), goes_on).release()


def test_two_ask_at_once_and_one_fetches(cache: Cache, source: Source) -> None:
    """Here without locks, as some file systems grant them to everybody: it costs a download and
    does no harm."""

    def other_is_faster(file: StoredFile, path: Path) -> str:
        if file.path == "a" and len(source.asked) < 2:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(cache_locks, "lock", lambda descriptor, kind: True)
                other = Cache(cache.folder)
                other.hold(manifest(), source).release()
        return source(file, path)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cache_locks, "lock", lambda descriptor, kind: True)
        held = cache.hold(manifest(), other_is_faster)
    held.release()
    assert cache.findings(manifest().sha256) == []
    assert names(held.directory) == {"a", "sub/b"}


def test_free_disk_is_checked_first(
    cache: Cache, source: Source, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.statvfs

    def nearly_full(path: Any) -> Any:
        found = list(real(path))
        found[1], found[4] = 1, 3  # f_frsize, f_bavail
        return os.statvfs_result(found)

    monkeypatch.setattr(os, "statvfs", nearly_full)
    with pytest.raises(OutputWriteFailed, match="4 bytes are to be fetched and 3 are free"):
        cache.hold(manifest("1", a=b"A" * 4), source)
    assert not source.asked
    # The 3 bytes fit, but not with one per cent to spare.
    with pytest.raises(OutputWriteFailed):
        cache.hold(manifest(), source)


def test_a_disk_that_is_full_and_one_that_is_read_only(
    cache: Cache, source: Source, tmp_path: Path
) -> None:
    def full(file: StoredFile, path: Path) -> str:
        raise OSError(errno.ENOSPC, "no space", str(path))

    with pytest.raises(OutputWriteFailed, match="no space left on device; free some space"):
        cache.hold(manifest(), full)
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigInvalid, match="set XDG_CACHE_HOME"):
        Cache(tmp_path / "file" / "models").hold(manifest(), source)


def test_prune_keeps_what_was_used_last_and_what_is_in_use(cache: Cache, source: Source) -> None:
    versions = [manifest(str(n), a=b"A", own=b"%d" % n) for n in range(1, 6)]
    source = Source(*(b"%d" % n for n in range(1, 6)), b"x")
    other = manifest("1", "m", x=b"x")
    fetched(cache, other, source)
    for age, version in enumerate(versions):
        fetched(cache, version, source)
        path = cache.folder / "versions" / version.sha256 / "manifest.json"
        os.utime(path, (1000 + age, 1000 + age))
    used = cache.look(versions[0].sha256)  # now the last that was used
    in_use = cache.look(versions[1].sha256)
    assert used is not None
    assert in_use is not None
    used.release()
    os.utime(in_use.directory.parent / "manifest.json", (1, 1))
    cache.note(Asked("s", "n", "latest"), Resolution("3", "latest", versions[2].sha256, 0.0))
    cache.note(Asked("s", "n", "1"), Resolution("1", None, versions[0].sha256, 0.0))
    pruned = cache.prune(2)
    assert set(pruned.removed) == {("n", "3"), ("n", "4")}
    assert pruned.in_use == (("n", "2"),)
    assert pruned.freed_bytes > 0
    left = {p.name for p in (cache.folder / "blobs").iterdir()}
    assert left == {hashlib.sha256(c).hexdigest() for c in (b"A", b"x", b"1", b"2", b"5")}
    assert cache.last(Asked("s", "n", "latest")) is None
    assert cache.last(Asked("s", "n", "1")) is not None
    in_use.release()
    assert set(cache.prune(0).removed) == {("n", "1"), ("n", "2"), ("n", "5"), ("m", "1")}
    assert not list((cache.folder / "blobs").iterdir())
    assert not list((cache.folder / "locks").iterdir())
    fetched(cache, versions[0], source)


def test_prune_removes_what_was_left(cache: Cache, source: Source) -> None:
    held = fetched(cache, manifest(), source)
    (cache.folder / "versions" / f".{'0' * 64}.abcd" / "files").mkdir(parents=True)
    busy = cache.folder / "versions" / f".{'1' * 64}.abcd"
    busy.mkdir()
    old, new = (cache.folder / "blobs" / f"{n * 64}.part" for n in "23")
    for path in (old, new, old.with_name(f"{old.name}.parts")):
        path.write_bytes(b"")
    long_ago = time.time() - 8 * 86400
    os.utime(old, (long_ago, long_ago))
    os.utime(f"{old}.parts", (long_ago, long_ago))
    with cache_locks.waiting(cache.folder / "locks" / ("1" * 64), ""):
        pruned = cache.prune(1)
    assert pruned.removed == ()
    assert {p.name for p in (cache.folder / "versions").iterdir()} == {
        busy.name,
        held.directory.parent.name,
    }
    assert new.exists()
    assert not old.exists()
    assert not Path(f"{old}.parts").exists()
    (held.directory.parent / "manifest.json").write_text("damaged")
    assert [name for name, _ in cache.prune(5).removed] == [held.directory.parent.name]
    assert Cache(cache.folder / "none").prune(1).removed == ()


def test_a_version_that_is_pruned_while_it_is_looked_at(
    cache: Cache,
    source: Source,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    fetched(cache, manifest(), source)
    lock = cache_locks.lock

    def pruned_first(descriptor: int, kind: int) -> bool:
        if kind == fcntl.LOCK_SH:
            monkeypatch.setattr(cache_locks, "lock", lock)
            cache.prune(0)
        return lock(descriptor, kind)

    monkeypatch.setattr(cache_locks, "lock", pruned_first)
    with caplog.at_level(logging.WARNING):
        assert cache.look(manifest().sha256) is None
    assert not caplog.records  # it is not damaged
    fetched(cache, manifest(), source)


def test_resolutions(cache: Cache) -> None:
    asked = Asked("store", "n", "latest")
    answer = Resolution("7", "latest", "a" * 64, 12.5)
    assert cache.last(asked) is None
    cache.note(asked, answer)
    assert cache.last(asked) == answer
    for other in (Asked("other", "n", "latest"), Asked("store", "m", "latest")):
        assert cache.last(other) is None
    (path,) = (cache.folder / "resolved").iterdir()
    for damaged in ("", "{}", "[", "null", path.read_text().replace("12.5", '"x"')):
        path.write_text(damaged)
        assert cache.last(asked) is None
    assert age_in_words(3 * 86400 + 5) == "3 days"
    assert age_in_words(3700) == "1 hour"
    assert age_in_words(3) == "less than a minute"


def test_where_it_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert Cache.of_user().folder == tmp_path / "batchpredict" / "models"
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder("x", "").is_relative_to(os.environ["HOME"])


def test_everything_is_where_it_was(cache: Cache, source: Source) -> None:
    fetched(cache, manifest(), source)
    before = stores.everything(cache.folder)
    fetched(cache, manifest(), source)
    assert stores.everything(cache.folder) == before
