"""What references meant when they were last resolved, for runs that cannot or need not ask."""

from __future__ import annotations

import contextlib
import hashlib
import json
import secrets
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from batchpredict.model.files import read_small

_MOST_BYTES = 1 << 16
# What a process that was killed had not given its name.
_ABANDONED_SECONDS = 3600.0


@dataclass(frozen=True)
class Asked:
    """A question to a store. `store`: its identity. `selector`: an alias or a version."""

    store: str
    name: str
    selector: str


@dataclass(frozen=True)
class Resolution:
    """`alias`: None where the selector was a version. `when`: seconds since the epoch.

    `state`: what else tells that nothing has changed, for stores without manifests.
    """

    version: str
    alias: str | None
    manifest_sha256: str
    when: float
    state: str = ""

    @property
    def age(self) -> float:
        """Seconds; 0 where the clock was set back."""
        return max(0.0, time.time() - self.when)


class Resolutions:
    """One small file for each question, in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def last(self, asked: Asked) -> Resolution | None:
        """None where it was never answered, or the file is none of ours. Raises OSError."""
        try:
            document = json.loads(read_small(self._path(asked), _MOST_BYTES))
            question = Asked(**document.pop("asked"))
            found = Resolution(**document)
            return found if question == asked and _is_valid(found) else None
        except FileNotFoundError:
            return None
        except (ValueError, TypeError, AttributeError, KeyError, RecursionError):
            return None  # a power cut, or another version of this tool: it is asked anew

    def note(self, asked: Asked, answer: Resolution) -> None:
        """Raises OSError."""
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._path(asked)
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}")
        try:
            temporary.write_text(json.dumps({"asked": asdict(asked), **asdict(answer)}))
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)

    def prune(self, is_cached: Callable[[str], bool]) -> None:
        """Remove the answers whose version is not in the cache any more. Raises OSError."""
        for path in list(self._folder.glob(".*")):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _ABANDONED_SECONDS:
                    path.unlink()
        for path in list(self._folder.glob("*.json")):
            try:
                sha256 = json.loads(read_small(path, _MOST_BYTES))["manifest_sha256"]
            except (OSError, ValueError, TypeError, KeyError, RecursionError):
                sha256 = ""
            if not (sha256 and is_cached(str(sha256))):
                path.unlink(missing_ok=True)

    def _path(self, asked: Asked) -> Path:
        question = "\n".join((asked.store, asked.name, asked.selector))
        digest = hashlib.sha256(question.encode("utf-8", "surrogateescape")).hexdigest()
        return self._folder / f"{digest[:32]}.json"


def _is_valid(answer: Resolution) -> bool:
    texts = (answer.version, answer.manifest_sha256, answer.state, answer.alias or "")
    return all(isinstance(text, str) for text in texts) and isinstance(answer.when, float | int)


def age_in_words(seconds: float) -> str:
    """ "3 days", "12 hours", "5 minutes"."""
    for unit, length in (("day", 86400), ("hour", 3600), ("minute", 60)):
        if seconds >= length:
            count = int(seconds // length)
            return f"{count} {unit}{'s' if count > 1 else ''}"
    return "less than a minute"
