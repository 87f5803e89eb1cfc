"""Where this user's caches are."""

from __future__ import annotations

import os
from pathlib import Path

from batchpredict.errors import ConfigInvalid


def cache_folder(kind: str, purpose: str) -> Path:
    """The folder for one kind of cached files, which need not exist.

    `purpose` begins the message where the user has no home: "--precision=int8 keeps its variant".
    Raises ConfigInvalid.
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    # A relative path is to be ignored (XDG Base Directory Specification).
    if Path(base).is_absolute():
        return Path(base) / "batchpredict" / kind
    try:
        return Path("~/.cache/batchpredict").expanduser() / kind
    except RuntimeError as error:
        raise ConfigInvalid(
            f"{purpose} in the home directory, and this user has none; set XDG_CACHE_HOME to a"
            " folder that can be written"
        ) from error
