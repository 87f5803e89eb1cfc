"""`python -m batchpredict` and the installed command: the command line in a process of its own."""

from __future__ import annotations

import os
import sys
from typing import NoReturn

from batchpredict.cli import main
from batchpredict.errors import OutputWriteFailed


def run() -> NoReturn:
    """Run the command line and end the process at once.

    Not by way of the interpreter's end: threads that are still at work in a library may crash
    when it is taken down around them, and it takes a tenth of a second.
    """
    code = main()
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            code = code or OutputWriteFailed.exit_code
    os._exit(code)


if __name__ == "__main__":
    run()
