"""Run by the Python of .venv-airflow: parses a folder of DAGs, and runs them to their ends.

    python airflow_runs.py DAGS RUNS RESULTS

RUNS is a JSON list of pairs, DAG and logical date (null for none). RESULTS is a JSON file: what
could not be imported, and of each run its state, that of its task, the number of tries, and what
the task returned.
"""

from __future__ import annotations

import json
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pendulum
from airflow.dag_processing.dagbag import DagBag
from airflow.models.xcom import XComModel
from airflow.utils import db
from airflow.utils.session import create_session


def run(dag: Any, logical_date: str | None) -> dict[str, Any]:
    (task,) = dag.tasks
    task.retry_delay = timedelta(0)
    finished = dag.test(logical_date=pendulum.parse(logical_date) if logical_date else None)
    (instance,) = finished.get_task_instances()
    with create_session() as session:
        query = XComModel.get_many(run_id=finished.run_id, dag_ids=dag.dag_id)
        results = [found.value for found in session.scalars(query)]
    return {
        "run": finished.state,
        "task": instance.state,
        "tries": instance.try_number,
        "results": results,
    }


def main(dags: str, runs: str, results: str) -> None:
    db.initdb()
    bag = DagBag(dags)
    found: dict[str, Any] = {"import_errors": bag.import_errors, "runs": []}
    if not bag.import_errors:
        found["runs"] = [run(bag.dags[name], date) for name, date in json.loads(runs)]
    Path(results).write_text(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
