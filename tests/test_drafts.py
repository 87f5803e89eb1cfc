"""Outputs being written, cut into members that are compressed by themselves."""

from __future__ import annotations

import errno
import gzip
import os
import shutil
import subprocess
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from batchpredict.data.drafts import Draft
from batchpredict.data.locations import DECOMPRESS
from batchpredict.data.object_drafts import ObjectDraft, SpooledDraft
from batchpredict.data.outputs import OutputDraft
from batchpredict.data.sources import source_of
from batchpredict.errors import OutputWriteFailed

TOOLS = {".gz": "gzip", ".bz2": "bzip2", ".xz": "xz", ".zst": "zstd"}


def written(draft: OutputDraft, pieces: list[bytes | None]) -> list[int]:
    """Sizes at each cut, which is what a piece of None stands for."""
    sizes = []
    stream = draft.stream
    try:
        for piece in pieces:
            if piece is None:
                sizes.append(draft.cut())
            else:
                draft.stream.write(piece)
            assert draft.stream is stream
        draft.finish()
        draft.publish()
    finally:
        draft.abandon()
    return sizes


@settings(max_examples=60)
@given(
    st.lists(st.none() | st.binary(max_size=9), max_size=8),
    st.sampled_from(["", *TOOLS]),
)
def test_what_lies_between_two_cuts_stands_alone(pieces: list[bytes | None], kind: str) -> None:
    with TemporaryDirectory() as name:
        path = Path(name) / f"out{kind}"
        sizes = written(Draft(str(path), kind), pieces)
        data = path.read_bytes()
        expected = b"".join(piece for piece in pieces if piece)
        assert source_of(str(path)).open().read() == expected if data else not expected
        assert sizes == sorted(sizes)
        assert data or not kind
        between: list[bytes] = [b""]
        for piece in pieces:
            if piece is None:
                between.append(b"")
            else:
                between[-1] += piece
        borders = [0, *sizes, len(data)]
        for number, content in enumerate(between):
            member = data[borders[number] : borders[number + 1]]
            (Path(name) / f"member{kind}").write_bytes(member)
            if kind and (member or content):
                opened = source_of(str(Path(name) / f"member{kind}")).open()
                assert opened.read() == content
                assert content or not expected  # an empty member is the only one
            else:
                assert member == content


@pytest.mark.parametrize("kind", TOOLS)
def test_the_usual_tools_read_members(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{kind}"
    written(Draft(str(path), kind), [b"one\n", None, b"two\n" * 100_000, None, None, b"three"])
    tool = shutil.which(TOOLS[kind])
    if tool is None:
        pytest.skip(f"{TOOLS[kind]} is not installed")
    out = subprocess.run([tool, "-dc", path], check=True, capture_output=True).stdout
    assert out == b"one\n" + b"two\n" * 100_000 + b"three"


@pytest.mark.parametrize("kind", ["", *TOOLS])
def test_no_byte_is_a_valid_file(kind: str, tmp_path: Path) -> None:
    path = tmp_path / f"out{kind}"
    assert written(Draft(str(path), kind), [None, b"", None]) == [0, 0]
    with path.open("rb") as raw:
        assert (DECOMPRESS[kind](raw) if kind else raw).read() == b""
    assert bool(path.read_bytes()) == bool(kind)


def test_a_pipe_is_cut_too(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    draft = Draft(str(tmp_path / "pipe"), ".gz")
    draft.stream.write(b"one")
    size = draft.cut()
    first = os.read(reader, 1000)
    assert len(first) == size
    assert subprocess.run(["gzip", "-d"], input=first, capture_output=True).stdout == b"one"
    draft.finish()
    draft.abandon()
    assert os.read(reader, 1000) == b""
    os.close(reader)


def test_a_cut_that_fails_is_never_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The end of the member is lost, and closing its compressor again would not write it."""
    draft = Draft(str(tmp_path / "out.gz"), ".gz")
    draft.stream.write(b"one")

    def full(file: int, data: Any) -> int:
        raise OSError(errno.ENOSPC, "full")

    with monkeypatch.context() as patch:
        patch.setattr(os, "write", full)
        with pytest.raises(OutputWriteFailed, match="no space"):
            draft.cut()
    with pytest.raises(OutputWriteFailed, match="is incomplete; "):
        draft.finish()
    draft.abandon()
    assert list(tmp_path.iterdir()) == []


def test_a_cut_that_is_interrupted_is_never_finished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draft = Draft(str(tmp_path / "out.gz"), ".gz")
    draft.stream.write(b"one")

    def interrupted(file: gzip.GzipFile) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(gzip.GzipFile, "close", interrupted)
        with pytest.raises(KeyboardInterrupt):
            draft.cut()
    draft.stream.write(b"two")
    with pytest.raises(OutputWriteFailed, match="is incomplete; "):
        draft.finish()
    draft.abandon()


@pytest.mark.parametrize("kind", ["", ".gz"])
def test_objects_are_cut(kind: str, s3_bucket: str) -> None:
    name = f"s3://{s3_bucket}/out{kind}"
    sizes = written(ObjectDraft(name, kind), [b"one", None, b"two", None])
    assert source_of(name).open().read() == b"onetwo"
    assert 0 < sizes[0] < sizes[1] == source_of(name).size


def test_spooled_objects_are_cut(s3_bucket: str) -> None:
    name = f"s3://{s3_bucket}/out"
    assert written(SpooledDraft(name), [b"one", None, b"two", None, b"3"]) == [3, 6]
    assert source_of(name).open().read() == b"onetwo3"
