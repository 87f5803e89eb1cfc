"""Aliases: names that move from version to version, each with its whole history.

An alias is one small object that is changed by compare-and-swap, so that the version it names and
its history change at once and no change is lost to another.
"""

from __future__ import annotations

import getpass
import os
import secrets
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import Any, Literal

from batchpredict.errors import ConfigInvalid
from batchpredict.model.manifest import shown
from batchpredict.model.registry.reference import is_name
from batchpredict.model.registry.versions import canonical, check_keys, json_object

MOST_BYTES = 32 << 20
# Of about 200 bytes each. The oldest go first: nobody rolls back so far.
_MOST_CHANGES = 10_000
# Characters; so that a full history fits into MOST_BYTES, however they are spelled.
_MOST_WHY = 500
_CHANGE = {
    "id": str, "when": str, "who": str, "action": str, "from": str | None, "to": str, "why": str
}  # fmt: skip
_KEYS = {"alias": str, "version": str, "manifest_sha256": str, "history": list}

Action = Literal["push", "promote", "rollback"]


@dataclass(frozen=True)
class Change:
    """`id`: tells equal changes of the same second apart. `when`: UTC, ISO 8601. `before`: the
    version that was named; None where there was none.
    """

    id: str
    when: str
    who: str
    action: str
    before: str | None
    to: str
    why: str


@dataclass(frozen=True)
class Alias:
    """`history`: oldest first, at least one change."""

    alias: str
    version: str
    manifest_sha256: str
    history: tuple[Change, ...]

    def encode(self) -> bytes:
        document = asdict(self)
        for change in document["history"]:
            change["from"] = change.pop("before")
        return canonical(document)

    def past(self) -> tuple[str, ...]:
        """Versions to go back to, the latest last: what was pushed and promoted, without what was
        rolled back and without the version it names now.
        """
        stack: list[str] = []
        for change in self.history:
            if change.action == "rollback":
                while stack and stack[-1] != change.to:
                    stack.pop()
            if not stack or stack[-1] != change.to:
                stack.append(change.to)
        return tuple(stack[:-1])


def moved(
    alias: Alias | None, name: str, to: tuple[str, str], action: Action, why: str = ""
) -> Alias:
    """The alias `name` after it was moved `to` a version and its manifest's sha256."""
    history = alias.history if alias else ()
    before = alias.version if alias else None
    change = Change(secrets.token_hex(4), now(), user(), action, before, to[0], why[:_MOST_WHY])
    return Alias(name, *to, (*history, change)[-_MOST_CHANGES:])


def parse_alias(content: bytes, where: str) -> Alias:
    """Raises ConfigInvalid, which begins with `where`."""
    document = json_object(content, where)
    check_keys(document, _KEYS, where)
    if not (is_name(document["version"]) and is_name(document["alias"]) and document["history"]):
        raise ConfigInvalid(
            f"{where}: the alias {shown(document['alias'])} of version"
            f" {shown(document['version'])} is none; remove it and promote again"
        )
    changes = []
    for entry in document["history"]:
        if not isinstance(entry, dict):
            raise ConfigInvalid(f"{where}: history: {shown(entry)} is no object; promote again")
        check_keys(entry, _CHANGE, f"{where}: history")
        changes.append(_change(entry))
    return Alias(
        document["alias"], document["version"], document["manifest_sha256"], tuple(changes)
    )


def _change(entry: dict[str, Any]) -> Change:
    return Change(before=entry.pop("from"), **entry)


def first_of(
    versions: Iterable[str], exists: Callable[[str], bool]
) -> tuple[str | None, list[str]]:
    """The first version that is there still, and those before it that are not."""
    gone: list[str] = []
    for version in versions:
        if exists(version):
            return version, gone
        gone.append(version)
    return None, gone


def now() -> str:
    """UTC, to the second."""
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def user() -> str:
    """Who changes something: user@host, as this machine calls them."""
    try:
        name = getpass.getuser()
    except (KeyError, OSError):  # containers run as users that have no name
        name = f"uid{os.getuid()}"
    return f"{name}@{os.uname().nodename}"
