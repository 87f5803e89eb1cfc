r"""A DAG that scores one file a night: the job file below, for the logical date of the run.

Copy it into the folder of the DAGs and edit what stands in capitals. It needs Airflow 3.2 or newer
(in 3.0 and 3.1 the exceptions are in `airflow.exceptions`) and batchpredict on the workers, in an
environment of its own: nothing of it is imported here.

What becomes of a task, by the exit status of batchpredict:

    0               success
    3               success with a warning in the log: published, some rows were rejected
    75, 143         tried again, and goes on where it was: `max_seconds` are over, another run
                    writes the output, the input is still being uploaded; or it was terminated
    killed          tried again likewise: out of memory, a node that went away
    anything else   failed at once: a second try would end as the first one did

Days that were missed:

    airflow backfill create --dag-id=batchpredict_nightly \
        --from-date=2026-10-01 --to-date=2026-10-31
"""

from __future__ import annotations

from datetime import timedelta
from functools import cached_property
from typing import Any

import pendulum
from airflow.providers.standard.hooks.subprocess import SubprocessHook
from airflow.sdk import DAG, BaseOperator
from airflow.sdk.exceptions import AirflowException, AirflowFailException

COMMAND = "/opt/batchpredict/bin/batchpredict"
JOB = "/srv/batchpredict/nightly.toml"
SCHEDULE = "0 2 * * *"
TIMEZONE = "Europe/Berlin"

REJECTS = 3
GO_ON = (75, 143)

# Not `ds`: that is the day in UTC, often yesterday's, and runs triggered by hand may have none.
DATE = "{{ (dag_run.logical_date or dag_run.run_after).astimezone(dag.timezone) | ds }}"


class BatchPredictOperator(BaseOperator):
    """Runs `batchpredict predict` with these arguments; its result (XCom) is the exit status."""

    template_fields = ("arguments",)

    def __init__(self, *, arguments: list[str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.arguments = arguments

    @cached_property
    def hook(self) -> SubprocessHook:
        return SubprocessHook()

    def execute(self, context: Any) -> int:  # noqa: ARG002
        status = self.hook.run_command([COMMAND, "predict", *self.arguments]).exit_code
        if status == REJECTS:
            self.log.warning("published, but some rows were rejected: see the lines above")
        elif status in GO_ON or status < 0:
            raise AirflowException(f"batchpredict stopped ({status}); the next try goes on there")
        elif status:
            raise AirflowFailException(f"batchpredict failed: exit status {status}")
        return status

    def on_kill(self) -> None:
        # It keeps what is scored and ends within five seconds.
        self.hook.send_sigterm()


with DAG(
    "batchpredict_nightly",
    schedule=SCHEDULE,
    start_date=pendulum.datetime(2026, 1, 1, tz=TIMEZONE),
    catchup=False,
    # Of two runs at once that write one output, the second would end with 75.
    max_active_runs=1,
):
    BatchPredictOperator(
        task_id="score",
        arguments=[
            f"--job={JOB}",
            f"--date={DATE}",
            # It stops by itself, and well before execution_timeout would terminate it.
            "--max_seconds=7200",
        ],
        execution_timeout=timedelta(hours=2, minutes=10),
        retries=5,
        retry_delay=timedelta(minutes=5),
    )
