"""What is done to outputs by name, be they files or objects in S3."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Protocol

from batchpredict import s3
from batchpredict.data import drafts as local_drafts
from batchpredict.data.drafts import Draft, Published, remove_abandoned, write_durably
from batchpredict.data.object_drafts import ObjectDraft, SpooledDraft
from batchpredict.data.storage import reason_at
from batchpredict.data.uploads import abort_abandoned
from batchpredict.errors import OutputNotCreatable

logger = logging.getLogger(__name__)

# Of a receipt, which holds no rows.
_MOST_SMALL = 16 << 20


class Publishable(Protocol):
    """An output before it is visible. Raises OutputNotCreatable, OutputWriteFailed, Unavailable."""

    def finish(self) -> Published:
        """Make every byte durable; nothing is visible yet."""
        ...

    def publish(self, name: str | None = None) -> Published:
        """Make what is finished visible, at once, as `name` where that was said to be possible."""
        ...

    def abandon(self) -> None:
        """Leave nothing behind. Harmless after `publish`."""
        ...


class OutputDraft(Publishable, Protocol):
    """An output being written. `stream`: where to write."""

    stream: BinaryIO

    def cut(self) -> int:
        """End the compressed member that is being written: what follows begins another one.

        The bytes stored so far, which hold everything written until now.
        """
        ...


def draft_of(
    name: str,
    compression: str = "",
    *,
    option: str = "--output_file or --output_dir",
    may_be_renamed: bool = False,
) -> OutputDraft:
    """Begin the output `name`. `option` names another place."""
    if not s3.is_url(name):
        return Draft(name, compression, option=option)
    return SpooledDraft(name) if may_be_renamed else ObjectDraft(name, compression)


def write_small(name: str, content: bytes, option: str = "") -> None:
    """Replace a small output at once. Raises OutputNotCreatable, OutputWriteFailed, Unavailable."""
    if s3.is_url(name):
        s3.store().write(s3.parse(name), content)
    else:
        write_durably(Path(name), content, option)


def read_small(name: str) -> bytes | None:
    """What `write_small` has written; None where nothing can be read under this name."""
    try:
        if s3.is_url(name):
            return s3.store().read(s3.parse(name), _MOST_SMALL)[0]
        return Path(name).read_bytes()
    except (OSError, s3.Missing, s3.Denied):  # what is not there is denied to who may not list it
        return None


def remove_output(name: str, *, drafts: bool = True) -> None:
    """Remove an output, if it is there, and what a killed run has left of one.

    `drafts`: the latter too, for which a directory or bucket has to be searched.
    Raises OutputNotCreatable, Unavailable.
    """
    if s3.is_url(name):
        if drafts:
            abort_abandoned(name)
        _remove_object(name)
        return
    try:
        Path(name).unlink(missing_ok=True)
        if drafts:
            remove_abandoned(Path(os.path.realpath(name)))
    except OSError as error:
        raise OutputNotCreatable(
            f"{name}: cannot be removed: {reason_at(Path(name), error)}; remove it"
        ) from error


def _remove_object(name: str) -> None:
    store, address = s3.store(), s3.parse(name)
    try:
        store.head(address)
    except s3.Missing:
        return  # and removed all the same it would get a delete marker, where versions are kept
    except s3.Denied:
        _remove_unseen(address)  # what is not there is denied to who may not list it
    else:
        store.remove(address)


def _remove_unseen(address: s3.Address) -> None:
    try:
        s3.store().remove(address)
    except s3.Denied as error:
        logger.warning(
            "%s; if an earlier run has left it, it is out of date: the receipt says what belongs "
            "to the output",
            error,
        )


def check_creatable(name: str, output_dir: str | None, option: str) -> None:
    """Raise OutputNotCreatable or UsageError where an output could not be created now.

    Of an object only its name is looked at. `option`, `output_dir`: see drafts.check_creatable.
    """
    if not s3.is_url(name):
        local_drafts.check_creatable(name, output_dir, option)
    elif s3.parse(name).key.endswith("/") or not s3.parse(name).key:
        raise OutputNotCreatable(f"{name}: names no object; choose another name with {option}")


def check_buckets(names: Iterable[str]) -> None:
    """Raise OutputNotCreatable where one of these is in no bucket, Unavailable; one call each."""
    urls = [name for name in names if s3.is_url(name)]
    for address in {s3.parse(url).bucket: s3.parse(url) for url in urls}.values():
        try:
            s3.store().check_bucket(address)
        except s3.Missing as error:
            raise OutputNotCreatable(
                f"{address.url}: there is no bucket {address.bucket}; make it, or choose another "
                "place"
            ) from error


def has_directory(name: str) -> bool:
    """Whether there is a directory for the output `name`; an object needs none."""
    if s3.is_url(name):
        return True
    try:
        return Path(name).absolute().parent.is_dir()
    except OSError:  # its mount has gone
        return False
