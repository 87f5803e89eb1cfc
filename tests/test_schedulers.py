"""The examples for Kubernetes and Cloud Foundry are valid, and do what they say."""

from __future__ import annotations

import datetime
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
import yaml

from tests import s3servers
from tests.stand_in import CHECKOUT, write_command

EXAMPLES = CHECKOUT / "examples"
WRAPPER = str(EXAMPLES / "accept_rejects.sh")
CRONJOB = EXAMPLES / "kubernetes_cronjob.yaml"
MANIFEST = EXAMPLES / "cloudfoundry_manifest.yml"

FLIGHTS = (EXAMPLES / "flights.csv").read_text(encoding="utf-8").splitlines(keepends=True)
TOO_FEW_CELLS = "2013,1\n"


def read_yaml(path: Path) -> list[Any]:
    return list(yaml.safe_load_all(path.read_text(encoding="utf-8")))


def upload(client: Any, bucket: str, key: str, *lines: str) -> None:
    client.put_object(Bucket=bucket, Key=key, Body="".join(lines).encode())


def keys_in(client: Any, bucket: str) -> list[str]:
    return [found["Key"] for found in client.list_objects_v2(Bucket=bucket)["Contents"]]


class TestAcceptRejects:
    @pytest.mark.parametrize("status", [0, 1, 2, 3, 65, 75, 137, 143])
    def test_only_3_becomes_0(self, status: int) -> None:
        command = [WRAPPER, "sh", "-c", f"echo out; exit {status}"]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert done.returncode == (0 if status == 3 else status)
        assert done.stdout == "out\n"
        assert ("some rows were rejected" in done.stderr) == (status == 3)

    def test_the_status_of_a_command_that_ends_at_once_when_told_to(self) -> None:
        """Before the script, which the signal woke, looks at it again."""
        child = (
            "import os, signal\n"
            "signal.signal(signal.SIGTERM, lambda *_: os._exit(3))\n"
            "os.write(1, b'.')\n"
            "while True: signal.pause()"
        )
        for _ in range(5):
            command = [WRAPPER, sys.executable, "-S", "-c", child]
            with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as run:
                assert run.stdout is not None
                run.stdout.read(1)
                run.terminate()
                assert run.wait(60) == 0

    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
    def test_the_command_gets_the_signal_and_time_to_end(
        self, tmp_path: Path, number: signal.Signals
    ) -> None:
        """As the first process of a container, to which SIGTERM does nothing by itself."""
        script = "trap 'sleep 0.5; echo kept; exit 143' TERM; sleep 60 & echo up; wait"
        with subprocess.Popen(
            [WRAPPER, "sh", "-c", script], stdout=subprocess.PIPE, text=True, start_new_session=True
        ) as process:
            assert process.stdout
            assert process.stdout.readline() == "up\n"
            process.send_signal(number)
            assert process.stdout.readline() == "kept\n"
            assert process.wait(30) == 143
            os.killpg(process.pid, signal.SIGKILL)  # the shell's sleep

    def test_a_killed_command_is_no_success(self) -> None:
        command = [WRAPPER, "sh", "-c", "kill -s KILL $$"]
        assert subprocess.run(command, timeout=60, capture_output=True).returncode == 137


class TestKubernetes:
    def validate(self, path: Path, release: str) -> subprocess.CompletedProcess[str]:
        tool = [sys.executable, "-m", "kubernetes_validate", "--strict", "-k", release]
        return subprocess.run([*tool, str(path)], capture_output=True, text=True, timeout=60)

    @pytest.mark.parametrize("version", ["1.31", "1.37"])
    def test_the_objects_are_valid(self, tmp_path: Path, version: str) -> None:
        done = self.validate(CRONJOB, version)
        assert done.returncode == 0, done.stderr + done.stdout
        assert (done.stderr + done.stdout).count("passed for resource") == 3
        broken = tmp_path / "broken.yaml"
        broken.write_text(CRONJOB.read_text().replace("backoffLimit", "backOffLimit"))
        assert self.validate(broken, version).returncode

    def test_what_no_schema_says(self) -> None:
        """What an API server refuses, or what would not do what the comments promise."""
        job_file, claim, cron_job = read_yaml(CRONJOB)
        spec = cron_job["spec"]
        job = spec["jobTemplate"]["spec"]
        pod = job["template"]["spec"]
        (container,) = pod["containers"]
        assert (spec["concurrencyPolicy"], pod["restartPolicy"]) == ("Forbid", "Never")
        disrupted, counted, failed = job["podFailurePolicy"]["rules"]
        rules = (disrupted, counted, failed)
        assert [rule["action"] for rule in rules] == ["Ignore", "Count", "FailJob"]
        again, others = counted["onExitCodes"], failed["onExitCodes"]
        assert (again["operator"], others["operator"]) == ("In", "NotIn")
        assert again["values"] == others["values"] == sorted(set(again["values"]))
        assert set(again["values"]) == {75, 137, 143}
        assert again["containerName"] == others["containerName"] == container["name"]
        assert {name["name"] for name in pod["volumes"]} == {
            name["name"] for name in container["volumeMounts"]
        }
        assert pod["volumes"][0]["configMap"]["name"] == job_file["metadata"]["name"]
        assert pod["volumes"][1]["persistentVolumeClaim"]["claimName"] == claim["metadata"]["name"]
        values = {one["name"]: one.get("value") for one in container["env"]}
        assert values["TZ"] == spec["timeZone"]
        secrets = {
            one["name"]: one["valueFrom"]["secretKeyRef"]["key"]
            for one in container["env"]
            if "secretKeyRef" in one.get("valueFrom", {})
        }
        created = re.findall(r"--from-literal=(\w+)=", CRONJOB.read_text())
        assert sorted(secrets.values()) == sorted(created)
        assert set(secrets) == {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"}
        limits = container["resources"]["limits"]
        assert limits["memory"] == "2Gi"
        assert "--memory_limit=1800MiB" in container["args"][0]
        assert limits["cpu"] == container["resources"]["requests"]["cpu"]

    def run_container(
        self, tmp_path: Path, job_name: str, environment: dict[str, str], bucket: str = "my-bucket"
    ) -> subprocess.CompletedProcess[str]:
        """The command of the pod, with its paths below `tmp_path`, and the one bucket there is."""
        moved = {
            "/opt/batchpredict/examples": str(EXAMPLES),
            "/etc/batchpredict": str(tmp_path / "etc"),
            "/data": str(tmp_path / "data"),
            "s3://my-bucket/": f"s3://{bucket}/",
        }

        def move(text: str) -> str:
            for old, new in moved.items():
                text = text.replace(old, new)
            return text

        job_file, _, cron_job = read_yaml(CRONJOB)
        (container,) = cron_job["spec"]["jobTemplate"]["spec"]["template"]["spec"]["containers"]
        (tmp_path / "etc").mkdir()
        for name, text in job_file["data"].items():
            (tmp_path / "etc" / name).write_text(move(text))
        variables = {one["name"]: move(one["value"]) for one in container["env"] if "value" in one}
        command = [*container["command"], *(move(argument) for argument in container["args"])]
        return subprocess.run(
            command, env={**variables, "JOB_NAME": job_name, **environment},
            cwd="/", capture_output=True, text=True, timeout=120,
        )  # fmt: skip

    def test_a_night_is_scored(
        self, s3_server: s3servers.Server, s3_bucket: str, tmp_path: Path
    ) -> None:
        client = s3_server.client()
        upload(client, s3_bucket, "exports/flights_2026-11-20.csv", *FLIGHTS[:301], TOO_FEW_CELLS)
        command = write_command(tmp_path / "bin" / "batchpredict")
        environment = {name: os.environ[name] for name in os.environ if name.startswith("AWS_")}
        environment["PATH"] = f"{command.parent}:/usr/bin:/bin"
        planned = datetime.datetime(2026, 11, 20, 1, tzinfo=datetime.UTC)
        job_name = f"batchpredict-nightly-{int(planned.timestamp()) // 60}"
        done = self.run_container(tmp_path, job_name, environment, s3_bucket)
        assert done.returncode == 0, done.stderr
        assert "301 rows, 300 scored, 1 rejected" in done.stdout
        assert "some rows were rejected" in done.stderr
        assert keys_in(client, s3_bucket) == [
            "exports/flights_2026-11-20.csv",
            "scored/flights_2026-11-20.parquet",
            "scored/flights_2026-11-20.parquet.receipt.json",
            "scored/flights_2026-11-20.parquet.rejects.jsonl",
        ]
        assert (tmp_path / "data" / "state").is_dir()

    @pytest.mark.parametrize(
        ("job_name", "day"),
        [
            ("batchpredict-nightly-29394690", "2025-11-21"),  # planned for 23:30 UTC on the 20th
            ("again-1", None),
            ("batchpredict-nightly-by-hand", None),
        ],
    )
    def test_the_day_is_that_of_the_plan(
        self, tmp_path: Path, job_name: str, day: str | None
    ) -> None:
        stub = tmp_path / "bin" / "batchpredict"
        stub.parent.mkdir()
        stub.write_text('#!/bin/sh\nprintf "%s\\n" "$@"\nexit 75\n')
        stub.chmod(0o755)
        before = datetime.datetime.now(ZoneInfo("Europe/Berlin")).date()
        done = self.run_container(tmp_path, job_name, {"PATH": f"{stub.parent}:/usr/bin:/bin"})
        assert done.returncode == 75
        (found,) = re.findall(r"--date=(.+)", done.stdout)
        after = datetime.datetime.now(ZoneInfo("Europe/Berlin")).date()
        assert found in ({day} if day else {str(before), str(after)})

    def test_the_image_has_all_that_a_run_needs(self, tmp_path: Path) -> None:
        """What the Dockerfile copies; the image itself is not built here."""
        text = (EXAMPLES / "Dockerfile").read_text(encoding="utf-8")
        for line in re.findall(r"(?m)^COPY (.+)$", text):
            *sources, target = line.split()
            place = tmp_path / target.lstrip("/")
            for source in sources:
                if (CHECKOUT / source).is_dir():
                    ignored = shutil.ignore_patterns("__pycache__", "*.scored.*")
                    shutil.copytree(CHECKOUT / source, place, ignore=ignored)
                else:
                    place.mkdir(parents=True, exist_ok=True)
                    shutil.copy(CHECKOUT / source, place)
        root = tmp_path / "opt" / "batchpredict"
        assert {"setup.cfg", "constraints.txt", "bin", "batchpredict", "examples"} <= {
            path.name for path in root.iterdir()
        }
        data = tmp_path / "data.csv"
        data.write_text("".join(FLIGHTS[:11]))
        done = subprocess.run(
            [sys.executable, "-P", "-m", "batchpredict", "predict", f"--input_file={data}",
             f"--model={root}/examples/models/delays"],
            env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
            capture_output=True, text=True, timeout=120,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        assert "10 rows, 10 scored" in done.stdout


# The attributes that Cloud Foundry documents for manifests, of those an app with tasks may have.
# No registry has a schema of them: one slip of the pen is what this finds, not all that the
# Cloud Controller would say.
APP = {
    "name": str, "buildpacks": list, "stack": str, "no-route": bool, "services": list,
    "env": dict, "processes": list, "path": str, "metadata": dict,
}  # fmt: skip
PROCESS = {
    "type": str, "command": str, "disk_quota": str, "memory": str, "instances": int,
    "health-check-type": str, "log-rate-limit-per-second": str, "timeout": int,
}  # fmt: skip


class TestCloudFoundry:
    def task(self) -> dict[str, Any]:
        (manifest,) = read_yaml(MANIFEST)
        (app,) = manifest["applications"]
        (task,) = (process for process in app["processes"] if process["type"] == "task")
        return {**task, "env": app["env"]}

    def test_the_manifest_has_what_is_documented(self) -> None:
        (manifest,) = read_yaml(MANIFEST)
        assert set(manifest) == {"version", "applications"}
        assert manifest["version"] == 1
        (app,) = manifest["applications"]
        for part, known in ((app, APP), *((process, PROCESS) for process in app["processes"])):
            for name, value in part.items():
                assert isinstance(value, known[name]), name
        types = [process["type"] for process in app["processes"]]
        assert sorted(types) == ["task", "web"]
        assert {process["instances"] for process in app["processes"]} == {0}
        task = self.task()
        assert task["health-check-type"] in {"port", "process", "http"}
        for size in (task["memory"], task["disk_quota"]):
            assert re.fullmatch(r"\d+(B|KB?|MB?|GB?|TB?)", size)
        assert 1 <= len(task["command"]) <= 4096
        assert task["memory"] == "2G"
        assert "--memory_limit=1800MiB" in shlex.split(task["command"])

    def test_a_night_is_scored_from_the_bound_bucket(
        self, s3_server: s3servers.Server, s3_bucket: str, tmp_path: Path
    ) -> None:
        """Twice: the second task scores what has come since then."""
        client = s3_server.client()
        app = tmp_path / "app"
        app.mkdir()
        shutil.copy(WRAPPER, app)
        command = write_command(tmp_path / "deps" / "batchpredict")
        credentials = {
            "access_key_id": s3servers.TEST_KEY_ID,
            "secret_access_key": s3servers.TEST_SECRET,
            "bucket": s3_bucket, "host": s3_server.url, "region": s3servers.REGION,
        }  # fmt: skip
        bound = {"objectstore": [{"name": "exports", "credentials": credentials}]}
        task = self.task()
        environment = {
            **task["env"], "HOME": str(app), "PATH": f"{command.parent}:/usr/bin:/bin",
            "VCAP_SERVICES": json.dumps(bound), "AWS_EC2_METADATA_DISABLED": "true",
        }  # fmt: skip

        def run(*arguments: str) -> subprocess.CompletedProcess[str]:
            return subprocess.run(
                arguments, env=environment, cwd=app, capture_output=True, text=True, timeout=120
            )

        model = str(EXAMPLES / "models" / "delays")
        pushed = run(str(command), "models", "push", model, "delays", "--alias=champion")
        assert pushed.returncode == 0, pushed.stderr
        today = datetime.datetime.now(ZoneInfo(task["env"]["TZ"])).date()
        days = (today, today + datetime.timedelta(days=1))  # midnight may pass
        for day in days:
            upload(client, s3_bucket, f"exports/{day}/a.csv", *FLIGHTS[:301], TOO_FEW_CELLS)
        first = run("bash", "-c", task["command"])
        assert first.returncode == 0, first.stderr
        assert "some rows were rejected" in first.stderr
        assert "301 rows, 300 scored, 1 rejected" in first.stdout
        for day in days:
            upload(client, s3_bucket, f"exports/{day}/b.csv", *FLIGHTS[:11])
        second = run("bash", "-c", task["command"])
        assert second.returncode == 0, second.stderr
        assert "10 rows, 10 scored" in second.stdout
        assert any(key.endswith("/b.csv.receipt.json") for key in keys_in(client, s3_bucket))
