"""How a model of a store is named: NAME, NAME@ALIAS, NAME@VERSION, each with #sha256:DIGEST."""

from __future__ import annotations

import re
from dataclasses import dataclass

from batchpredict.errors import UsageError

LATEST = "latest"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_NUMBER = re.compile(r"[1-9][0-9]{0,17}")
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_RULE = "1 to 64 letters, digits, dots, dashes and underscores, the first a letter or digit"


@dataclass(frozen=True)
class Reference:
    """`selector`: an alias or a version; None where none is given, which means `latest`.

    `manifest_sha256`: the only manifest that is accepted; None where any is.
    """

    name: str
    selector: str | None = None
    manifest_sha256: str | None = None

    def __str__(self) -> str:
        selector = f"@{self.selector}" if self.selector else ""
        digest = f"#sha256:{self.manifest_sha256}" if self.manifest_sha256 else ""
        return f"{self.name}{selector}{digest}"


def is_reference(text: str) -> bool:
    """Whether a store is meant, where there is one: everything else is a path or a URL."""
    return bool(text) and "/" not in text and not text.endswith(".onnx") and text[0] not in "~."


def names_selector(text: str) -> bool:
    """Whether this cannot be meant as a path, but for a file with an unusual name."""
    return is_reference(text) and ("@" in text or "#sha256:" in text)


def parse_reference(text: str) -> Reference:
    """Raises UsageError."""
    rest, sharp, digest = text.partition("#")
    name, at, selector = rest.partition("@")
    found = _DIGEST.fullmatch(digest)
    if sharp and not found:
        raise UsageError(f"{text!r}: after # comes sha256: and 64 hexadecimal digits (0-9, a-f)")
    check_model(name)
    if at:
        check_name(selector, "an alias or version")
    return Reference(name, selector if at else None, found[1] if found else None)


def is_number(version: str) -> bool:
    """Whether it is a version as they are counted: 1, 2, …"""
    return _NUMBER.fullmatch(version) is not None


def is_name(text: str) -> bool:
    return _NAME.fullmatch(text) is not None


def check_name(text: str, what: str) -> None:
    """Raises UsageError where it is no name of a model or version."""
    if not is_name(text):
        raise UsageError(f"{text!r}: does not name {what}: {_RULE}")


def check_model(text: str) -> None:
    """Raises UsageError where `--model` could not name a model of a store so."""
    check_name(text, "a model")
    if not is_reference(text):
        raise UsageError(f"{text!r}: does not name a model of a store: .onnx at its end is a path")


def check_alias(text: str) -> None:
    """Raises UsageError where it is no name of an alias: digits alone are versions."""
    check_name(text, "an alias")
    if text.isdigit():
        raise UsageError(f"{text!r}: is no name of an alias, digits alone are versions")


def check_version(text: str) -> None:
    """Raises UsageError where it is no name of a version: 07 would be taken for 7."""
    check_name(text, "a version")
    if text.isdigit() and not is_number(text):
        raise UsageError(f"{text!r}: is no version; numbers start at 1 and have no leading zeros")
