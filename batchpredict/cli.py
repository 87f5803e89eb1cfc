"""The command line: parse, call, print, exit. No logic, and nothing heavy at import.

What `--help` does not need is imported where it is used.
"""

from __future__ import annotations

import dataclasses
import io
import logging
import os
import platform
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from batchpredict import __version__
from batchpredict.errors import (
    BatchPredictError,
    ConfigInvalid,
    OutputWriteFailed,
    Terminated,
    UsageError,
)
from batchpredict.job import Job

logger = logging.getLogger("batchpredict")

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Job)}
_FORMATS = click.Choice(["csv", "tsv", "jsonl", "json", "avro", "parquet"])
_JOB_FILE = "batchpredict.job"
# Typographic dashes that web pages and word processors make of "--".
_DASHES = "\u2010\u2011\u2012\u2013\u2014\u2015\u2212"


class _Lines(click.ParamType[Any]):
    """A text; an environment variable for a repeatable option holds one a line."""

    name = "text"
    envvar_list_splitter = "\n"


class _Path(_Lines):
    """A path; the devices' names of standard input and output are other spellings of "-"."""

    name = "path"

    def convert(
        self,
        value: Any,
        param: click.Parameter | None,  # noqa: ARG002 - click's signature
        ctx: click.Context | None,  # noqa: ARG002
    ) -> str:
        return "-" if value in ("/dev/stdin", "/dev/stdout") else str(value)


class _Names(click.ParamType[Any]):
    """Column names, separated by commas (quoted as in CSV); a list in a job file."""

    name = "a,b,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, str):
            import csv

            return tuple(next(csv.reader([value], skipinitialspace=True), []))
        if not (isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)):
            self.fail(f"{value!r} is not a list of names", param, ctx)
        return tuple(value)


class _Pairs(_Lines):
    """INPUT=COLUMN."""

    name = "input=column"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple | list):
            return (value[0], value[1])
        name, equals, column = value.partition("=")
        if not (name and equals and column):
            self.fail(f"{value!r} is not INPUT=COLUMN", param, ctx)
        return (name, column)


class _Bytes(click.ParamType[Any]):
    """A number of bytes: 1048576, 512KiB, 16MiB, 1GiB."""

    name = "bytes"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        text = str(value)
        for unit, factor in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30)):
            if text.endswith(unit) and text[:-3].strip().isdecimal():
                return int(text[:-3]) * factor
        if not text.isdecimal():
            self.fail(f"{text!r} is not a number of bytes (1048576, 512KiB, 16MiB)", param, ctx)
        return int(text)


def _option(name: str, **attributes: Any) -> Callable[[F], F]:
    """An option whose environment variable and default follow from its name."""
    plain = name.split("/")[0]
    attributes.setdefault("default", _DEFAULTS.get(plain))
    if attributes["default"] is dataclasses.MISSING or attributes.get("multiple"):
        attributes.pop("default")
    declared = "/".join(f"--{part}" for part in name.split("/"))
    shown = attributes.get("default") not in (None, False, "", ())
    return click.option(
        declared,
        envvar=f"BATCHPREDICT_{plain.upper()}",
        show_default=shown,
        **attributes,
    )


def _load_job_file(ctx: click.Context, param: click.Parameter, value: str | None) -> str | None:  # noqa: ARG001
    if value:
        known = {p.name or "" for p in ctx.command.params} - {"job", "help"}
        from batchpredict.jobfile import read_job_file

        ctx.default_map = read_job_file(value, known)
        ctx.meta[_JOB_FILE] = value
    return value


def _options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(declared):
            function = option(function)
        return function

    return decorate


_job_option = click.option(
    "--job",
    is_eager=True,
    expose_value=False,
    envvar="BATCHPREDICT_JOB",
    callback=_load_job_file,
    metavar="FILE",
    help="TOML file with any of these options; command line and environment beat it.",
)
_model_option = _option(
    "model",
    help="A .onnx file or a model directory; without it, the bundled example.",
    metavar="PATH",
)
_input_options = _options(
    _option("input_format", type=_FORMATS, help="Instead of the one its suffix names."),
    _option(
        "column", type=_Pairs(), multiple=True, help="Bind a model input to a column; repeatable."
    ),
    _option("delimiter", help="Of CSV; default: a comma, a tab for tsv.", metavar="CHAR"),
    _option("encoding", help="Of CSV and TSV; a byte order mark overrules it."),
    _option("no_header", is_flag=True, help="The first line is a row; columns are 1, 2, …"),
    _option("max_record_bytes", type=_Bytes(), help="Longest record; longer ones are rejected."),
)
_file_options = _options(
    _option(
        "input_file",
        type=_Path(),
        multiple=True,
        metavar="PATH",
        help="Path, glob, directory, or - for standard input; repeatable.",
    ),
    _option(
        "output_file",
        type=_Path(),
        metavar="PATH",
        help="Where scored rows go; - for standard output.",
    ),
    _option("output_dir", metavar="DIR", help="Where the outputs of several inputs go."),
    _option("output_format", type=_FORMATS, help="Instead of the output's suffix or the input's."),
    _option("rejects_file", metavar="PATH", help="Instead of OUTPUT.rejects.jsonl."),
    _option("receipt_file", metavar="PATH", help="Instead of OUTPUT.receipt.json."),
)
_scoring_options = _options(
    _option("keep", type=_Names(), help="Input columns in the output: all, none, or a list."),
    _option("outputs", type=_Names(), help="Further outputs of the graph to add."),
    _option(
        "scores",
        type=click.Choice(["top", "all", "none"]),
        help="The label's score, one per label, or none.",
    ),
    _option("threshold", type=float, help="For binary and multi-label models. [manifest, or 0.5]"),
    _option("prefix", help="In front of the names of added columns."),
    _option(
        "on_error",
        type=click.Choice(["reject", "null", "fail"]),
        help="A row that cannot be scored: rejects file, empty prediction, or end of the run.",
    ),
    _option("max_rejects", help="Rows (100) or share (5%) beyond which nothing is published."),
    _option("limit", type=int, help="Only the first N rows.", metavar="N"),
    _option("dry_run", is_flag=True, help="Every check, but no scoring and no writing."),
)
_engine_options = _options(
    _option("batch_rows", type=int, help="Most rows in one run of the session."),
    _option("batch_tokens", type=int, help="Most padded tokens in one run of the session."),
    _option("workers", type=int, help="Callers of the session side by side. [effective cores]"),
    _option("provider", type=click.Choice(["cpu"]), help="Execution provider."),
)
_logging_options = _options(
    _option("progress/no_progress", default=None, help="A bar; default: on a terminal only."),
    _option("quiet", is_flag=True, default=False, help="Only warnings and errors."),
    _option("verbose", is_flag=True, default=False, help="More detail in the log."),
    _option("log_format", type=click.Choice(["text", "json"]), default="text"),
)


class _Commands(click.Group):
    """Underscores and dashes are one; `predict` is meant where no command is named."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any
    ) -> click.Context:
        for argument in args:
            if argument[:1] in _DASHES and argument[:1]:
                raise UsageError(
                    f"{argument!r} starts with a typographic dash (U+{ord(argument[0]):04X}), "
                    f"probably pasted from a web page; type --{argument.lstrip(_DASHES + '-')}"
                )
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


@cli.command()
@_job_option
@_file_options
@_model_option
@_input_options
@_scoring_options
@_engine_options
@_logging_options
def predict(
    progress: bool | None, quiet: bool, verbose: bool, log_format: str, **options: Any
) -> int:
    """Score every row of one or more files."""
    data_on_stdout = options["output_file"] == "-" or (
        "-" in options["input_file"] and not options["output_file"]
    )
    configure_logging(quiet, verbose, log_format, to_stderr=data_on_stdout)
    job = _job(options)
    from batchpredict.run import runner
    from batchpredict.run.progress import Progress, summary

    if job.dry_run:
        for line in runner.rehearse(job):
            logger.info("%s", line)
        return 0
    watch = Progress(False if quiet else progress)
    try:
        outcome = runner.run(job, watch)
    finally:
        watch.close()
    for receipt in outcome.receipts:
        logger.info("%s", summary(receipt))
        for what in ("output", "rejects"):
            file = getattr(receipt, what)
            if file and file.path and file.path != "-":
                logger.info("%s: %s", what, file.path)
        if receipt.counts.rejected or receipt.counts.nulls:
            logger.warning(
                "%s: %d rows could not be scored (%s)",
                receipt.inputs[0].path,
                sum(receipt.rejects.codes.values()),
                ", ".join(f"{code} {count}" for code, count in receipt.rejects.codes.items()),
            )
    return outcome.exit_code


def _job(options: dict[str, Any]) -> Job:
    """The job that the merged options describe."""
    options["keep"] = _all_or_none(options["keep"])
    if options["delimiter"] in ("tab", "\\t"):
        options["delimiter"] = "\t"
    model = options.pop("model")
    if not model:
        model = os.environ.get("BATCHPREDICT_DEFAULT_MODEL")
        if not model:
            raise UsageError("no model: pass --model=PATH (a .onnx file or a model directory)")
        logger.info("no model was named; the bundled example is used: %s", model)
    options = {
        name: tuple(value) if isinstance(value, list) else value for name, value in options.items()
    }
    return Job(model=os.path.expanduser(model), **options)  # noqa: PTH111


def _all_or_none(keep: tuple[str, ...] | str) -> tuple[str, ...] | str:
    return keep[0] if isinstance(keep, tuple) and keep in (("all",), ("none",)) else keep


@cli.command()
@click.argument("model")
@click.argument("file", required=False)
@_input_options
@click.option("--json", "as_json", is_flag=True, help="One JSON object instead of a table.")
def inspect(model: str, file: str | None, as_json: bool, **options: Any) -> int:
    """What MODEL expects and gives, and how the columns of FILE bind to it."""
    configure_logging(quiet=True, verbose=False, log_format="text", to_stderr=True)
    options["delimiter"] = "\t" if options["delimiter"] in ("tab", "\\t") else options["delimiter"]
    options["column"] = tuple(options["column"])
    import json

    from batchpredict.run import inspection

    job = Job(input_file=(file or "-",), model=os.path.expanduser(model), **options)  # noqa: PTH111
    found = inspection.inspect(job, file)
    text = json.dumps(found, indent=2, ensure_ascii=False) if as_json else inspection.table(found)
    click.echo(text)
    return 0


class _Log(logging.StreamHandler[Any]):
    """A log whose reader may go or whose disk may be full: the run goes on without it."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - logging's name
        error = sys.exception()
        if not isinstance(error, OSError):
            super().handleError(record)
            return
        _to_nowhere(self.stream)
        if not isinstance(error, BrokenPipeError) and self.stream is not sys.stderr:
            reason = (error.strerror or "").lower()
            sys.stderr.write(f"batchpredict: the log cannot be written: {reason}\n")


def _to_nowhere(stream: Any) -> None:
    """Drop what a broken stream still holds and will be given, or Python fails on it at exit."""
    descriptor = os.open(os.devnull, os.O_WRONLY)
    os.dup2(descriptor, stream.fileno())
    os.close(descriptor)


class _JsonLines(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        entry = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S%z"),
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        import json

        return json.dumps(entry, ensure_ascii=False)


def configure_logging(quiet: bool, verbose: bool, log_format: str, to_stderr: bool) -> None:
    """The log to stdout (to stderr where the data owns stdout), warnings and errors to stderr."""
    formatter = (
        _JsonLines()
        if log_format == "json"
        else logging.Formatter("%(asctime)s %(levelname)s %(message)s", "%Y-%m-%d %H:%M:%S")
    )
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # names need not fit the locale's encoding
            stream.reconfigure(errors="backslashreplace")
    log = _Log(sys.stderr if to_stderr else sys.stdout)
    log.addFilter(lambda record: record.levelno < logging.WARNING)
    warnings = _Log(sys.stderr)
    warnings.setLevel(logging.WARNING)
    root = logging.getLogger("batchpredict")
    root.handlers = [log, warnings]
    for handler in root.handlers:
        handler.setFormatter(formatter)
    root.setLevel(logging.DEBUG if verbose else logging.WARNING if quiet else logging.INFO)
    root.propagate = False


def _terminate(signum: int, frame: Any) -> None:  # noqa: ARG001
    raise Terminated("terminated")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; the one place that maps errors to codes."""
    signal.signal(signal.SIGTERM, _terminate)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _invoke(arguments)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        return 2
    except click.ClickException as error:
        place = _place_of(error)
        _say(f"error: {place}{error.format_message()} (see batchpredict --help)")
        return ConfigInvalid.exit_code if place else error.exit_code
    except BatchPredictError as error:
        _say(f"error: {error}")
        return error.exit_code
    except BrokenPipeError:
        _to_nowhere(sys.stdout)
        _say("error: the reader of standard output has gone; not everything was printed")
        return OutputWriteFailed.exit_code
    except KeyboardInterrupt:
        _say("interrupted; what was not finished is not published, run it again")
        return 130
    except Terminated as error:
        _say("terminated; what was not finished is not published, run it again")
        return error.exit_code
    except Exception:  # noqa: BLE001 - the last resort, reported in full
        _say(
            f"this is a bug in batchpredict {__version__} (Python {platform.python_version()}, "
            f"{platform.platform()}); please report it with:\n{traceback.format_exc()}"
        )
        return 70


def _invoke(arguments: list[str]) -> int:
    """Not `cli.main`: it prints an empty line on Ctrl-C, and takes every EOFError for one."""
    try:
        with cli.make_context("batchpredict", arguments) as context:
            return int(cli.invoke(context) or 0)
    except click.exceptions.Exit as error:  # --help and --version
        return error.exit_code


def _place_of(error: click.ClickException) -> str:
    """Where a value that is no use came from, if not from the command line."""
    if not isinstance(error, click.BadParameter) or not error.ctx or not error.param:
        return ""
    source = error.ctx.get_parameter_source(error.param.name or "")
    if source is ParameterSource.ENVIRONMENT:
        return f"{error.param.envvar}: "
    if source is ParameterSource.DEFAULT_MAP:
        return f"{error.ctx.meta[_JOB_FILE]}: "
    return ""


def _say(text: str) -> None:
    if logger.handlers:
        logger.error("%s", text.removeprefix("error: "))
    else:
        sys.stderr.write(f"batchpredict: {text}\n")
