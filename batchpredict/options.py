"""The options of `predict`, each declared once; defaults are the Job's."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from batchpredict.job import Job

F = TypeVar("F", bound=Callable[..., Any])
_DEFAULTS = {field.name: field.default for field in dataclasses.fields(Job)}
_FORMATS = click.Choice(["csv", "tsv", "jsonl", "json", "avro", "parquet"])
# Where a context keeps the job file's name.
JOB_FILE = "batchpredict.job"
# Options of `predict` that are no fields of a Job.
OF_THE_RUN = ("progress", "quiet", "verbose", "log_format", "metrics_dir", "ping_url")
# What is looked for in a job file that is wrong elsewhere.
_OF_TELLING = ("quiet", "log_format", "metrics_dir", "ping_url", "date", "dry_run")


class _Lines(click.ParamType[Any]):
    """A text; an environment variable for a repeatable option holds one a line."""

    name = "text"

    def split_envvar_value(self, rv: str) -> list[str]:
        return [line for line in rv.split("\n") if line]


class Place(_Lines):
    """A path, an address or a name of a place, of which none is empty.

    Where a script's variable was not set, `--output_dir=$OUT` would go somewhere else. An empty
    variable of the environment is none: click says so.
    """

    name = "path"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if value == "":
            self.fail("is empty; give it a value, or leave it out", param, ctx)
        return str(value)


class _File(Place):
    """A path; the devices' names of standard input and output are other spellings of "-"."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        name = super().convert(value, param, ctx)
        return "-" if name in ("/dev/stdin", "/dev/stdout") else name


class _Names(click.ParamType[Any]):
    """Column names, separated by commas (quoted as in CSV); a list in a job file."""

    name = "a,b,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, ...]:
        if isinstance(value, str):
            import csv

            names = next(csv.reader([value], skipinitialspace=True), [])
            return tuple(name.strip() for name in names)
        if not (isinstance(value, tuple | list) and all(isinstance(name, str) for name in value)):
            self.fail(f"{value!r} is not a list of names", param, ctx)
        return tuple(value)


class _Numbers(click.ParamType[Any]):
    """Whole numbers, separated by commas; a list in a job file."""

    name = "n,n,…"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[int, ...]:
        parts = value.split(",") if isinstance(value, str) else value
        try:
            if not isinstance(value, str) and any(type(part) is not int for part in parts):
                raise TypeError
            return tuple(sorted({int(part) for part in parts}))
        except (TypeError, ValueError):
            self.fail(f"{value!r} is not a list of whole numbers (17,18)", param, ctx)


class Pairs(_Lines):
    """A name, an equals sign and a value, as `name` says: input=column."""

    def __init__(self, name: str) -> None:
        self.name = name

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> tuple[str, str]:
        if isinstance(value, tuple | list):
            return (value[0], value[1])
        name, equals, column = value.partition("=")
        if not (name and equals and column):
            self.fail(f"{value!r} is not {self.name.upper()}", param, ctx)
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


class _Seconds(click.ParamType[Any]):
    """A duration: 7200, 90m, 12h, 7d."""

    name = "seconds"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> float:
        text = str(value)
        unit = {"s": 1, "m": 60, "h": 3600, "d": 86400}.get(text[-1:])
        try:
            return float(text[:-1]) * unit if unit else float(text)
        except ValueError:
            self.fail(f"{text!r} is not a duration (3600, 90m, 12h, 7d)", param, ctx)


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

        ctx.meta[JOB_FILE] = value
        if ctx.resilient_parsing:
            ctx.default_map = read_job_file(value, {*_OF_TELLING}, only_known=True)
        else:
            ctx.default_map = read_job_file(value, known)
    return value


def _options(*declared: Callable[[F], F]) -> Callable[[F], F]:
    def decorate(function: F) -> F:
        for option in reversed(declared):
            function = option(function)
        return function

    return decorate


lock_option = _option(
    "lock_wait",
    type=float,
    metavar="SECONDS",
    help="How long to wait for another run that writes the same output.",
)
job_option = click.option(
    "--job",
    type=Place(),
    is_eager=True,
    expose_value=False,
    envvar="BATCHPREDICT_JOB",
    callback=_load_job_file,
    metavar="FILE",
    help="TOML file with any of these options; command line and environment beat it.",
)
model_option = _option(
    "model",
    type=Place(),
    help="A .onnx file, a model directory, NAME, NAME@ALIAS or NAME@VERSION of the model store, or "
    "s3://BUCKET/FOLDER/; without it, the bundled example.",
    metavar="MODEL",
)
access_options = _options(
    _option("endpoint_url", type=Place(), metavar="URL", help="Of an S3 store that is not AWS."),
    _option(
        "service",
        type=Place(),
        metavar="NAME",
        help="Which object store of VCAP_SERVICES, if it has several.",
    ),
)
store_option = _option(
    "model_store",
    type=Place(),
    metavar="PATH",
    help="Where models are: s3://BUCKET/FOLDER/ or a directory.",
)
store_options = _options(
    store_option,
    _option(
        "max_model_age",
        type=_Seconds(),
        metavar="AGE",
        help="How old (12h, 7d) what an alias named last may be where the store cannot be reached.",
    ),
    _option("offline", is_flag=True, help="Never ask the model store; take what is cached."),
    access_options,
)
input_options = _options(
    _option("input_format", type=_FORMATS, help="Instead of the one its suffix names."),
    _option(
        "column",
        type=Pairs("input=column"),
        multiple=True,
        help="Bind a model input to a column; repeatable.",
    ),
    _option("delimiter", help="Of CSV; default: a comma, a tab for tsv.", metavar="CHAR"),
    _option("encoding", help="Of CSV and TSV; a byte order mark overrules it."),
    _option("no_header", is_flag=True, help="The first line is a row; columns are 1, 2, …"),
    _option("max_record_bytes", type=_Bytes(), help="Longest record; longer ones are rejected."),
)
file_options = _options(
    _option(
        "input_file",
        type=_File(),
        multiple=True,
        metavar="PATH",
        help="Path, glob, directory, or - for standard input; repeatable.",
    ),
    _option(
        "output_file",
        type=_File(),
        metavar="PATH",
        help="Where scored rows go; - for standard output.",
    ),
    _option(
        "output_dir", type=Place(), metavar="DIR", help="Where the outputs of several inputs go."
    ),
    _option("output_format", type=_FORMATS, help="Instead of the output's suffix or the input's."),
    _option("rejects_file", type=Place(), metavar="PATH", help="Instead of OUTPUT.rejects.jsonl."),
    _option("receipt_file", type=Place(), metavar="PATH", help="Instead of OUTPUT.receipt.json."),
)
date_options = _options(
    _option(
        "date",
        metavar="DAY",
        help="Day of {date} in the names of files: 2026-11-20, yesterday. [today]",
    ),
    _option("from", metavar="DAY", help="First day of a range; each is a job of its own."),
    _option("to", metavar="DAY", help="Last day of a range."),
)
arrival_options = _options(
    _option(
        "wait_for_input",
        type=_Seconds(),
        metavar="SECONDS",
        help="How long to wait for an input that is late.",
    ),
    _option(
        "stable_for",
        type=_Seconds(),
        metavar="SECONDS",
        help="Leave inputs alone that were changed within so long.",
    ),
    _option(
        "if_missing",
        type=click.Choice(["fail", "skip"]),
        help="Where there is no input, or none that is complete.",
    ),
)
scoring_options = _options(
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
    _option(
        "baseline",
        type=Place(),
        metavar="RECEIPT",
        help="The run that predictions are compared with.",
    ),
    _option(
        "max_drift",
        type=float,
        metavar="PSI",
        help="How far predictions may move from earlier runs; 0.25 is usual.",
    ),
    _option("on_drift", type=click.Choice(["warn", "fail"]), help="Where they move farther."),
    _option("limit", type=int, help="Only the first N rows.", metavar="N"),
    _option("skip_rows", type=_Numbers(), help="Leave rows out, by number; they are rejected."),
    _option(
        "if_done",
        type=click.Choice(["skip", "rescore", "fail"]),
        help="Where the output is there already, of the same input, model and options.",
    ),
    _option(
        "no_resume", is_flag=True, help="Start over, even if an earlier run can be gone on with."
    ),
    _option(
        "max_seconds",
        type=float,
        metavar="SECONDS",
        help="Stop after so long (exit 75); the same command goes on from there.",
    ),
    lock_option,
    _option("dry_run", is_flag=True, help="Every check, but no scoring and no writing."),
)
engine_options = _options(
    _option("batch_rows", type=int, help="Most rows in one run of the session."),
    _option("batch_tokens", type=int, help="Most padded tokens in one run of the session."),
    _option("workers", type=int, help="Callers of the session side by side. [effective cores]"),
    _option("no_tuning", is_flag=True, help="Ignore what `tune` has found for this model."),
    _option("memory_limit", type=_Bytes(), help="Plan within so much memory, or refuse."),
    _option("provider", type=click.Choice(["cpu", "openvino"]), help="Execution provider."),
    _option(
        "precision",
        type=click.Choice(["model", "bf16", "int8"]),
        help="As the file is; bf16 selects openvino; int8 needs the extra [optimize].",
    ),
)
cluster_options = _options(
    _option("engine", type=click.Choice(["local", "ray"]), help="Score here, or on a Ray cluster."),
    _option("ray_address", metavar="ADDRESS", help="Of the cluster; without it, one on this box."),
    _option("actors", metavar="MIN:MAX", help="How many processes score. [one per CPU]"),
    _option("cpus_per_actor", type=int, help="CPUs of each, and callers of its session."),
    _option(
        "output_parts", is_flag=True, help="Leave the output as a folder of parts, do not join."
    ),
    _option("shard_bytes", type=_Bytes(), help="Size of the shards that an input is cut into."),
)
logging_options = _options(
    _option("progress/no_progress", default=None, help="A bar; default: on a terminal only."),
    _option("quiet", is_flag=True, default=False, help="Only warnings and errors."),
    _option("verbose", is_flag=True, default=False, help="More detail in the log."),
    _option("log_format", type=click.Choice(["text", "json"]), default="text"),
)
# Of the run, not of the job: they are in no receipt, where an address for pings would be read.
monitoring_options = _options(
    _option(
        "metrics_dir",
        type=Place(),
        metavar="DIR",
        help="Keep a Prometheus text file about the last run there.",
    ),
    _option(
        "ping_url",
        type=Place(),
        metavar="URL",
        help="Tell healthchecks.io, or the like, of start and exit.",
    ),
)
predict_options = _options(
    job_option,
    file_options,
    date_options,
    arrival_options,
    model_option,
    store_options,
    input_options,
    scoring_options,
    engine_options,
    cluster_options,
    monitoring_options,
    logging_options,
)


def named_paths(ctx: click.Context) -> tuple[str | None, list[str], list[str]]:
    """The job file; then inputs and outputs that do not come from it, as they were given."""

    def given(name: str) -> list[str]:
        if ctx.get_parameter_source(name) in (ParameterSource.DEFAULT, ParameterSource.DEFAULT_MAP):
            return []
        value = ctx.params.get(name)
        return [value] if isinstance(value, str) else list(value or ())

    job_file: str | None = ctx.meta.get(JOB_FILE)
    return job_file, given("input_file"), given("output_file") + given("output_dir")
