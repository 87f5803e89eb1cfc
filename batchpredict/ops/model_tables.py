"""What the commands `models …` print: tables for people, and the same as JSON.

What others have put into a store (reasons, metadata) is shown without control characters.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import asdict
from typing import Any

from batchpredict.data.storage import amount
from batchpredict.errors import CONTROLS
from batchpredict.model.registry.aliases import Alias
from batchpredict.model.registry.cache import Pruned
from batchpredict.model.registry.store import Model, RolledBack
from batchpredict.model.registry.versions import VersionManifest
from batchpredict.ops.models import Pulled, PushedModel, Shown, Verified

Facts = dict[str, Any]


def pushed_facts(done: PushedModel) -> Facts:
    pushed = done.pushed
    return version_facts(pushed.manifest) | {
        "existed": pushed.existed,
        "stored_bytes": pushed.stored_bytes,
        "aliases": list(pushed.aliases),
        "hidden": list(done.hidden),
    }


def pushed_text(done: PushedModel) -> str:
    pushed, manifest = done.pushed, done.pushed.manifest
    what = f"is in {done.store} already" if pushed.existed else f"pushed to {done.store}"
    lines = [f"{manifest.name}@{manifest.version}: {what}: {_files(manifest)}"]
    if not pushed.existed and pushed.stored_bytes < manifest.size:
        lines.append(f"{amount(pushed.stored_bytes)} of them now, the rest by a push before")
    lines += [f"{manifest.name}@{alias} is version {manifest.version}" for alias in pushed.aliases]
    if done.hidden:
        lines.append(f"left out, as they are hidden: {', '.join(done.hidden)}")
    return _plain(lines)


def pulled_facts(pulled: Pulled) -> Facts:
    return asdict(pulled) | {"directory": str(pulled.directory)}


def pulled_text(pulled: Pulled) -> str:
    return f"{pulled.name}@{pulled.version}: {pulled.directory}"


def models_facts(models: Iterable[Model]) -> list[Facts]:
    return [model_facts(model) for model in models]


def model_facts(model: Model) -> Facts:
    """Everything of a model but its files."""
    return {
        "name": model.name,
        "versions": [
            version_facts(manifest) | {"aliases": list(model.aliases_of(manifest.version))}
            for manifest in model.versions
        ],
        "unfinished": list(model.unfinished),
        "aliases": [alias_facts(alias) for alias in model.aliases],
    }


def version_facts(manifest: VersionManifest) -> Facts:
    return {
        "name": manifest.name,
        "version": manifest.version,
        "manifest_sha256": manifest.sha256,
        "model_sha256": manifest.model_sha256,
        "created": manifest.created,
        "by": manifest.by,
        "tool": manifest.tool,
        "files": len(manifest.files),
        "bytes": manifest.size,
        "metadata": dict(manifest.metadata),
    }


def alias_facts(alias: Alias) -> Facts:
    history = [asdict(change) for change in alias.history]
    for change in history:
        change["from"] = change.pop("before")
    return {
        "alias": alias.alias,
        "version": alias.version,
        "manifest_sha256": alias.manifest_sha256,
        "history": history,
    }


def models_text(models: Sequence[Model]) -> str:
    """A line per model."""
    if not models:
        return "no models"
    rows = [("model", "versions", "newest", "created", "size", "aliases")]
    for model in models:
        newest = model.versions[-1] if model.versions else None
        aliases = ", ".join(f"{alias.alias} {alias.version}" for alias in model.aliases)
        rows.append(
            (
                model.name,
                str(len(model.versions)),
                newest.version if newest else "-",
                newest.created if newest else "-",
                amount(newest.size) if newest else "-",
                aliases,
            )
        )
    return _plain(_columns(rows))


def versions_text(model: Model) -> str:
    """A line per version."""
    return _plain(_versions(model))


def _versions(model: Model) -> list[str]:
    rows = [("version", "created", "by", "size", "aliases", "metadata")]
    rows += [
        (
            manifest.version,
            manifest.created,
            manifest.by,
            amount(manifest.size),
            ", ".join(model.aliases_of(manifest.version)),
            _metadata(manifest),
        )
        for manifest in model.versions
    ]
    lines = _columns(rows)
    if model.unfinished:
        lines.append(f"not complete, so not used: {', '.join(model.unfinished)}")
    return lines


def shown_facts(shown: Shown) -> Facts:
    if shown.manifest is None:
        return model_facts(shown.model)
    manifest = shown.manifest
    return version_facts(manifest) | {
        "files": [vars(file) for file in manifest.files],
        "aliases": list(shown.model.aliases_of(manifest.version)),
    }


def shown_text(shown: Shown) -> str:
    """A model with the history of its aliases, or a version with its files."""
    if shown.manifest is not None:
        return _version_text(shown.manifest, shown.model.aliases_of(shown.manifest.version))
    lines = _versions(shown.model)
    for alias in shown.model.aliases:
        lines += ["", f"{shown.model.name}@{alias.alias} is version {alias.version}"]
        rows = [
            (c.when, c.who, c.action, f"{c.before or '-'} -> {c.to}", c.why)
            for c in reversed(alias.history)
        ]
        lines += _columns(rows)
    return _plain(lines)


def _version_text(manifest: VersionManifest, aliases: Sequence[str]) -> str:
    lines = [
        f"{manifest.name}@{manifest.version}",
        f"manifest  sha256:{manifest.sha256}",
        f"model     sha256:{manifest.model_sha256}",
        f"created   {manifest.created} by {manifest.by} with {manifest.tool}",
        f"aliases   {', '.join(aliases) or '-'}",
        f"metadata  {_metadata(manifest) or '-'}",
        "",
    ]
    rows = [(file.path, f"{file.size:,}", file.sha256) for file in manifest.files]
    return _plain([*lines, *_columns([("file", "bytes", "sha256"), *rows])])


def moved_text(name: str, alias: Alias) -> str:
    """The last change of an alias."""
    change = alias.history[-1]
    before = f", it was {change.before}" if change.before else ""
    return _plain([f"{name}@{alias.alias} is version {alias.version}{before}"])


def rolled_back_text(name: str, done: RolledBack) -> str:
    lines = [moved_text(name, done.alias)]
    if done.skipped:
        lines.append(f"skipped, as they were removed: {', '.join(done.skipped)}")
    return _plain(lines)


def removed_text(name: str, version: str, removed: int) -> str:
    return f"{name}@{version}: removed" + (f", {amount(removed)}" if removed else "")


def verified_facts(verified: Verified) -> Facts:
    manifest = version_facts(verified.manifest) if verified.manifest else {}
    return manifest | {"findings": list(verified.findings)}


def verified_text(verified: Verified) -> str:
    manifest = verified.manifest
    if verified.findings or manifest is None:
        return _plain(verified.findings)
    return f"{manifest.name}@{manifest.version}: {_files(manifest)}, as they were pushed"


def pruned_facts(pruned: Pruned) -> Facts:
    return asdict(pruned)


def pruned_text(pruned: Pruned) -> str:
    removed = ", ".join(_named(entry) for entry in pruned.removed) or "nothing"
    lines = [f"removed {removed}; {amount(pruned.freed_bytes)} freed"]
    if pruned.in_use:
        lines.append(f"kept, as they are in use: {', '.join(map(_named, pruned.in_use))}")
    return _plain(lines)


def _named(entry: tuple[str, str]) -> str:
    return "@".join(filter(None, entry))


def _files(manifest: VersionManifest) -> str:
    count = len(manifest.files)
    return f"{count} file{'s' if count > 1 else ''}, {amount(manifest.size)}"


def _metadata(manifest: VersionManifest) -> str:
    return ", ".join(f"{key}={value}" for key, value in sorted(manifest.metadata.items()))


def _columns(rows: Sequence[Sequence[str]]) -> list[str]:
    plain = [[cell.translate(CONTROLS) for cell in row] for row in rows]
    widths = [max(map(len, cells)) for cells in zip(*plain, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in plain]


def _plain(lines: Iterable[str]) -> str:
    return "\n".join(line.translate(CONTROLS) for line in lines)
