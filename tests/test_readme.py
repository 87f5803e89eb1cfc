"""The README is run: every command in it, section by section, and what it shows is compared.

A ```sh block is run unless `<!-- not run: reason -->` stands above it. A ```text block is what the
sh block before it prints; "…" in it stands for anything. Tables are compared with the code.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import pytest

from batchpredict import errors
from batchpredict.cli import cli
from batchpredict.model.manifest import Manifest, read_manifest
from tests import models, s3servers
from tests.stand_in import CHECKOUT, copy_examples, write_command

README = (CHECKOUT / "README.md").read_text(encoding="utf-8")
# Where the README's checkout lies.
SHOWN_ROOT = "/home/me/batchpredict"
LANGUAGES = {"sh", "text", "python", "toml", "crontab"}
ANYTHING = "…"
# Which bucket a section speaks of.
BUCKETS = {"Models and data in S3": "my-bucket", "SAP BTP Cloud Foundry": "hcp-1f0a"}


@dataclass
class Block:
    """A fenced block. `reason`: why it is not run. `shown`: the output that follows it."""

    section: str
    language: str
    line: int
    text: str
    reason: str | None = None
    shown: Block | None = None


def read_blocks(text: str) -> list[Block]:
    blocks: list[Block] = []
    section, reason, block = "", None, None
    for number, line in enumerate(text.splitlines(), 1):
        if block is not None:
            if line == "```":
                blocks.append(block)
                block = None
            else:
                block.text += line + "\n"
        elif line.startswith("```"):
            block = Block(section, line[3:], number, "", reason)
            last = blocks[-1] if blocks else None
            if block.language == "text":
                if last is None or (last.section, last.language) != (section, "sh"):
                    raise AssertionError(f"line {number}: the output of what?")
                last.shown = block
        elif line.startswith("#"):
            section = line.lstrip("# ")
        if found := re.fullmatch(r"<!-- not run: (.+) -->", line):
            reason = found[1]
        elif line and block is None:
            reason = None
    assert block is None, "a block has no end"
    return blocks


BLOCKS = read_blocks(README)
RUN = [block for block in BLOCKS if block.language == "sh" and not block.reason]
SECTIONS = list(dict.fromkeys(block.section for block in RUN))


def make_checkout(root: Path) -> Path:
    root.mkdir()
    copy_examples(root)
    bundled = root / "examples" / "models" / "relevance"
    write_command(root / "bin" / "batchpredict", bundled)
    make_optimum_export(root / "sentiment")
    (root / "tools").mkdir()
    (root / "tools" / "python3").symlink_to(sys.executable)
    return root


def make_optimum_export(directory: Path) -> None:
    """A folder of the files that Optimum writes for a text classifier, with a tiny graph."""
    models.write_text_model(
        directory,
        config={
            "architectures": ["DistilBertForSequenceClassification"],
            "id2label": {"0": "NEGATIVE", "1": "POSITIVE"},
            "label2id": {"NEGATIVE": 0, "POSITIVE": 1},
            "max_position_embeddings": 512,
            "model_type": "distilbert",
            "pad_token_id": models.PAD,
        },
        special_tokens_map={"cls_token": "[CLS]", "pad_token": "[PAD]", "sep_token": "[SEP]"},
        tokenizer_config={"model_max_length": 512, "tokenizer_class": "DistilBertTokenizer"},
    )
    (directory / "vocab.txt").write_text("\n".join(models.VOCABULARY) + "\n")


def run_block(block: Block, root: Path, **more: str | None) -> subprocess.CompletedProcess[str]:
    """As typed in a terminal: both streams together."""
    inherited = {name: os.environ[name] for name in ("LANG", "LC_ALL") if name in os.environ}
    environ = {"PATH": f"{root / 'tools'}:/usr/bin:/bin", "HOME": str(root), **inherited}
    environ |= {name: value for name, value in more.items() if value is not None}
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text],
        cwd=root, env=environ, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, encoding="utf-8", timeout=120,
    )  # fmt: skip


def normal(text: str, root: Path | None = None) -> str:
    """Without what differs between two runs and two machines."""
    if root is not None:
        text = text.replace(str(root), SHOWN_ROOT)
    text = re.sub(
        r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d ([A-Z]+) [0-9a-f]{8} ", r"TIME \1 RUN ", text
    )
    text = re.sub(r"(?m)^\d{4}-\d\d-\d\d \d\d:\d\d:\d\d  ", "TIME  ", text)
    text = re.sub(r"[\d,]+ rows/s", "RATE rows/s", text)
    text = re.sub(r"seconds per stage: .*", "seconds per stage: SECONDS", text)
    return re.sub(r"\d\.\d{4,}", lambda score: f"{float(score[0]):.3f}", text)


def assert_shown(block: Block, printed: str, root: Path) -> None:
    assert block.shown is not None
    expected = [re.escape(part) for part in normal(block.shown.text).split(ANYTHING)]
    found = normal(printed, root)
    assert re.fullmatch(".*".join(expected), found, re.DOTALL), (
        f"README.md:{block.shown.line} shows\n{normal(block.shown.text)}\nbut it is\n{found}"
    )


def bucket_of(server: s3servers.Server, name: str, directory: Path) -> dict[str, str | None]:
    """A bucket with an export, and the environment that leads to it."""
    client = server.client()
    client.create_bucket(Bucket=name)
    client.upload_file(CHECKOUT / "examples" / "reports.csv", name, "exports/reports.csv")
    return s3servers.environment(server.url, directory)


@pytest.fixture
def found(section: str, request: pytest.FixtureRequest, tmp_path: Path) -> dict[str, str | None]:
    """The environment that a section takes for granted."""
    if section not in BUCKETS:
        return {}
    server = request.getfixturevalue("s3_server")
    variables = bucket_of(server, BUCKETS[section], tmp_path / "no-aws")
    if "Cloud Foundry" in section:  # where the binding has the keys
        variables |= dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"))
    return variables


@pytest.mark.parametrize("section", SECTIONS)
def test_commands(section: str, found: dict[str, str | None], tmp_path: Path) -> None:
    root = make_checkout(tmp_path / "checkout")
    for block in RUN:
        if block.section != section:
            continue
        finished = run_block(block, root, **found)
        assert finished.returncode == 0, f"README.md:{block.line}\n{finished.stdout}"
        if block.shown:
            assert_shown(block, finished.stdout, root)


def test_the_job_file_runs_from_anywhere(tmp_path: Path) -> None:
    root = tmp_path / "checkout"
    copy_examples(root)
    command = write_command(tmp_path / "bin" / "batchpredict")
    job = [str(command), f"--job={root}/examples/nightly.toml"]
    finished = subprocess.run(job, cwd="/", capture_output=True, text=True, timeout=120)
    assert (finished.returncode, finished.stderr) == (0, "")
    assert (root / "examples" / "flights.scored.parquet").exists()


class TestBlocks:
    def test_languages(self) -> None:
        assert {block.language for block in BLOCKS} <= LANGUAGES

    def test_what_is_not_run_says_why(self) -> None:
        for block in BLOCKS:
            if block.language == "python":
                assert block.reason
                compile(block.text, "README.md", "exec")

    def test_the_two_commands_are_the_first(self) -> None:
        first, *rest = [block for block in BLOCKS if block.language == "sh"]
        assert first.text == "bin/batchpredict --input_file=examples/reports.csv\n"
        assert "bin/test\n" in [block.text for block in rest]

    def test_checks_of_bin_test_are_shown(self) -> None:
        (block,) = (block for block in BLOCKS if block.text == "bin/test\n")
        script = (CHECKOUT / "bin" / "test").read_text(encoding="utf-8")
        assert block.shown
        shown = re.findall(r"(?m)^== (.+)$", block.shown.text)
        assert shown == re.findall(r"(?m)^check '(.+?)'", script)

    def test_files_and_sections_that_are_pointed_to(self) -> None:
        anchors = {
            re.sub(r"[^\w -]", "", title).strip().lower().replace(" ", "-")
            for title in re.findall(r"(?m)^#+ (.+)$", README)
        }
        for target in re.findall(r"\]\(([^)]+)\)", README):
            if target.startswith("#"):
                assert target[1:] in anchors, target
            elif not target.startswith("http"):
                assert (CHECKOUT / target).exists(), target

    def test_manifest(self, tmp_path: Path) -> None:
        (block,) = (block for block in BLOCKS if block.language == "toml")
        path = tmp_path / "batchpredict.toml"
        path.write_text(block.text, encoding="utf-8")
        assert read_manifest(path).golden

    def test_crontab(self) -> None:
        (block,) = (block for block in BLOCKS if block.language == "crontab")
        installed = (CHECKOUT / "cron" / "nightly.crontab").read_text(encoding="utf-8")
        assert set(block.text.splitlines()) <= set(installed.splitlines())

    def test_nothing_of_one_machine(self) -> None:
        for word in ("/work", "/tmp", "/root", "localhost"):
            assert word not in README


def table(heading: str) -> dict[str, list[str]]:
    """The rows of the first table below a heading, by the code in their first cell."""
    _, found, below = README.partition(f"\n## {heading}\n")
    assert found, f"no section {heading!r}"
    rows: dict[str, list[str]] = {}
    lines = below.split("\n## ")[0].splitlines()
    for line in lines[next(i for i, line in enumerate(lines) if line.startswith("|")) :]:
        if not line.startswith("|"):
            break
        first, *rest = (cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip("|")))
        for name in re.findall(r"`([^`]+)`", first):
            assert name not in rows
            rows[name] = rest
    return rows


class TestTables:
    def test_options(self) -> None:
        predict = cli.commands["predict"]
        options = {
            name: option
            for option in predict.params
            if isinstance(option, click.Option) and option.name != "help"
            for name in (*option.opts, *option.secondary_opts)
            if name.startswith("--")
        }
        shown = table("Options")
        assert set(shown) == set(options)
        for name, option in options.items():
            if option.show_default and name in option.opts:
                assert f"`{option.default}`" in shown[name][-1], name

    def test_exit_codes(self) -> None:
        known = {0, 3, 70, 130}
        for thing in vars(errors).values():
            if isinstance(thing, type) and issubclass(thing, BaseException):
                known.add(thing.__dict__.get("exit_code", 1))
        assert set(table("Exit status")) == {str(code) for code in known}

    def test_keys_of_a_manifest(self) -> None:
        assert set(table("Bring your own model")) == set(Manifest.__dataclass_fields__)

    def test_codes_of_rejects(self) -> None:
        files = (CHECKOUT / "batchpredict").rglob("*.py")
        source = "\n".join(path.read_text(encoding="utf-8") for path in files)
        codes = {
            code
            for call in re.findall(r'(?:Fault|Flaw)\([^"]*"([a-z_0-9]+)"', source)
            for code in [call]
        }
        assert codes <= set(table("Rejected rows"))
        for code in table("Rejected rows"):
            assert f'"{code}"' in source


def test_comparison_of_outputs(tmp_path: Path) -> None:
    def compare(shown: str, printed: str) -> None:
        block = Block("", "sh", 1, "", None, Block("", "text", 2, shown))
        assert_shown(block, printed, tmp_path)

    compare("a 0.12345678\n", "a 0.12345699\n")
    compare("a\n…\nz\n", f"a\n{tmp_path}\nz\n")
    compare(f"{SHOWN_ROOT}/x 1,000 rows/s\n", f"{tmp_path}/x 7 rows/s\n")
    for shown, printed in (("a\n", "b\n"), ("a 0.12345\n", "a 0.13345\n"), ("a\n", "a\nb\n")):
        with pytest.raises(AssertionError, match="shows"):
            compare(shown, printed)


def test_blocks_are_read() -> None:
    text = "# A\n<!-- not run: slow -->\n```sh\nx\n```\n\n```text\ny\n```\n## B\n```sh\nz\n```\n"
    first, second, third = read_blocks(text)
    assert (first.section, first.reason, first.shown) == ("A", "slow", second)
    assert (third.section, third.reason, third.text, third.line) == ("B", None, "z\n", 11)
    unmarked: dict[str, Any] = {"text": "# A\n```text\ny\n```\n"}
    with pytest.raises(AssertionError, match="the output of what"):
        read_blocks(**unmarked)
