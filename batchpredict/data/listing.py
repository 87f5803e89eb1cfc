"""Which objects in S3 a name stands for, by the rules of directories and globs."""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import re
from collections.abc import Sequence

from batchpredict import s3
from batchpredict.errors import InputMissing

_MAGIC = re.compile(r"[*?\[]")
# Of a listing for a hint: what one answer holds.
_MOST_NEAR = 1000


def exists(address: s3.Address) -> bool:
    """Whether there is an object of this very name. Raises Unavailable."""
    try:
        s3.store().head(address)
    except s3.Missing:
        return False
    return True


def directly_below(address: s3.Address) -> list[str]:
    """URLs of the objects of a folder, whose name ends in "/"; not those of its folders.

    Raises InputMissing (there is no such bucket), Unavailable.
    """
    try:
        found = list(s3.store().list(address, directly=True))
    except s3.Missing as error:
        raise InputMissing(str(error)) from error
    return [stored.address.url for stored in found if not stored.address.key.endswith("/")]


def fixed_part(address: s3.Address) -> s3.Address:
    """The folder that a pattern is below, with its "/"; an empty key for the whole bucket."""
    before = _MAGIC.split(address.key, maxsplit=1)[0]
    return s3.Address(address.bucket, before[: before.rfind("/") + 1])


def matching(address: s3.Address) -> list[str]:
    """URLs of the objects that a pattern means. `*`, `?` and `[…]` stay between two "/", `**` is
    any number of folders; none of them means a hidden name.

    Raises InputMissing (there is no such bucket), Unavailable.
    """
    before = _MAGIC.split(address.key, maxsplit=1)[0]
    patterns = address.key.split("/")
    rest = address.key[len(before) :]
    directly = "/" not in rest and "**" not in rest  # what lies deeper need not be listed
    try:
        found = list(s3.store().list(s3.Address(address.bucket, before), directly=directly))
    except s3.Missing as error:
        raise InputMissing(str(error)) from error
    return [s.address.url for s in found if matches(s.address.key.split("/"), patterns)]


def matches(parts: Sequence[str], patterns: Sequence[str]) -> bool:
    """Whether a key is meant by a pattern, both cut at "/"."""
    if not patterns:
        return not parts
    if patterns[0] != "**":
        fits = bool(parts) and _fits(parts[0], patterns[0])
        return fits and matches(parts[1:], patterns[1:])
    if len(patterns) == 1:
        return bool(parts) and all(_fits(part, "*") for part in parts)
    if patterns[1] == "**":  # the second adds nothing, but exponentially many ways to match
        return matches(parts, patterns[1:])
    folders = len(list(itertools.takewhile(lambda part: _fits(part, "*"), parts)))
    return any(matches(parts[skipped:], patterns[1:]) for skipped in range(folders + 1))


def _fits(part: str, pattern: str) -> bool:
    if not _MAGIC.search(pattern):
        return part == pattern
    hidden = part.startswith(".") and not pattern.startswith(".")
    return bool(part) and not hidden and fnmatch.fnmatchcase(part, pattern)


def nearest(address: s3.Address) -> str:
    """A hint for a name that no object has: "; did you mean …?", or nothing."""
    folder = s3.Address(address.bucket, address.key[: address.key.rfind("/") + 1])
    try:
        found = s3.store().list(folder)
        keys = [stored.address.key for stored in itertools.islice(found, _MOST_NEAR)]
    except s3.Missing as error:
        return f" ({error})"
    if any(key.startswith(f"{address.key}/") for key in keys):
        return f"; did you mean {address.url}/?"
    near = difflib.get_close_matches(address.key, keys, 1, cutoff=0.75)
    return f"; did you mean {s3.Address(address.bucket, near[0]).url}?" if near else ""
