"""The command line: parse, call, print, exit. No logic, and nothing heavy at import.

What `--help` does not need is imported where it is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import click

from batchpredict import __version__
from batchpredict.errors import (
    BatchPredictError,
    ConfigInvalid,
    OutputWriteFailed,
    Terminated,
    UsageError,
)
from batchpredict.job import Job
from batchpredict.light_imports import light_imports
from batchpredict.options import (
    Place,
    input_options,
    lock_option,
    logging_options,
    monitoring_options,
    named_paths,
    predict_options,
    store_options,
)
from batchpredict.refused import ToldCommand, place_of, tell
from batchpredict.run.current import one_run
from batchpredict.signals import deferred, raise_on_signals, watch_signals

if TYPE_CHECKING:
    from batchpredict.request import Request
    from batchpredict.run.receipt import Receipt

# Typographic dashes that web pages and word processors make of "--".
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


def _models() -> click.Command:
    from batchpredict.models_cli import models

    return models


def _runs() -> click.Command:
    from batchpredict.runs_cli import runs

    return runs


def _report() -> click.Command:
    from batchpredict.runs_cli import report

    return report


def _schedule() -> click.Command:
    from batchpredict.schedule_cli import schedule

    return schedule


# Commands with a module of their own, and what the list of commands says of them.
_ELSEWHERE: dict[str, tuple[Callable[[], click.Command], str]] = {
    "models": (_models, "Keep models in a store, as versions with aliases."),
    "report": (_report, "One HTML page about one run or many."),
    "runs": (_runs, "What ran, from the receipts and journals beside outputs."),
    "schedule": (_schedule, "Have cron or systemd run `predict` with these options."),
}


class _Commands(click.Group):
    """Underscores and dashes are one; `predict` is meant where no command is named."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name in _ELSEWHERE:
            return _ELSEWHERE[cmd_name][0]()
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """As click's, but nothing is imported for it."""
        names = self.list_commands(ctx)
        left = formatter.width - 6 - max(map(len, names))
        rows = [
            (
                name,
                _ELSEWHERE[name][1]
                if name in _ELSEWHERE
                else self.commands[name].get_short_help_str(left),
            )
            for name in names
        ]
        with formatter.section("Commands"):
            formatter.write_dl(rows)

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        for argument in args:
            if argument[:1] in _DASHES and argument[:1]:
                raise UsageError(
                    f"{argument!r} starts with a typographic dash (U+{ord(argument[0]):04X}), "
                    f"probably pasted from a web page; type --{argument.lstrip(_DASHES + '-')}"
                )
        first = args[0] if args else ""
        known = {*self.commands, *_ELSEWHERE}
        if first not in known and not first.startswith("-") and set("./") & set(first):
            raise UsageError(f"{first!r} is no command; to score a file: --input_file={first}")
        if args and args[0].startswith("-") and args[0] not in ("--help", "-h", "--version"):
            args = ["predict", *args]
        return super().make_context(info_name, args, parent, **extra)


@click.group(
    cls=_Commands,
    context_settings={
        "token_normalize_func": lambda token: token.replace("-", "_"),
        "help_option_names": ["--help", "-h"],
        "max_content_width": 100,
    },
)
@click.version_option(__version__, prog_name="batchpredict")
def cli() -> None:
    """Score files with an ONNX model.

    Without a command, `predict` is meant: batchpredict --input_file=data.csv
    """


@cli.command(cls=ToldCommand)
@predict_options
@click.pass_context
def predict(
    ctx: click.Context,
    /,
    *,
    metrics_dir: str | None,
    ping_url: str | None,
    quiet: bool,
    verbose: bool,
    log_format: str,
    **options: Any,
) -> int:
    """Score every row of one or more files."""
    from datetime import date

    from batchpredict.log import configure_logging
    from batchpredict.ops.task_names import task_name
    from batchpredict.ops.watching import Targets, monitored
    from batchpredict.request import place_of_run, read_request

    today = date.today()
    data_on_stdout = options["output_file"] == "-" or (
        "-" in options["input_file"] and not options["output_file"]
    )
    configure_logging(quiet, verbose, log_format, to_stderr=data_on_stdout)
    bar = False if quiet else options["progress"]
    del options["progress"]
    if options["dry_run"]:
        return _rehearse(read_request(options, today))
    name = task_name(*named_paths(ctx))
    try:
        metrics_dir = metrics_dir and place_of_run(metrics_dir, options, today)
    except UsageError as error:
        tell(name, Targets(None, ping_url), error)
        raise
    with monitored(name, Targets(metrics_dir, ping_url)) as watched:
        request = read_request(options, today)
        jobs = request.jobs()
        watched.jobs = tuple(jobs)
        with light_imports():
            from batchpredict.ops.backfill import backfill
            from batchpredict.run import runner
            from batchpredict.run.progress import Progress

        watch = Progress(bar)
        published = watched.after(watch.published)

        def score(job: Job) -> runner.Outcome:
            return runner.run(job, watch, published, watch.transferred)

        try:
            with deferred():
                code = backfill(jobs, score) if request.ranged else score(jobs[0]).exit_code
        finally:
            watch.close()
        watched.exit_code = code
        return code


def _rehearse(request: Request) -> int:
    from batchpredict.log import logger

    jobs = request.jobs()
    with light_imports():
        from batchpredict.ops import backfill
        from batchpredict.run import runner

    with deferred():
        if request.ranged:
            return backfill.rehearse(jobs, runner.rehearse)
        for line in runner.rehearse(jobs[0]):
            logger.info("%s", line)
    return 0


@cli.command()
@click.argument("model")
@click.argument("file", required=False)
@store_options
@input_options
@click.option(
    "--compare_precision",
    type=Place(),
    metavar="FILE",
    help="Instead, what each precision gives and costs on the first rows of FILE.",
)
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def inspect(
    model: str, file: str | None, compare_precision: str | None, as_json: bool, **options: Any
) -> int:
    """What MODEL expects and gives, and how the columns of FILE bind to it."""
    from batchpredict.log import configure_logging

    configure_logging(quiet=True, verbose=False, log_format="text", to_stderr=True)
    if file and compare_precision:
        raise UsageError(f"{file}: --compare_precision names its own file; leave one of them out")
    options["delimiter"] = "\t" if options["delimiter"] in ("tab", "\\t") else options["delimiter"]
    options["column"] = tuple(options["column"])
    import json

    job = Job(
        input_file=(compare_precision or file or "-",),
        model=os.path.expanduser(model),  # noqa: PTH111
        **options,
    )
    if compare_precision:
        with light_imports():
            from batchpredict.ops import compare

        comparison = compare.compare(job)
        found, table = compare.facts(comparison), compare.table(comparison)
    else:
        with light_imports():
            from batchpredict.run import inspection

        found = inspection.inspect(job, file)
        table = inspection.table(found)
    click.echo(json.dumps(found, indent=2, ensure_ascii=False) if as_json else table)
    return 0


@cli.command()
@predict_options
@click.option("--seconds", type=float, default=60.0, show_default=True, help="For all of it.")
@click.option("--svg", type=Place(), metavar="FILE", help="Draw the curve into FILE.")
@click.option(
    "--write_job",
    type=Place(),
    metavar="FILE",
    help="Make a job file with these options and sizes.",
)
def tune(
    seconds: float,
    svg: str | None,
    write_job: str | None,
    progress: bool | None,  # noqa: ARG001 - a job file of predict may hold these three
    metrics_dir: str | None,  # noqa: ARG001
    ping_url: str | None,  # noqa: ARG001
    quiet: bool,
    verbose: bool,
    log_format: str,
    **options: Any,
) -> int:
    """Find the batch sizes and workers that suit model, file and machine.

    Takes the options of `predict`. What it finds is kept for this model, and `predict` uses it.
    """
    from datetime import date

    from batchpredict.log import configure_logging, logger
    from batchpredict.request import read_request

    today = date.today()
    configure_logging(quiet, verbose, log_format, to_stderr=False)
    request = read_request(options, today)
    if request.ranged:
        raise UsageError("--from and --to: a batch size is found with one file; choose a --date")
    job = request.job()
    with light_imports():
        from batchpredict.ops import tuning_files, tuning_report
        from batchpredict.ops.tune import tune as find

    targets = tuning_files.Targets(svg, write_job)
    targets.check()
    found = find(job, seconds)
    click.echo(tuning_report.report(found))
    for line in targets.write(request.template(job), found):
        logger.info("%s", line)
    return 0


@cli.command()
@click.argument("receipt")
@click.option(
    "--input_file",
    type=Place(),
    metavar="PATH",
    help="The mended rejects; default: the rejects file of the run, mended in place.",
)
@click.option(
    "--output_file",
    type=Place(),
    metavar="PATH",
    help="Where all rows go; default: the output of the run is replaced.",
)
@click.option("--model", type=Place(), metavar="PATH", help="Where the model of the run is now.")
@lock_option
@click.option("--dry_run", is_flag=True, help="Every check, but no scoring and no writing.")
@monitoring_options
@logging_options
def retry(
    *,
    metrics_dir: str | None,
    ping_url: str | None,
    progress: bool | None,
    quiet: bool,
    verbose: bool,
    log_format: str,
    **options: Any,
) -> int:
    """Score rejected rows again, once they are mended, and put them into their output.

    RECEIPT is the file beside the output; all options of that run apply.
    """
    from datetime import date

    from batchpredict.log import configure_logging
    from batchpredict.ops.task_names import task_name
    from batchpredict.ops.watching import Targets, monitored
    from batchpredict.request import place_of_run

    configure_logging(quiet, verbose, log_format, to_stderr=False)
    bar = False if quiet else progress
    if options["dry_run"]:
        _retry(options, bar)
        return 0
    metrics_dir = metrics_dir and place_of_run(metrics_dir, {"date": None}, date.today())
    name = task_name(None, [options["receipt"]], [])
    with monitored(name, Targets(metrics_dir, ping_url)) as watched:
        receipt = _retry(options, bar)
        if receipt is not None:
            watched.exit_code = receipt.exit_code
            watched.after(_retried)(receipt)
        return watched.exit_code


def _retry(options: dict[str, Any], bar: bool | None) -> Receipt | None:
    with light_imports():
        from batchpredict.ops import retry as retrying
        from batchpredict.run.progress import Progress

    watch = Progress(bar)
    try:
        with deferred():
            return retrying.retry(retrying.Request(**options), watch)
    finally:
        watch.close()


def _retried(receipt: Receipt) -> None:
    from batchpredict.log import logger
    from batchpredict.ops import retry as retrying
    from batchpredict.run.progress import log_receipt

    for line in retrying.report(receipt):
        logger.info("%s", line)
    if receipt.exit_code:
        logger.warning("%s", retrying.remainder(receipt))
    log_receipt(receipt)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the one place that maps errors to codes."""
    _open_closed_streams()
    raise_on_signals()
    if argv is None:  # else the process is not ours to end
        watch_signals()
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with one_run():
            return _invoke(arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        place = place_of(error)
        _say(f"error: {place}{error.format_message()} (see batchpredict --help)")
        return ConfigInvalid.exit_code if place else error.exit_code
    except BatchPredictError as error:
        _say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        from batchpredict.log import to_nowhere

        to_nowhere(sys.stdout)
        _say("error: the reader of standard output has gone; not everything was printed")
        return OutputWriteFailed.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was not finished is not published, run it again")
        return 130
    except Terminated as error:
        _say("terminated; what was not finished is not published, run it again")
        return error.exit_code
    except Exception:  # noqa: BLE001 - the last resort, reported in full
        import platform
        import traceback

        _say(
            f"this is a bug in batchpredict {__version__} (Python {platform.python_version()}, "
            f"{platform.platform()}); please report it with:\n{traceback.format_exc()}",
            lines=True,
        )
        return 70


def _open_closed_streams() -> None:
    """A supervisor may start us with standard output or error closed: what goes there is lost.

    The descriptors are taken before a file of ours gets their numbers.
    """
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            descriptor = os.open(os.devnull, os.O_WRONLY)
            if descriptor != number:
                os.dup2(descriptor, number)
                os.close(descriptor)
            setattr(sys, name, os.fdopen(number, "w", closefd=False))


def _invoke(arguments: list[str]) -> int:
    """Not `cli.main`: it prints an empty line on Ctrl-C, and takes every EOFError for one."""
    try:
        with cli.make_context("batchpredict", arguments) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as error:  # --help and --version
        return error.exit_code


def _say(text: str, *, lines: bool = False) -> None:
    """Report an error, in one line unless `lines`; in the log where there is one already."""
    if "batchpredict.log" in sys.modules:
        from batchpredict.log import logger

        if logger.handlers:
            logger.error("%s", text.removeprefix("error: "), extra={"lines": lines})
            return
    sys.stderr.write(f"batchpredict: {text}\n")
