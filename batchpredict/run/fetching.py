"""What a run does with --model: which version is meant, and its files on this machine.

A store is asked once per run. Where it cannot be reached, what it said last is used if that is not
too old: also where it refuses the credentials, as those expire at night, when nobody can renew
them and the model they once gave is still on the disk. That there is no such model, version or
alias, and content that is not what its manifest says, are answers, and end the run.
"""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass, replace
from types import TracebackType

from batchpredict import s3
from batchpredict.errors import ConfigInvalid, OutputWriteFailed, Unavailable
from batchpredict.job import MODEL_AGE
from batchpredict.model.package import ModelPackage, read_package
from batchpredict.model.registry.cache import Cache, Held, findings
from batchpredict.model.registry.plain import PlainFolder
from batchpredict.model.registry.resolutions import Resolution, age_in_words
from batchpredict.model.registry.versions import VersionManifest
from batchpredict.run.origin import Choice, FromStore, Watch, reference_of, store_of
from batchpredict.s3 import Missing
from batchpredict.signals import check_signals

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Pinned:
    """What an interrupted run used, as its Fetched said."""

    name: str
    version: str
    alias: str | None
    manifest_sha256: str


@dataclass(frozen=True)
class Fetched:
    """A model on this machine, not removed from the cache before `close`.

    `version`, `alias`, `manifest_sha256`, `store`: None where a path was given; then `version` is
    what batchpredict.toml says. `alias`: also None where a version was named. `warnings`: have
    been logged, and belong into the receipt.
    """

    package: ModelPackage
    name: str
    version: str | None
    alias: str | None = None
    manifest_sha256: str | None = None
    store: str | None = None
    warnings: tuple[str, ...] = ()
    held: Held | None = None

    def close(self) -> None:
        """To be called once."""
        if self.held:
            self.held.release()

    def __enter__(self) -> Fetched:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def fetch(choice: Choice, pinned: Pinned | None = None, watch: Watch | None = None) -> Fetched:
    """The model that a job names, as a path, in a store or in a bucket.

    `pinned` wins over what its alias says now, as long as that version can be had. `watch` is told
    of bytes that are fetched. Raises UsageError, Unavailable, ConfigInvalid, OutputWriteFailed.
    """

    def told(count: int) -> None:
        check_signals()
        if watch:
            watch(count)

    model = choice.model
    store = None if s3.is_url(model) else store_of(choice)
    if s3.is_url(model):
        cache = Cache.of_user()
        return _Fetching(PlainFolder(model, cache, told), cache, choice).run(None)
    if store is None:
        package = read_package(model)
        return Fetched(package, package.name, package.version)
    return _Fetching(FromStore(store, reference_of(model), told), Cache.of_user(), choice).run(
        pinned
    )


class _Fetching:
    """One look for a version: in the cache, in the store, in the cache again."""

    def __init__(self, origin: FromStore | PlainFolder, cache: Cache, choice: Choice) -> None:
        self._origin = origin
        self._cache = cache
        self._offline = choice.offline
        self._most_age = choice.max_model_age

    def run(self, pinned: Pinned | None) -> Fetched:
        fetched = self._exact() or (pinned and self._pinned(pinned))
        if fetched:
            return fetched
        if self._offline:
            return self._last()
        try:
            return self._resolved()
        except Missing:
            raise
        except Unavailable as error:
            return self._instead(error)

    def _exact(self) -> Fetched | None:
        """What nobody has to be asked for; None where that is not in the cache."""
        origin = self._origin
        last = self._remembered()
        is_version = origin.exact or (isinstance(origin, FromStore) and last and not last.alias)
        sha256 = None
        if is_version:
            sha256 = origin.accepted or (last.manifest_sha256 if last else None)
        held = self._cache.look(sha256) if sha256 else None
        if held is None:
            return None
        if not origin.is_meant(held.manifest):
            held.release()
            raise ConfigInvalid(
                f"{origin}: the manifest of this sha256 is that of {held.manifest.name}"
                f"@{held.manifest.version}; check which version is meant"
            )
        return self._used(held, None)

    def _remembered(self) -> Resolution | None:
        """What the store said last, if that may be used."""
        last = self._cache.last(self._origin.asked)
        accepted = self._origin.accepted
        return last if last and accepted in (None, last.manifest_sha256) else None

    def _pinned(self, pinned: Pinned) -> Fetched | None:
        origin = self._origin
        same = pinned.name == origin.asked.name and pinned.alias == origin.asked.selector
        if not (isinstance(origin, FromStore) and same):
            return None
        if origin.accepted not in (None, pinned.manifest_sha256):
            return None
        if not self._offline and self._is_rolled_back(origin, pinned):
            return None
        held = self._cache.look(pinned.manifest_sha256)
        if held is None and not self._offline:
            held = self._fetched_again(origin, pinned)
        if held is None:
            logger.info(
                "%s: version %s, which the interrupted run used, cannot be had any more",
                origin,
                pinned.version,
            )
            return None
        if not origin.is_meant(held.manifest):
            held.release()
            return None
        return self._used(held, pinned.alias)

    def _is_rolled_back(self, origin: FromStore, pinned: Pinned) -> bool:
        """Whether somebody has taken the version back since; what it may be instead is told."""
        try:
            alias = origin.alias()
        except Unavailable as error:
            logger.info("%s", error)
            return False
        if alias is None or alias.version == pinned.version:
            return False
        said = f"{origin}: names version {alias.version} now; the interrupted run used version"
        if pinned.version not in alias.past():
            logger.warning("%s %s, which was rolled back; starting over", said, pinned.version)
            return True
        logger.warning("%s %s and goes on with it (unless --no_resume)", said, pinned.version)
        return False

    def _fetched_again(self, origin: FromStore, pinned: Pinned) -> Held | None:
        try:
            manifest = origin.version(pinned.version)
            if manifest.sha256 == pinned.manifest_sha256:
                return self._held(manifest)
        except Unavailable as error:
            logger.info("%s", error)
        return None

    def _resolved(self) -> Fetched:
        manifest, alias, state = self._origin.resolve()
        fetched = self._used(self._held(manifest), alias)
        # Only now: what is said to be the last must be there when the store is not.
        answer = Resolution(manifest.version, alias, manifest.sha256, time.time(), state)
        try:
            self._cache.note(self._origin.asked, answer)
            if alias and isinstance(self._origin, FromStore):
                exact = replace(self._origin.asked, selector=manifest.version)
                self._cache.note(exact, replace(answer, alias=None))
        except (ConfigInvalid, OutputWriteFailed) as error:
            logger.warning("%s; without the store this version will not be found", error)
        return fetched

    def _held(self, manifest: VersionManifest) -> Held:
        held = self._cache.look(manifest.sha256)
        if held:
            return held
        if isinstance(self._origin, FromStore):  # the other has fetched it to know what it is
            what = f"{manifest.name}@{manifest.version}"
            size = f"{manifest.size:,}"
            logger.info("fetching %s from %s: %s bytes", what, self._origin.url, size)
        return self._cache.hold(manifest, self._origin.download(manifest))

    def _instead(self, error: Unavailable) -> Fetched:
        """What the store said last, now that it says nothing."""
        last = self._remembered()
        most = MODEL_AGE if self._most_age is None else self._most_age
        held = self._cache.look(last.manifest_sha256) if last and last.age <= most else None
        if last is None:
            raise error
        if held is None:
            age = f"{age_in_words(last.age)} old, more than --max_model_age allows"
            why = age if last.age > most else "not in the cache any more"
            raise Unavailable(
                f"{error}; version {last.version}, which {self._origin} named last, is {why}"
            ) from error
        warning = (
            f"{self._origin}: version {last.version} is used, which it named"
            f" {age_in_words(last.age)} ago; the model store cannot be asked now: {error}"
        )
        logger.warning("%s", warning)
        return self._used(held, last.alias, (warning,))

    def _last(self) -> Fetched:
        """What the store said last, where it is not to be asked."""
        last = self._remembered()
        held = self._cache.look(last.manifest_sha256) if last else None
        if last is None or held is None:
            raise Unavailable(
                f"{self._origin}: is not in the cache ({self._cache.folder}), and --offline forbids"
                " to fetch it; run once without"
            )
        if self._most_age is not None and last.age > self._most_age:
            held.release()
            raise Unavailable(
                f"{self._origin}: named version {last.version} {age_in_words(last.age)} ago,"
                f" longer than --max_model_age allows, and --offline forbids to ask again"
            )
        return self._used(held, last.alias)

    def _used(self, held: Held, alias: str | None, warnings: tuple[str, ...] = ()) -> Fetched:
        package = _sound(held)
        if package is None:
            held = self._renewed(held)
            package = _sound(held)
        if package is None:
            raise ConfigInvalid(f"{held.directory}: is damaged again; check the disk (dmesg)")
        manifest = held.manifest
        return Fetched(
            replace(package, name=manifest.name, version=manifest.version),
            manifest.name,
            manifest.version,
            alias,
            manifest.sha256,
            self._origin.url,
            warnings,
            held,
        )

    def _renewed(self, held: Held) -> Held:
        if self._offline:
            raise ConfigInvalid(
                f"{held.directory}: is damaged; run once without --offline to fetch it again"
            )
        logger.warning("%s: is damaged; fetching it again", held.directory)
        return self._cache.renew(held.manifest, self._origin.download(held.manifest))


def _sound(held: Held) -> ModelPackage | None:
    """The model, whose files were hashed for it.

    None where they are not the version's; then, and where this raises, it is released.
    """
    stated = {(file.path, file.size, file.sha256) for file in held.manifest.files}
    try:
        package = read_package(held.directory)
        if stated.issuperset(package.files):
            return package
    except BaseException as error:
        damaged = isinstance(error, ConfigInvalid | Unavailable) and findings(held)
        held.release()
        if not damaged:
            raise
        return None
    held.release()
    return None
