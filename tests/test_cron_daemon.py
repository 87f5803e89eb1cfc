"""An entry that `schedule` has installed is run by a real cron, on the minute.

In a mount namespace, where crontabs, cron's own files and the mailer are the test's.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from tests import models
from tests.test_schedule import write_program

# $1: an empty directory of the test's, with `sbin`; $2: the command. Ends after the first run.
SCRIPT = r"""
set -eu
mount -t tmpfs tmpfs /var/spool
mkdir -p /var/spool/cron/crontabs
mkdir "$1/empty" "$1/run"
mount --bind "$1/empty" /etc/cron.d
mount --bind /dev/null /etc/crontab
mount --bind "$1/run" /run
cp "$(command -v cron)" "$1/sbin/cron"
mount --bind "$1/sbin" /usr/sbin
cd "$1"
{
  printf '# mine\nMAILTO=someone\nHOME=%s/home\nBATCHPREDICT_MODEL=%s/model\n' "$1" "$1"
  printf '* * * * * my\\ bin/batchpredict --input_file=~/data.csv >~/log.txt\n'
} | crontab -
"$2" schedule '* * * * *' --name=minute --install --log_file="100% sure.log" \
  --input_file='in_{date:%Y}.csv' --output_file="it's out.csv" --model=model
"$2" schedule '* * * * *' --name=broken --install --log_file=broken.log \
  --input_file=nowhere.csv --model=model
crontab -l >table
/usr/sbin/cron -f &
for _ in $(seq 75); do
  if [ -s mail ] && [ -e "it's out.csv.receipt.json" ] && [ -s home/log.txt ]; then break; fi
  sleep 1
done
kill $!
"$2" schedule --remove --name=minute
"$2" schedule --remove --name=broken
crontab -l
"""


def test_an_entry_that_is_installed_runs(tmp_path: Path) -> None:
    if shutil.which("cron") is None or shutil.which("crontab") is None:
        pytest.skip("cron is not installed")
    if os.geteuid() or subprocess.run(["unshare", "--mount", "true"]).returncode:
        pytest.skip("only root may mount")
    models.write_text_model(tmp_path / "model")
    for year in range(2026, 2100):
        (tmp_path / f"in_{year}.csv").write_text("text\ngood\nbad\n")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "data.csv").write_text("text\ngood\nbad\n")
    (tmp_path / "home" / "my bin").symlink_to(tmp_path / "my bin")
    program = write_program(tmp_path / "my bin" / "batchpredict")
    mailer = tmp_path / "sbin" / "sendmail"
    mailer.parent.mkdir()
    mailer.write_text(f"#!/bin/sh\ncat >>'{tmp_path}/mail'\n")
    mailer.chmod(0o755)
    done = subprocess.run(
        ["unshare", "--mount", "sh", "-c", SCRIPT, "sh", str(tmp_path), str(program)],
        capture_output=True, text=True, timeout=180,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stdout
    assert (tmp_path / "table").read_text().count("# batchpredict schedule: ") == 2
    mine = done.stdout[done.stdout.index("# mine") :]
    assert mine.splitlines()[:2] == ["# mine", "MAILTO=someone"]
    assert mine.splitlines()[4:] == [
        r"* * * * * my\ bin/batchpredict --input_file=~/data.csv >~/log.txt"
    ]
    assert (tmp_path / "it's out.csv").read_text().startswith("text,prediction,score\ngood,pos,")
    receipt = json.loads((tmp_path / "it's out.csv.receipt.json").read_text())
    assert (receipt["exit_code"], receipt["counts"]["scored"]) == (0, 2)
    assert f"output: {tmp_path}/it's out.csv" in (tmp_path / "100% sure.log").read_text()
    # As a user writes it.
    home = tmp_path / "home"
    assert (home / "data.scored.csv").read_text().startswith("text,prediction,score\ngood,pos,")
    log = (home / "log.txt").read_text()
    assert "2 rows, 2 scored" in log
    assert f"output: {home}/data.scored.csv" in log
    # A mail about what failed, and none about what did not.
    mail = (tmp_path / "mail").read_text()
    assert mail.count("Subject: ") == 1
    assert f"{tmp_path}/nowhere.csv: no such file" in mail
