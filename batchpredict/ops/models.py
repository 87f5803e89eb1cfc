"""What the commands `models …` do with a store and with the cache; see model_tables.py."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from batchpredict import s3
from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.job import Job
from batchpredict.model.registry.aliases import Alias
from batchpredict.model.registry.cache import Cache, Pruned
from batchpredict.model.registry.collecting import collect
from batchpredict.model.registry.pushing import Pushed, PushOptions
from batchpredict.model.registry.pushing import push as push_to
from batchpredict.model.registry.reference import Reference, parse_reference
from batchpredict.model.registry.removal import remove as remove_from
from batchpredict.model.registry.removal import remove_alias
from batchpredict.model.registry.store import Model, RolledBack, Store, open_store
from batchpredict.model.registry.verification import verify as verify_in
from batchpredict.model.registry.versions import VersionManifest
from batchpredict.run.fetching import Fetched, fetch
from batchpredict.run.loading import load_model
from batchpredict.run.origin import bound_store
from batchpredict.run.progress import transferring


@dataclass(frozen=True)
class Where:
    """The store that the options name."""

    model_store: str | None = None
    endpoint_url: str | None = None
    service: str | None = None

    def open(self) -> Store:
        """Raises UsageError where there is none."""
        s3.connect_to(self.endpoint_url, self.service)
        location = self.model_store or bound_store()
        if location is None:
            raise UsageError(
                "no model store: pass --model_store=s3://BUCKET/FOLDER/ (or a directory), or set"
                " BATCHPREDICT_MODEL_STORE"
            )
        return open_store(location)


@dataclass(frozen=True)
class PushedModel:
    """`hidden`: files that were left out. `store`: where it went."""

    pushed: Pushed
    hidden: tuple[str, ...]
    store: str


@dataclass(frozen=True)
class Pulled:
    """A version in the cache. `directory`: of its files."""

    name: str
    version: str
    alias: str | None
    manifest_sha256: str
    directory: Path


@dataclass(frozen=True)
class Shown:
    """`manifest`: the version that is meant; None where the whole model is."""

    model: Model
    manifest: VersionManifest | None


@dataclass(frozen=True)
class Verified:
    """`findings`: a line for each thing that is wrong."""

    reference: str
    manifest: VersionManifest | None
    findings: tuple[str, ...]


def push(where: Where, directory: str, name: str, options: PushOptions) -> PushedModel:
    """Load the model and score its golden rows, then store it. Raises what each of these does."""
    store = where.open()
    model = collect(directory)
    package = model.package
    load_model(
        Job(input_file=("-",), model=directory), Fetched(package, package.name, package.version)
    )
    total = sum(file.size for file in model.files)
    with transferring(f"pushing {name}", total) as watch:
        pushed = push_to(store, model, name, options, watch)
    return PushedModel(pushed, model.hidden, store.url)


def metadata_of(pairs: tuple[tuple[str, str], ...]) -> Mapping[str, str]:
    """Raises UsageError where a key is given twice."""
    metadata = dict(pairs)
    if len(metadata) < len(pairs):
        raise UsageError("--meta: a key is given twice")
    return metadata


def pull(where: Where, model: str, *, offline: bool) -> Pulled:
    """Fetch a version into the cache, if it is not there."""
    store = where.open()
    parse_reference(model)
    choice = Job(input_file=("-",), model=model, model_store=store.url, offline=offline)
    with transferring(f"pulling {model}", None) as watch, fetch(choice, watch=watch) as fetched:
        assert fetched.version is not None
        assert fetched.manifest_sha256 is not None
        return Pulled(
            fetched.name,
            fetched.version,
            fetched.alias,
            fetched.manifest_sha256,
            fetched.package.directory,
        )


def models_in(where: Where, name: str | None) -> tuple[Model, ...]:
    """The models of a store, or the one that has this name. Raises Unavailable."""
    store = where.open()
    return (store.model(name),) if name else store.models()


def show(where: Where, text: str) -> Shown:
    """A model, or one version of it. Raises Unavailable, UsageError."""
    store, reference = where.open(), parse_reference(text)
    if reference == Reference(reference.name):
        return Shown(store.model(reference.name), None)
    manifest = store.resolve(reference).manifest
    return Shown(Model(reference.name, (manifest,), store.aliases(reference.name)), manifest)


def promote(where: Where, name: str, version: str, alias: str, why: str) -> Alias:
    """Make an alias name a version, which may be given as another alias."""
    store = where.open()
    meant = store.resolve(parse_reference(f"{name}@{version}")).manifest.version
    return store.promote(name, meant, alias, why)


def rollback(where: Where, name: str, alias: str, why: str) -> RolledBack:
    """Make an alias name what it named before."""
    return where.open().rollback(name, alias, why)


def verify(where: Where, text: str) -> Verified:
    """Read all files of a version, in the store and in the cache. Raises Unavailable."""
    store = where.open()
    with transferring(f"verifying {text}", None) as watch:
        manifest, findings = verify_in(store, parse_reference(text), Cache.of_user(), watch)
    return Verified(text, manifest, tuple(findings))


def refusal(verified: Verified) -> ConfigInvalid:
    """What is raised of a version in which something is wrong."""
    count = len(verified.findings)
    return ConfigInvalid(
        f"{verified.reference}: {count} finding{'s' if count > 1 else ''}, the first:"
        f" {verified.findings[0]}; do not use it, push the model again and promote that version"
    )


def remove(where: Where, name: str, version: str | None, alias: str | None) -> int:
    """Remove a version that no alias names, or an alias; bytes of files. Raises UsageError."""
    if (version is None) == (alias is None):
        raise UsageError("name either a VERSION or an --alias to remove")
    if alias is not None:
        remove_alias(where.open(), name, alias)
        return 0
    return remove_from(where.open(), name, str(version))


def prune(keep: int) -> Pruned:
    """Leave the `keep` versions of each model in the cache that were used last."""
    if keep < 0:
        raise UsageError(f"--keep={keep}: must be 0 or more")
    return Cache.of_user().prune(keep)
