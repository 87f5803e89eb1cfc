"""The command `schedule`: it takes the options of `predict` and has them run later."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any

import click
from click.core import ParameterSource

from batchpredict.errors import ConfigInvalid, UsageError
from batchpredict.options import JOB_FILE, OF_THE_RUN, Place, predict_options

_ARGUMENTS = "batchpredict.arguments"
# Not of predict.
_OWN = ("when", "name", "install", "remove", "list", "systemd", "on_arrival", "log_file")


class _Kept(click.Command):
    """A command that keeps its arguments as they were typed."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.meta[_ARGUMENTS] = list(args)
        return super().parse_args(ctx, args)


@click.command(cls=_Kept)
@click.argument("when", required=False)
@click.option("--name", metavar="NAME", help="Of the entry. [after the job file or the input]")
@click.option("--install", is_flag=True, help="Put the entry into your crontab.")
@click.option("--remove", is_flag=True, help="Take the entry out of your crontab.")
@click.option("--list", is_flag=True, help="Show the entries in your crontab.")
@click.option("--systemd", is_flag=True, help="A service and a timer instead of a crontab entry.")
@click.option("--on_arrival", is_flag=True, help="With --systemd: when a file arrives, too.")
@click.option(
    "--log_file", type=Place(), metavar="PATH", help="Where the log grows. [~/NAME.log; journal]"
)
@predict_options
@click.pass_context
def schedule(ctx: click.Context, /, when: str | None, **options: Any) -> int:
    """Have cron run `predict` with these options: batchpredict schedule "0 2 * * *" --job=FILE

    Prints the crontab entry, and on standard error when it runs next.
    """
    from batchpredict.ops import schedule as scheduling
    from batchpredict.ops import units

    own = {name: options.pop(name) for name in _OWN[1:]}
    if own["install"] + own["remove"] + own["list"] > 1:
        raise UsageError("--install, --remove and --list exclude each other")
    if own["list"]:
        _say(
            iter(units.names() or ["no units of batchpredict schedule are there"])
            if own["systemd"]
            else scheduling.listed()
        )
        return 0
    is_named = own["name"] is not None
    name = scheduling.check_name(own["name"]) if is_named else None
    name = name or scheduling.name_of(ctx.meta.get(JOB_FILE), options["input_file"] or ("",))
    if own["remove"]:
        removed = scheduling.remove_units if own["systemd"] else scheduling.remove_entry
        _say(removed(name))
        return 0
    planned = _planned(ctx, when, options, {**own, "name": name})
    if own["install"]:
        install = scheduling.install_units if own["systemd"] else scheduling.install_entry
        _say(install(planned, is_named))
    elif own["systemd"]:
        for file, text in planned.units().items():
            click.echo(f"# {units.directory() / file}\n{text}")
    else:
        click.echo(planned.line())
    for line in scheduling.told(planned.timing):
        click.echo(line, err=not own["install"])
    return 0


def _say(lines: str | Iterator[str]) -> None:
    for line in [lines] if isinstance(lines, str) else lines:
        click.echo(line)


def _planned(
    ctx: click.Context, when: str | None, options: dict[str, Any], own: dict[str, Any]
) -> Any:
    from datetime import date

    from batchpredict.ops import schedule as scheduling
    from batchpredict.ops.timing import parse_timing
    from batchpredict.request import read_request

    if not when:
        raise UsageError('when? batchpredict schedule "0 2 * * *" --job=nightly.toml')
    timing = parse_timing(when)
    _check_sources(ctx)
    if options["ping_url"] is not None:
        from batchpredict.ops.pings import Pings

        Pings(options["ping_url"], "0" * 16)  # is an address
    for name in OF_THE_RUN:
        options.pop(name)
    if options["from"] or options["to"] or options["date"] not in (None, "today", "yesterday"):
        raise UsageError("a fixed day would be the same each time; leave --date, --from, --to out")
    job = read_request(options, date.today()).job()
    scheduling.check_unattended(job)
    watched = None
    if own["on_arrival"]:
        if not own["systemd"]:
            raise UsageError("--on_arrival needs --systemd; cron can look every minute (* * * * *)")
        watched = scheduling.watched(options["input_file"], job)
    log_file = own["log_file"] and _from_anywhere(own["log_file"])
    call = scheduling.call(own["name"], list(_arguments(ctx)))
    return scheduling.Schedule(timing, call, log_file, watched)


def _check_sources(ctx: click.Context) -> None:
    """What is in the environment now is not there later; what is ours is not a job file's."""
    for param in ctx.command.params:
        source = ctx.get_parameter_source(param.name or "")
        if param.name in _OWN and source is ParameterSource.DEFAULT_MAP:
            raise ConfigInvalid(f"{ctx.meta[JOB_FILE]}: unknown option {param.name!r}")
        if source is ParameterSource.ENVIRONMENT:
            way = f"pass --{param.name}"
            if param.name == "ping_url":  # a crontab's entries are in the system's log
                way = "put it into the job file"
            raise UsageError(
                f"{param.envvar} is set here, but will not be then; unset it, and {way} where it "
                "is meant"
            )


def _arguments(ctx: click.Context) -> Iterator[str]:
    """The options of predict as they were typed, with names that can be given from anywhere."""
    values, _, order = ctx.command.make_parser(ctx).parse_args(args=list(ctx.meta[_ARGUMENTS]))
    for param in dict.fromkeys(order):
        if not isinstance(param, click.Option) or param.name in _OWN:
            continue
        value = values[param.name]
        if param.is_flag:
            spelled = param.opts if value in (True, "True") else param.secondary_opts
            yield spelled[0]
            continue
        for each in value if param.multiple else [value]:
            given = _placed(str(param.name), each, bool(ctx.params["model_store"]))
            yield f"{param.opts[0]}={given}"


def _placed(name: str, value: str, has_store: bool) -> str:
    from batchpredict.jobfile import placed

    return _from_anywhere(value) if name == "job" else placed(name, value, has_store=has_store)


def _from_anywhere(path: str) -> str:
    """Of a file in whose name no date is put."""
    return os.path.abspath(os.path.expanduser(path))  # noqa: PTH100, PTH111 - links stay
