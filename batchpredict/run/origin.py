"""Where the model that a job names comes from: a path, a store, a folder of a bucket."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from batchpredict import s3
from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.model.registry.aliases import Alias
from batchpredict.model.registry.blobs import Download
from batchpredict.model.registry.reference import (
    LATEST,
    Reference,
    is_number,
    is_reference,
    names_selector,
    parse_reference,
)
from batchpredict.model.registry.resolutions import Asked
from batchpredict.model.registry.store import Store, open_store, version_key
from batchpredict.model.registry.versions import StoredFile, VersionManifest

Watch = Callable[[int], None]


class Choice(Protocol):
    """The options that say which model; a Job has them."""

    @property
    def model(self) -> str: ...
    @property
    def model_store(self) -> str | None: ...
    @property
    def max_model_age(self) -> float | None: ...
    @property
    def offline(self) -> bool: ...


@dataclass(frozen=True)
class ModelChoice:
    """Choice for whoever has no Job."""

    model: str
    model_store: str | None = None
    max_model_age: float | None = None
    offline: bool = False


class Origin(Protocol):
    """Where a version comes from. `exact`: what `asked` names never changes. `accepted`: the only
    manifest that may be used; None where any may."""

    url: str
    asked: Asked
    exact: bool
    accepted: str | None

    def is_meant(self, manifest: VersionManifest) -> bool:
        """Whether a version of the cache can be what is asked for."""

    def resolve(self) -> tuple[VersionManifest, str | None, str]:
        """The version, the alias that named it, and what tells it from a later one if that is no
        manifest. Raises Unavailable."""

    def download(self, manifest: VersionManifest) -> Download: ...


class FromStore:
    """A version of a store."""

    def __init__(self, store: Store, reference: Reference, watch: Watch) -> None:
        selector = reference.selector or LATEST
        self._store = store
        self._watch = watch
        self.reference = reference
        self.url = store.url
        self.accepted = reference.manifest_sha256
        if self.accepted and reference.selector is None:
            # Not what is asked for `latest`, which is another version or will be.
            selector = f"sha256:{self.accepted}"
        self.asked = Asked(store.objects.identity, reference.name, selector)
        self.exact = is_number(selector) or selector == f"sha256:{self.accepted}"

    def __str__(self) -> str:
        return str(self.reference)

    def is_meant(self, manifest: VersionManifest) -> bool:
        name, selector = self.reference.name, self.reference.selector
        return manifest.name == name and not (
            selector and self.exact and manifest.version != selector
        )

    def resolve(self) -> tuple[VersionManifest, str | None, str]:
        found = self._store.resolve(self.reference)
        return found.manifest, found.alias, ""

    def alias(self) -> Alias | None:
        """What the reference's alias names now, and its history. Raises Unavailable."""
        return self._store.alias(self.asked.name, self.asked.selector)

    def version(self, version: str) -> VersionManifest:
        """Raises Missing."""
        return self._store.manifest(self.reference.name, version)

    def download(self, manifest: VersionManifest) -> Download:
        def fetch(file: StoredFile, path: Path) -> str:
            objects = self._store.objects
            key = version_key(manifest.name, manifest.version, file.path)
            entry = objects.entry(key)
            if entry.size != file.size:
                raise ConfigInvalid(
                    f"{self._store}: {key}: has {entry.size:,} bytes, the manifest says"
                    f" {file.size:,}; verify it: batchpredict models verify {manifest.name}"
                    f"@{manifest.version}"
                )
            return objects.fetch(entry, path, self._watch)

        return fetch


def store_of(choice: Choice) -> Store | None:
    """The store that a job's model is in; None where it is a path. Raises UsageError."""
    model = choice.model
    if s3.is_url(model) or not is_reference(model):
        return None
    location = choice.model_store or bound_store()
    if location:
        return open_store(location)
    if names_selector(model) and not Path(model).exists():
        raise UsageError(
            f"--model={model}: names a model of a store, and there is none; name it with"
            " --model_store=s3://BUCKET/FOLDER/ (or a directory)"
        )
    return None


def bound_store() -> str | None:
    """The store in the bucket that Cloud Foundry has bound."""
    bucket = s3.bound_bucket()
    return f"s3://{bucket}/models/" if bucket else None


def reference_of(model: str) -> Reference:
    """Raises UsageError."""
    try:
        return parse_reference(model)
    except UsageError as error:
        raise UsageError(f"--model: {error}; a file or directory is --model=./{model}") from error
