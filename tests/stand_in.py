"""A copy of what a user's checkout has, whose bin/batchpredict needs no environment of its own."""

from __future__ import annotations

import shlex
import shutil
import sys
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[1]


def write_command(path: Path, model: Path | None = None) -> Path:
    """An executable that runs this checkout's batchpredict with the Python of the tests.

    `model`: the bundled one, as bin/batchpredict passes it; None as after `pip install`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    bundled = f"BATCHPREDICT_DEFAULT_MODEL={shlex.quote(str(model))} " if model else ""
    start = "import sys; sys.path.insert(0, sys.argv.pop(1)); from batchpredict.cli import main; "
    command = [sys.executable, "-P", "-c", start + "sys.exit(main())", str(CHECKOUT)]
    path.write_text(f'#!/bin/sh\n{bundled}exec {shlex.join(command)} "$@"\n', encoding="utf-8")
    path.chmod(0o755)
    return path


def copy_examples(root: Path) -> None:
    """The examples as they are in git: what earlier runs left beside them stays away."""
    left = shutil.ignore_patterns("*.scored.*", "*.failed.*", "__pycache__")
    shutil.copytree(CHECKOUT / "examples", root / "examples", ignore=left)
