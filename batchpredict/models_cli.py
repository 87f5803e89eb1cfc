"""The group `models`: what is done with models rather than with data."""

from __future__ import annotations

import functools
import os
from typing import Any

import click

from batchpredict.errors import BatchPredictError
from batchpredict.job import Job
from batchpredict.light_imports import light_imports
from batchpredict.options import (
    Pairs,
    Place,
    access_options,
    input_options,
    store_option,
    store_options,
)


@click.group()
def models() -> None:
    """Keep models in a store, as versions with aliases, and make variants of them."""


@models.command()
@click.argument("model")
@click.option(
    "--precision",
    type=click.Choice(["model", "int8", "int4"]),
    required=True,
    help="Weights as 8-bit or 4-bit integers; model: as they are, the graph folded and fused.",
)
@click.option(
    "--sample",
    type=Place(),
    metavar="FILE",
    required=True,
    help="Rows on which the variant is compared with MODEL, in any format that is scored.",
)
@click.option(
    "-o",
    "--output",
    type=Place(),
    metavar="DIR",
    required=True,
    help="The new model directory; must not exist.",
)
@click.option(
    "--min_agreement",
    type=click.FloatRange(0, 1),
    default=0.99,
    show_default=True,
    help="Share of the rows that must keep their prediction, or nothing is written.",
)
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=300,
    show_default=True,
    help="Only the first N rows of FILE.",
    metavar="N",
)
@store_options
@input_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def optimize(model: str, sample: str, output: str, as_json: bool, **options: Any) -> int:
    """Make a smaller or faster variant of MODEL, if it agrees with it on a sample."""
    import json

    from batchpredict.log import configure_logging

    configure_logging(quiet=True, verbose=False, log_format="text", to_stderr=True)
    with light_imports():
        from batchpredict.ops import optimizing, optimizing_report

    request = optimizing.Request(
        options.pop("precision"),
        os.path.expanduser(output),  # noqa: PTH111
        options.pop("min_agreement"),
        options.pop("limit"),
    )
    options["delimiter"] = "\t" if options["delimiter"] in ("tab", "\\t") else options["delimiter"]
    options["column"] = tuple(options["column"])
    job = Job(input_file=(sample,), model=os.path.expanduser(model), **options)  # noqa: PTH111
    report = optimizing.optimize(job, request)
    found = optimizing_report.facts(report)
    click.echo(
        json.dumps(found, indent=2, ensure_ascii=False)
        if as_json
        else optimizing_report.table(report)
    )
    if refusal := optimizing_report.refusal(report):
        raise BatchPredictError(refusal)
    return 0


def _store_command(function: Any) -> Any:
    """A command on the store that --model_store names; it gets `where`."""

    @functools.wraps(function)
    def run(
        model_store: str | None, endpoint_url: str | None, service: str | None, **options: Any
    ) -> int:
        from batchpredict.log import configure_logging

        configure_logging(quiet=True, verbose=False, log_format="text", to_stderr=True)
        with light_imports():
            from batchpredict.ops.models import Where

        return int(function(where=Where(model_store, endpoint_url, service), **options) or 0)

    return models.command()(store_option(access_options(_json_option(run))))


_json_option = click.option("--json", "as_json", is_flag=True, help="JSON instead of text.")
_why_option = click.option("--why", default="", help="Goes into the alias's history.")
_alias_option = click.option("--alias", required=True, help="Which alias: champion, latest, …")


def _print(as_json: bool, facts: Any, text: str) -> None:
    import json

    click.echo(json.dumps(facts, indent=2, ensure_ascii=False) if as_json else text)


@_store_command
@click.argument("directory")
@click.argument("name")
@click.option("--version", help="Instead of the next number.")
@click.option("--alias", "aliases", multiple=True, help="Shall name it, too; repeatable.")
@click.option("--no_latest", is_flag=True, help="Leave the alias `latest` where it is.")
@click.option("--meta", multiple=True, type=Pairs("key=value"), help="Is kept with it; repeatable.")
@_why_option
def push(
    where: Any, as_json: bool, directory: str, name: str, meta: Any, no_latest: bool, **options: Any
) -> None:
    """Store the model in DIRECTORY (or a .onnx file) as a new version of NAME.

    The model is loaded and its golden rows are scored first. The same files once more are the same
    version.
    """
    from batchpredict.model.registry.pushing import PushOptions
    from batchpredict.ops import model_tables, models

    chosen = PushOptions(latest=not no_latest, metadata=models.metadata_of(meta), **options)
    done = models.push(where, os.path.expanduser(directory), name, chosen)  # noqa: PTH111
    _print(as_json, model_tables.pushed_facts(done), model_tables.pushed_text(done))


@_store_command
@click.argument("model")
@click.option("--offline", is_flag=True, help="Never ask the store; take what is cached.")
def pull(where: Any, as_json: bool, model: str, offline: bool) -> None:
    """Fetch MODEL (NAME, NAME@ALIAS, NAME@VERSION) into the cache and print where it is."""
    from batchpredict.ops import model_tables, models

    pulled = models.pull(where, model, offline=offline)
    _print(as_json, model_tables.pulled_facts(pulled), model_tables.pulled_text(pulled))


@_store_command
@click.argument("name", required=False)
def list(where: Any, as_json: bool, name: str | None) -> None:
    """The models of a store, or the versions of NAME."""
    from batchpredict.ops import model_tables, models

    found = models.models_in(where, name)
    text = model_tables.versions_text(found[0]) if name else model_tables.models_text(found)
    _print(as_json, model_tables.models_facts(found), text)


@_store_command
@click.argument("model")
def show(where: Any, as_json: bool, model: str) -> None:
    """NAME: its versions, and the history of its aliases. NAME@…: one version and its files."""
    from batchpredict.ops import model_tables, models

    shown = models.show(where, model)
    _print(as_json, model_tables.shown_facts(shown), model_tables.shown_text(shown))


@_store_command
@click.argument("name")
@click.argument("version")
@_alias_option
@_why_option
def promote(where: Any, as_json: bool, name: str, version: str, alias: str, why: str) -> None:
    """Make an alias of NAME name VERSION (or the version that another alias names)."""
    from batchpredict.ops import model_tables, models

    moved = models.promote(where, name, version, alias, why)
    _print(as_json, model_tables.alias_facts(moved), model_tables.moved_text(name, moved))


@_store_command
@click.argument("name")
@_alias_option
@_why_option
def rollback(where: Any, as_json: bool, name: str, alias: str, why: str) -> None:
    """Make an alias of NAME name what it named before; once more, what it named before that."""
    from batchpredict.ops import model_tables, models

    done = models.rollback(where, name, alias, why)
    facts = model_tables.alias_facts(done.alias) | {"skipped": [*done.skipped]}
    _print(as_json, facts, model_tables.rolled_back_text(name, done))


@_store_command
@click.argument("model")
def verify(where: Any, as_json: bool, model: str) -> None:
    """Read every file of a version, in the store and in the cache, and compare it."""
    from batchpredict.ops import model_tables, models

    verified = models.verify(where, model)
    _print(as_json, model_tables.verified_facts(verified), model_tables.verified_text(verified))
    if verified.findings:
        raise models.refusal(verified)


@_store_command
@click.argument("name")
@click.argument("version", required=False)
@click.option("--alias", help="Instead, this alias with its history.")
def remove(where: Any, as_json: bool, name: str, version: str | None, alias: str | None) -> None:
    """Remove a version that no alias names, or an alias. A number is not used again."""
    from batchpredict.ops import model_tables, models

    removed = models.remove(where, name, version, alias)
    facts = {"name": name, "version": version, "alias": alias, "removed_bytes": removed}
    _print(as_json, facts, model_tables.removed_text(name, version or alias or "", removed))


@models.command()
@click.option(
    "--keep",
    type=int,
    default=2,
    show_default=True,
    metavar="N",
    help="How many versions of each model stay: those used last.",
)
@_json_option
def prune(keep: int, as_json: bool) -> None:
    """Remove versions from this machine's cache; those that a run is using stay."""
    with light_imports():
        from batchpredict.ops import model_tables, models

    pruned = models.prune(keep)
    _print(as_json, model_tables.pruned_facts(pruned), model_tables.pruned_text(pruned))
