"""A call with wrong options: those who wait for its run are told that it failed.

At night nobody sees what a command says, and a job file with a slip of the pen is what an alert is
for.
"""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from batchpredict.errors import BatchPredictError, ConfigInvalid, UsageError
from batchpredict.options import JOB_FILE, named_paths

if TYPE_CHECKING:
    from batchpredict.ops.task_names import TaskName
    from batchpredict.ops.watching import Targets


class ToldCommand(click.Command):
    """A command with the options of `predict`. What refuses them is told to `metrics_dir` and
    `ping_url`, as far as these can be known.
    """

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)
        try:
            return super().parse_args(ctx, args)
        except (click.ClickException, BatchPredictError) as error:
            # In which nothing is refused: what is wrong is left out.
            known = self.make_context(
                ctx.info_name, given, ctx.parent,
                resilient_parsing=True, ignore_unknown_options=True, allow_extra_args=True,
            )  # fmt: skip
            _tell_of(known, _expected(error))
            raise


def place_of(error: click.ClickException) -> str:
    """Where a value that is no use came from, if not from the command line."""
    if not isinstance(error, click.BadParameter) or not error.ctx or not error.param:
        return ""
    source = error.ctx.get_parameter_source(error.param.name or "")
    if source is ParameterSource.ENVIRONMENT:
        return f"{error.param.envvar}: "
    if source is ParameterSource.DEFAULT_MAP:
        return f"{error.ctx.meta[JOB_FILE]}: "
    return ""


def tell(name: TaskName, targets: Targets, error: BatchPredictError) -> None:
    """Tell of a run that `error` has ended before it began."""
    from batchpredict.ops.watching import monitored

    with suppress(BatchPredictError), monitored(name, targets):
        raise error


def _expected(error: click.ClickException | BatchPredictError) -> BatchPredictError:
    """With the exit status that the call has."""
    if isinstance(error, BatchPredictError):
        return error
    place = place_of(error)
    return (ConfigInvalid if place else UsageError)(f"{place}{error.format_message()}")


def _tell_of(ctx: click.Context, error: BatchPredictError) -> None:
    params = ctx.params
    if not (params.get("metrics_dir") or params.get("ping_url")) or params.get("dry_run"):
        return
    from batchpredict.log import configure_logging
    from batchpredict.ops.task_names import task_name
    from batchpredict.ops.watching import Targets

    configure_logging(
        bool(params.get("quiet")), False, params.get("log_format") or "text", to_stderr=False
    )
    name = task_name(*named_paths(ctx))
    # Of a task that cannot be named, metrics would be those of none.
    metrics_dir = _metrics_dir(params) if name.source else None
    tell(name, Targets(metrics_dir, params.get("ping_url")), error)


def _metrics_dir(params: dict[str, Any]) -> str | None:
    from datetime import date

    from batchpredict.request import place_of_run

    with suppress(UsageError):
        directory = params.get("metrics_dir")
        return directory and place_of_run(directory, {"date": params.get("date")}, date.today())
    return None
