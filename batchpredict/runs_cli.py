"""The commands that tell of runs: `runs` and `report`. Thin, and nothing heavy at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from batchpredict.options import Place

if TYPE_CHECKING:
    from batchpredict.ops.runs import Found

_JSON = click.option("--json", "as_json", is_flag=True, help="JSON instead of a table.")


class _Listing(click.Group):
    """`list` is meant where no command is named."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        first = args[0] if args else ""
        if first not in self.commands and first not in ctx.help_option_names:
            args = ["list", *args]
        return super().parse_args(ctx, args)


@click.group(cls=_Listing)
def runs() -> None:
    """What ran, from the receipts and journals beside outputs.

    batchpredict runs [FOLDER…] lists, batchpredict runs show RUN tells all of one.
    """


@runs.command("list")
@click.argument("folders", metavar="[FOLDER|RECEIPT]...", nargs=-1)
@click.option("--last", type=click.IntRange(1), metavar="N", help="Only the N latest.")
@_JSON
def list_(folders: tuple[str, ...], last: int | None, as_json: bool) -> int:
    """What ran, the latest at the bottom; by default in this folder and those below it."""
    import json

    from batchpredict.ops import runs_table
    from batchpredict.ops.runs import read_runs

    _log()
    found = read_runs(folders or (".",))
    if as_json:
        click.echo(json.dumps(runs_table.facts(found, last), indent=2))
        return 0
    _warn_of_skipped(found)
    click.echo(runs_table.table(found, last) if found.runs else "no runs")
    return 0


@runs.command()
@click.argument("run")
@click.argument("folders", metavar="[FOLDER]...", nargs=-1)
@_JSON
def show(run: str, folders: tuple[str, ...], as_json: bool) -> int:
    """All about one run: RUN is a receipt, or a run's id or the beginning of one.

    By its id, a run is shown with all its inputs.
    """
    import json

    from batchpredict.ops import runs_table

    _log()
    found = runs_table.read_meant(run, folders or (".",))
    facts = runs_table.show_facts(found)
    text = "\n\n".join(map(runs_table.show, found))
    click.echo(json.dumps(facts, indent=2) if as_json else text)
    return 0


@click.command()
@click.argument("sources", metavar="RECEIPT|FOLDER...", nargs=-1, required=True)
@click.option(
    "--output_file",
    "-o",
    type=Place(),
    metavar="PATH",
    default="report.html",
    show_default=True,
    help="The page to write; - for standard output.",
)
@click.option(
    "--with_records",
    is_flag=True,
    help="Show rejected rows as they came: whoever gets the page can read them.",
)
def report(sources: tuple[str, ...], output_file: str, with_records: bool) -> int:
    """One HTML page about one run or many: is all well, how fast, what was rejected.

    The page needs no network and holds no script.
    """
    from batchpredict.log import logger
    from batchpredict.ops import report as reporting

    _log(data_on_stdout=output_file == "-")
    made = reporting.write(sources, output_file, with_records)
    _warn_of_skipped(made.found)
    logger.info("%s", made.verdict)
    logger.info("report: %s", output_file)
    return 0


def _log(*, data_on_stdout: bool = False) -> None:
    from batchpredict.log import configure_logging

    configure_logging(quiet=False, verbose=False, log_format="text", to_stderr=data_on_stdout)


def _warn_of_skipped(found: Found) -> None:
    from batchpredict.log import logger

    for each in found.skipped:
        logger.warning("%s: %s; skipped", each.file, each.reason)
