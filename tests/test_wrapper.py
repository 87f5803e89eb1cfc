"""bin/batchpredict and bin/environment.sh, run for real in a small checkout of its own.

The checkout has the real scripts and a stand-in package that reports how it was started. Its
environments are real (bash, venv, pip), its one dependency is a wheel made here, and pip is told
to look nowhere else: no test needs the network or touches the real environments. Most are made by
a Python that copies pip instead of unpacking it anew, which takes seconds.
"""

import base64
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).resolve().parents[1]
BASE_PYTHON = os.path.realpath(sys._base_executable)  # type: ignore[attr-defined]
PATIENCE = 120.0

STAND_IN = """
import json, os, sys, time

try:
    import parcel
except ImportError:
    parcel = None
print(json.dumps({
    "arguments": sys.argv[1:],
    "environ": dict(os.environ),
    "directory": os.getcwd(),
    "pid": os.getpid(),
    "file": __file__,
    "prefix": sys.prefix,
    "encoding": sys.getfilesystemencoding(),
    "parcel": parcel and parcel.VERSION,
}), flush=True)
if sys.argv[1:2] == ["exit"]:
    sys.exit(int(sys.argv[2]))
if sys.argv[1:2] == ["cat"]:
    sys.stdout.write(sys.stdin.read())
if sys.argv[1:2] == ["sleep"]:
    time.sleep(600)
"""

SETUP_CFG = """\
[metadata]
name = batchpredict

[options]
install_requires =
    parcel>=1

[options.extras_require]
test =
    parcel

[mypy]
strict = True
"""


def make_wheel(directory: Path, version: str) -> None:
    """The least that pip accepts as a wheel of `parcel`."""
    info = f"parcel-{version}.dist-info"
    files = {
        "parcel.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: parcel\nVersion: {version}\n",
        f"{info}/WHEEL": (
            "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        ),
    }
    record = ""
    with zipfile.ZipFile(directory / f"parcel-{version}-py3-none-any.whl", "w") as wheel:
        for name, text in files.items():
            digest = base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest())
            record += f"{name},sha256={digest.decode().rstrip('=')},{len(text)}\n"
            wheel.writestr(name, text)
        wheel.writestr(f"{info}/RECORD", record + f"{info}/RECORD,,\n")


class Sandbox:
    """A checkout and the environment variables its commands are run with: nothing is inherited."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.root = directory / "the checkout"  # a blank in the path, so that quoting is tested
        self.command = self.root / "bin" / "batchpredict"
        self.venv = self.root / ".venv"
        shutil.copytree(CHECKOUT / "bin", self.root / "bin")
        package = self.root / "batchpredict"
        package.mkdir()
        (package / "__init__.py").touch()
        (package / "__main__.py").write_text(STAND_IN)
        (self.root / "setup.cfg").write_text(SETUP_CFG)
        self.pin("1.0")
        wheels = directory / "wheels"
        wheels.mkdir()
        for version in ("1.0", "2.0"):
            make_wheel(wheels, version)
        (directory / "home").mkdir()
        self.environ = {
            "PATH": "/usr/bin:/bin",
            "HOME": str(directory / "home"),
            "BATCHPREDICT_PYTHON": BASE_PYTHON,
            "PIP_NO_INDEX": "1",
            "PIP_FIND_LINKS": wheels.as_uri(),
            "PIP_CONFIG_FILE": os.devnull,
        }

    def pin(self, version: str) -> None:
        (self.root / "constraints.txt").write_text(f"# pins\nparcel=={version}\n")

    @contextlib.contextmanager
    def start(
        self,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        command: Path | None = None,
        cwd: Path | str = "/",
        **environ: str | None,
    ) -> Iterator[subprocess.Popen[str]]:
        """Starts the wrapper; a variable given as None is taken away. Ends all it left running."""
        settings = {**self.environ, **environ}
        process = subprocess.Popen(
            [*prefix, str(command or self.command), *arguments],
            cwd=cwd,
            env={name: value for name, value in settings.items() if value is not None},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()

    def run(
        self,
        *arguments: str,
        prefix: tuple[str, ...] = (),
        command: Path | None = None,
        cwd: Path | str = "/",
        stdin: str = "",
        **environ: str | None,
    ) -> subprocess.CompletedProcess[str]:
        with self.start(*arguments, prefix=prefix, command=command, cwd=cwd, **environ) as process:
            out, err = process.communicate(stdin, timeout=PATIENCE)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def leftovers(self) -> list[str]:
        return sorted(path.name for path in self.root.glob(".venv?*") if path.name != ".venv.lock")


def report(finished: subprocess.CompletedProcess[str]) -> dict[str, object]:
    assert finished.returncode == 0, finished.stderr
    answer = json.loads(finished.stdout.splitlines()[0])
    assert isinstance(answer, dict)
    return answer


def wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < deadline, f"waited in vain until {what}"
        time.sleep(0.01)


def write_script(path: Path, body: str) -> None:
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def line_from(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


@pytest.fixture(scope="module")
def ready(tmp_path_factory: pytest.TempPathFactory) -> Sandbox:
    """A checkout whose environment is there. Tests that use it leave it as it is."""
    sandbox = Sandbox(tmp_path_factory.mktemp("ready"))
    first = sandbox.run()
    assert first.returncode == 0, first.stderr
    assert "setting up" in first.stderr
    return sandbox


@pytest.fixture(scope="module")
def quick_python(ready: Sandbox, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Python whose `-m venv` copies pip from the environment of `ready`."""
    (packages,) = ready.venv.glob("lib/python3.*/site-packages")
    path = tmp_path_factory.mktemp("quick") / "python3"
    write_script(
        path,
        f"""
        for last; do :; done
        case "$*" in
            *'-m venv '*)
                '{BASE_PYTHON}' -I -m venv --without-pip "$last" &&
                cp -Rp '{packages}'/pip* "$last"/lib/python3.*/site-packages/ ;;
            *) echo "3.11 $(readlink -f "$0")" ;;  # asked for its version and place
        esac
        """,
    )
    return path


@pytest.fixture
def sandbox(tmp_path: Path, quick_python: Path) -> Sandbox:
    sandbox = Sandbox(tmp_path)
    sandbox.environ["BATCHPREDICT_PYTHON"] = str(quick_python)
    return sandbox


class TestCall:
    def test_prints_nothing_of_its_own(self, ready: Sandbox) -> None:
        finished = ready.run()
        assert finished.stderr == ""
        assert len(finished.stdout.splitlines()) == 1

    def test_arguments_arrive_as_given(self, ready: Sandbox) -> None:
        arguments = [
            "a b",
            "",
            "*",
            "line\nbreak",
            "$HOME",
            "`id`",
            "\\",
            "'\"",
            "--x=~/y",
            "é",
            "-",
        ]
        answer = report(ready.run(*arguments, cwd=ready.root))
        assert answer["arguments"] == arguments

    def test_keeps_the_caller_s_directory(self, ready: Sandbox, tmp_path: Path) -> None:
        assert report(ready.run(cwd=tmp_path))["directory"] == str(tmp_path)

    def test_found_through_a_relative_path(self, ready: Sandbox) -> None:
        answer = report(ready.run(command=Path("bin/batchpredict"), cwd=ready.root))
        assert answer["file"] == str(ready.root / "batchpredict" / "__main__.py")

    def test_found_through_symlinks(self, ready: Sandbox, tmp_path: Path) -> None:
        # a link to a link, one of them relative, through a directory that is a link itself
        (tmp_path / "one").symlink_to(ready.root)
        (tmp_path / "two").symlink_to("one/bin/batchpredict")
        (tmp_path / "three").symlink_to(tmp_path / "two")
        answer = report(ready.run(command=tmp_path / "three", cwd=tmp_path))
        assert answer["file"] == str(ready.root / "batchpredict" / "__main__.py")
        assert answer["prefix"] == str(ready.venv)

    def test_found_on_the_path(self, ready: Sandbox, tmp_path: Path) -> None:
        (tmp_path / "batchpredict").symlink_to(ready.command)
        finished = subprocess.run(
            ["/bin/sh", "-c", "batchpredict x"],
            env={**ready.environ, "PATH": f"{tmp_path}:/usr/bin:/bin"},
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        assert report(finished)["arguments"] == ["x"]

    def test_under_an_empty_environment(self, ready: Sandbox) -> None:
        finished = subprocess.run(
            ["env", "-i", "PATH=/usr/bin:/bin", str(ready.command), "x"],
            capture_output=True,
            text=True,
            check=False,
            cwd="/",
        )
        answer = report(finished)
        assert finished.stderr == ""
        assert answer["arguments"] == ["x"]
        assert answer["encoding"] == "utf-8"

    def test_a_locale_is_set_only_where_none_is(self, ready: Sandbox) -> None:
        without = report(ready.run())["environ"]
        assert isinstance(without, dict)
        assert without["LANG"] == "C.UTF-8"
        given = report(ready.run(LC_ALL="C.utf8"))["environ"]
        assert isinstance(given, dict)
        assert given["LC_ALL"] == "C.utf8"
        assert "LANG" not in given

    def test_bundled_model_is_passed(self, ready: Sandbox) -> None:
        environ = report(ready.run())["environ"]
        assert isinstance(environ, dict)
        expected = ready.root / "examples" / "models" / "relevance"
        assert environ["BATCHPREDICT_DEFAULT_MODEL"] == str(expected)

    def test_bundled_model_gives_way(self, ready: Sandbox) -> None:
        environ = report(ready.run(BATCHPREDICT_DEFAULT_MODEL="/mine"))["environ"]
        assert isinstance(environ, dict)
        assert environ["BATCHPREDICT_DEFAULT_MODEL"] == "/mine"

    def test_not_shadowed_by_the_caller_s_files(self, ready: Sandbox, tmp_path: Path) -> None:
        trap = "raise SystemExit('the wrong module')\n"
        (tmp_path / "batchpredict").mkdir()
        for name in (
            "batchpredict/__init__.py",
            "batchpredict/__main__.py",
            "parcel.py",
            "json.py",
        ):
            (tmp_path / name).write_text(trap)
        answer = report(ready.run(cwd=tmp_path, PYTHONPATH=str(tmp_path), PYTHONHOME=str(tmp_path)))
        assert answer["file"] == str(ready.root / "batchpredict" / "__main__.py")
        assert answer["parcel"] == "1.0"

    def test_standard_input_is_the_program_s(self, ready: Sandbox) -> None:
        finished = ready.run("cat", stdin="rows\n")
        assert finished.stdout.splitlines()[1:] == ["rows"]

    @pytest.mark.parametrize("code", [0, 3, 75, 255])
    def test_exit_code_is_python_s(self, ready: Sandbox, code: int) -> None:
        assert ready.run("exit", str(code)).returncode == code

    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGKILL])
    def test_signals_reach_python(self, ready: Sandbox, sent: signal.Signals) -> None:
        with ready.start("sleep") as process:
            assert json.loads(line_from(process))["pid"] == process.pid  # exec, not a child
            process.send_signal(sent)
            assert process.wait(PATIENCE) == -sent

    def test_ctrl_c_is_python_s(self, ready: Sandbox) -> None:
        with ready.start("sleep") as process:
            line_from(process)
            process.send_signal(signal.SIGINT)
            _, err = process.communicate(timeout=PATIENCE)
        assert "KeyboardInterrupt" in err
        assert process.returncode == -signal.SIGINT


class TestSetUp:
    def test_first_call(self, sandbox: Sandbox) -> None:
        finished = sandbox.run("cat", stdin="rows\n")
        answer = report(finished)
        assert len(finished.stderr.splitlines()) == 1
        assert str(sandbox.venv) in finished.stderr
        assert "minute" in finished.stderr
        assert answer["parcel"] == "1.0"  # the pin, though 2.0 is there as well
        assert finished.stdout.splitlines()[1:] == ["rows"]  # the build left the data alone
        assert sandbox.leftovers() == []

    def test_scripts_of_the_environment_run(self, ready: Sandbox) -> None:
        # venv and pip wrote the name the environment was built under
        listed = subprocess.run(
            [ready.venv / "bin" / "pip", "--version"],
            env=ready.environ,
            capture_output=True,
            text=True,
            check=False,
        ).stdout
        assert str(ready.venv) in listed

    def test_pins_that_change_are_noticed(self, sandbox: Sandbox) -> None:
        assert report(sandbox.run())["parcel"] == "1.0"
        sandbox.pin("2.0")
        finished = sandbox.run()
        assert report(finished)["parcel"] == "2.0"
        assert "setting up" in finished.stderr
        setup = sandbox.root / "setup.cfg"
        setup.write_text(SETUP_CFG.replace("    parcel>=1\n", ""))
        assert report(sandbox.run())["parcel"] is None
        assert sandbox.run().stderr == ""
        assert sandbox.leftovers() == []

    def test_other_settings_may_change(self, ready: Sandbox) -> None:
        setup, constraints = ready.root / "setup.cfg", ready.root / "constraints.txt"
        before = constraints.read_text()
        try:
            setup.write_text(SETUP_CFG.replace("strict = True", "strict = False"))
            constraints.write_text(before + "# a comment\n")
            assert ready.run(BATCHPREDICT_NO_BOOTSTRAP="1").returncode == 0
        finally:
            setup.write_text(SETUP_CFG)
            constraints.write_text(before)

    def test_a_killed_set_up_is_started_again(self, sandbox: Sandbox) -> None:
        with sandbox.start() as process:
            half = sandbox.root / ".venv.building" / "bin" / "python"
            wait_until(half.exists, "the environment is half made")
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(PATIENCE)
        assert not sandbox.venv.exists()
        finished = sandbox.run()
        assert report(finished)["parcel"] == "1.0"
        assert sandbox.leftovers() == []

    @pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGINT])
    def test_a_stopped_set_up_cleans_up(self, sandbox: Sandbox, sent: signal.Signals) -> None:
        with sandbox.start() as process:
            half = sandbox.root / ".venv.building" / "bin" / "python"
            wait_until(half.exists, "the environment is half made")
            process.send_signal(sent)
            assert process.wait(PATIENCE) == -sent
        assert not sandbox.venv.exists()
        assert sandbox.leftovers() == []

    @pytest.mark.parametrize("damage", ["no stamp", "no python", "empty"])
    def test_a_broken_environment_is_not_used(self, sandbox: Sandbox, damage: str) -> None:
        report(sandbox.run())
        if damage == "no stamp":
            (sandbox.venv / "batchpredict-environment.txt").unlink()
        elif damage == "no python":
            for link in (sandbox.venv / "bin").glob("python*"):
                link.unlink()
            (sandbox.venv / "bin" / "python").symlink_to("/nonexistent/python3.11")
        else:
            shutil.rmtree(sandbox.venv)
            sandbox.venv.mkdir()
        finished = sandbox.run()
        assert report(finished)["prefix"] == str(sandbox.venv)
        assert "setting up" in finished.stderr

    def test_a_moved_checkout_runs_its_own_code(self, sandbox: Sandbox) -> None:
        report(sandbox.run())
        copy = sandbox.directory / "copy"
        shutil.copytree(sandbox.root, copy, symlinks=True)
        answer = report(sandbox.run(command=copy / "bin" / "batchpredict"))
        assert answer["file"] == str(copy / "batchpredict" / "__main__.py")
        assert answer["prefix"] == str(copy / ".venv")

    def test_another_python_is_noticed(
        self, sandbox: Sandbox, quick_python: Path, tmp_path: Path
    ) -> None:
        report(sandbox.run())
        other = tmp_path / "other"
        shutil.copy(quick_python, other)
        finished = sandbox.run(BATCHPREDICT_PYTHON=str(other))
        assert "setting up" in finished.stderr
        report(finished)
        # whoever names no Python keeps the one that is there
        assert sandbox.run(BATCHPREDICT_PYTHON=None).stderr == ""
        # another name for the same file is no other Python
        (tmp_path / "alias").symlink_to(other)
        assert sandbox.run(BATCHPREDICT_PYTHON=str(tmp_path / "alias")).stderr == ""

    def test_another_place(self, sandbox: Sandbox) -> None:
        answer = report(sandbox.run(BATCHPREDICT_VENV="~/my env/venv"))
        assert answer["prefix"] == str(sandbox.directory / "home" / "my env" / "venv")
        assert not sandbox.venv.exists()
        assert (
            sandbox.run(BATCHPREDICT_VENV="my env/venv", cwd=sandbox.directory / "home").stderr
            == ""
        )

    def test_a_directory_of_somebody_else_s_is_left_alone(
        self, sandbox: Sandbox, tmp_path: Path
    ) -> None:
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").touch()
        finished = sandbox.run(BATCHPREDICT_VENV=str(tmp_path / "mine"))
        assert finished.returncode == 78
        assert "not made by this command" in finished.stderr
        assert (tmp_path / "mine" / "thesis.txt").exists()

    def test_the_test_environment_serves_as_well(self, sandbox: Sandbox) -> None:
        script = sandbox.root / "bin" / "test"
        sandbox.run(command=script, prefix=("bash",))  # has no pytest here; the environment is made
        finished = sandbox.run(
            BATCHPREDICT_VENV=str(sandbox.root / ".venv-test"), BATCHPREDICT_NO_BOOTSTRAP="1"
        )
        assert report(finished)["prefix"] == str(sandbox.root / ".venv-test")


class TestForbidden:
    def test_nothing_is_set_up(self, sandbox: Sandbox) -> None:
        before = sorted(sandbox.root.iterdir())
        finished = sandbox.run(BATCHPREDICT_NO_BOOTSTRAP="1")
        assert finished.returncode == 78
        assert finished.stdout == ""
        assert len(finished.stderr.splitlines()) == 1
        assert sorted(sandbox.root.iterdir()) == before
        # the command it names does what is missing
        remedy = finished.stderr.partition("run this once: ")[2]
        subprocess.run(
            ["/bin/sh", "-c", remedy],
            env={**sandbox.environ, "BATCHPREDICT_NO_BOOTSTRAP": "1"},
            check=True,
            capture_output=True,
            timeout=PATIENCE,
        )
        assert report(sandbox.run(BATCHPREDICT_NO_BOOTSTRAP="1"))["parcel"] == "1.0"
        sandbox.pin("2.0")
        finished = sandbox.run(BATCHPREDICT_NO_BOOTSTRAP="1")
        assert finished.returncode == 78
        assert "no longer fits its pins" in finished.stderr


class TestSideBySide:
    def test_two_first_callers_build_once(self, sandbox: Sandbox) -> None:
        with sandbox.start("one") as first, sandbox.start("two") as second:
            ended = [process.communicate(timeout=PATIENCE) for process in (first, second)]
            assert (first.returncode, second.returncode) == (0, 0)
        errors = [err for _, err in ended]
        assert (
            sum("setting up" in line and "Python" in line for line in "".join(errors).splitlines())
            == 1
        )
        assert any("another call is setting up" in err for err in errors)
        assert [json.loads(out)["parcel"] for out, _ in ended] == ["1.0", "1.0"]

    def test_a_running_job_keeps_its_environment(self, sandbox: Sandbox) -> None:
        report(sandbox.run())
        with sandbox.start("sleep") as job:
            assert json.loads(line_from(job))["parcel"] == "1.0"
            identity = sandbox.venv.stat().st_ino
            sandbox.pin("2.0")
            with sandbox.start() as rebuilder:
                assert rebuilder.stderr is not None
                assert "waiting for the runs that use it to end" in rebuilder.stderr.readline()
                time.sleep(0.5)
                assert rebuilder.poll() is None
                assert sandbox.venv.stat().st_ino == identity
                job.terminate()
                out, err = rebuilder.communicate(timeout=PATIENCE)
        assert "setting up" in err
        assert json.loads(out)["parcel"] == "2.0"

    def test_jobs_run_side_by_side(self, ready: Sandbox) -> None:
        with ready.start("sleep") as job:
            line_from(job)
            assert ready.run().stderr == ""
            job.kill()


class TestReadOnlyCheckout:
    @pytest.fixture
    def powerless(self) -> tuple[str, ...]:
        """root writes to a read-only directory, unless it gives up its capabilities."""
        if os.geteuid() != 0:
            return ()
        if shutil.which("setpriv") is None:
            pytest.skip("root, and no setpriv")
        return ("setpriv", "--bounding-set=-all", "--inh-caps=-all")

    def test_environment_goes_to_the_user_s_data(
        self, sandbox: Sandbox, powerless: tuple[str, ...]
    ) -> None:
        sandbox.root.chmod(0o555)
        try:
            answer = report(sandbox.run(prefix=powerless))
            data = sandbox.directory / "home" / ".local" / "share" / "batchpredict"
            assert str(answer["prefix"]).startswith(f"{data}/the checkout-")
            assert answer["file"] == str(sandbox.root / "batchpredict" / "__main__.py")
            assert sandbox.run(prefix=powerless).stderr == ""
            xdg = sandbox.directory / "xdg"
            answer = report(sandbox.run(prefix=powerless, XDG_DATA_HOME=str(xdg)))
            assert str(answer["prefix"]).startswith(f"{xdg}/batchpredict/")
        finally:
            sandbox.root.chmod(0o755)

    def test_environment_that_is_there_is_used(
        self, sandbox: Sandbox, powerless: tuple[str, ...]
    ) -> None:
        report(sandbox.run())
        for lock_file in (True, False):
            if not lock_file:
                (sandbox.root / ".venv.lock").unlink()
            sandbox.root.chmod(0o555)
            try:
                finished = sandbox.run(prefix=powerless)
            finally:
                sandbox.root.chmod(0o755)
            assert report(finished)["prefix"] == str(sandbox.venv)
            assert finished.stderr == ""

    def test_nowhere_to_write(self, sandbox: Sandbox) -> None:
        (sandbox.directory / "file").touch()
        finished = sandbox.run(BATCHPREDICT_VENV=str(sandbox.directory / "file" / "venv"))
        assert finished.returncode == 78
        assert "BATCHPREDICT_VENV moves it" in finished.stderr


class TestFailure:
    def test_a_requirement_that_does_not_exist(self, sandbox: Sandbox) -> None:
        sandbox.pin("3.0")
        finished = sandbox.run()
        assert finished.returncode == 78
        assert finished.stdout == ""
        assert "pip cannot install" in finished.stderr.splitlines()[1]
        assert "parcel" in finished.stderr
        assert not sandbox.venv.exists()
        assert sandbox.leftovers() == []

    def test_an_index_that_does_not_answer(self, sandbox: Sandbox) -> None:
        finished = sandbox.run(
            PIP_NO_INDEX=None,
            PIP_FIND_LINKS=None,
            PIP_INDEX_URL="http://127.0.0.1:9/simple",
            PIP_RETRIES="1",
            PIP_TIMEOUT="1",
        )
        assert finished.returncode == 69
        assert "downloading failed" in finished.stderr
        assert sandbox.leftovers() == []

    def test_an_old_environment_survives_a_failure(self, sandbox: Sandbox) -> None:
        report(sandbox.run())
        sandbox.pin("3.0")
        assert sandbox.run().returncode == 78
        sandbox.pin("1.0")
        assert sandbox.run().stderr == ""

    def test_an_incomplete_checkout(self, sandbox: Sandbox) -> None:
        (sandbox.root / "constraints.txt").unlink()
        finished = sandbox.run()
        assert finished.returncode == 78
        assert "constraints.txt" in finished.stderr


class TestPython:
    """Which Python is taken. The search sees a PATH of stand-ins before the machine's own."""

    def test_passes_over_what_does_not_serve(
        self, sandbox: Sandbox, quick_python: Path, tmp_path: Path
    ) -> None:
        tools = tmp_path / "tools"
        tools.mkdir()
        marks = tmp_path / "marks"
        write_script(tools / "python3.14", f"echo broken >>'{marks}'; exit 127")
        write_script(
            tools / "python3.13", f"echo 'is Python 3.9' >&2; echo old >>'{marks}'; exit 1"
        )
        write_script(tools / "python3.12", f"echo good >>'{marks}'; exec '{quick_python}' \"$@\"")
        finished = sandbox.run(BATCHPREDICT_PYTHON=None, PATH=f"{tools}:/usr/bin:/bin")
        assert report(finished)["parcel"] == "1.0"
        assert marks.read_text().split() == ["broken", "old", "good"]

    def test_one_that_is_named_and_too_old(self, sandbox: Sandbox, tmp_path: Path) -> None:
        write_script(tmp_path / "python", "echo 'is Python 3.9' >&2; exit 1")
        finished = sandbox.run(BATCHPREDICT_PYTHON=str(tmp_path / "python"))
        assert finished.returncode == 78
        assert "3.11 or newer" in finished.stderr

    def test_one_that_is_named_and_missing(self, sandbox: Sandbox) -> None:
        finished = sandbox.run(BATCHPREDICT_PYTHON="/nonexistent/python3")
        assert finished.returncode == 78
        assert "/nonexistent/python3" in finished.stderr
        assert len(finished.stderr.splitlines()) == 1

    def test_one_without_venv(self, sandbox: Sandbox, tmp_path: Path) -> None:
        # Debian's Python without python3-venv: `import ensurepip` fails
        blind = "import sys; sys.modules['ensurepip'] = None; exec(sys.argv[1])"
        write_script(tmp_path / "python3", f'exec \'{BASE_PYTHON}\' -I -c "{blind}" "$3"')
        finished = sandbox.run(BATCHPREDICT_PYTHON=str(tmp_path / "python3"))
        assert finished.returncode == 78
        assert "apt install python3-venv" in finished.stderr
