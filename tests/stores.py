"""Model stores for tests: small models, pushed, and everything a store holds."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from batchpredict.model.registry.collecting import collect
from batchpredict.model.registry.pushing import Pushed, PushOptions, push
from batchpredict.model.registry.store import Store
from tests import models


def model(directory: Path, told: str = "", **files: bytes) -> Path:
    """A model that scores; `told` makes its content another one."""
    models.write_text_model(directory, manifest=f'labels = ["neg", "pos"]\n# {told}\n')
    for name, content in files.items():
        (directory / name.replace("__", "/")).parent.mkdir(parents=True, exist_ok=True)
        (directory / name.replace("__", "/")).write_bytes(content)
    return directory


def pushed(store: Store, source: Path, name: str = "reviews", **options: Any) -> Pushed:
    return push(store, collect(source), name, PushOptions(**options))


def keys(store: Store, prefix: str = "") -> list[str]:
    return sorted(entry.key for entry in store.objects.list(prefix))


def everything(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below with inode and size."""
    found = {}
    for path in folder.rglob("*"):
        if path.is_file():
            status = os.lstat(path)
            found[path.relative_to(folder).as_posix()] = (status.st_ino, status.st_size)
    return found
