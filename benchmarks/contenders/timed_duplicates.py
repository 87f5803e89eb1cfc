"""batchpredict with a clock around its search for equal rows.

python timed_duplicates.py OPTION…   (those of `batchpredict predict`, with --output_file)

Adds `duplicates`, thread CPU seconds, to `cpu_seconds` of the receipt.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from batchpredict import cli
from batchpredict.model import tabular, text

SPENT = [0.0]


def timed(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any) -> Any:
        begin = time.thread_time()
        found = function(*arguments)
        SPENT[0] += time.thread_time() - begin
        return found

    return call


if __name__ == "__main__":
    tabular.first_equal = timed(tabular.first_equal)
    text.first_seen = timed(text.first_seen)
    code = cli.main(sys.argv[1:])
    (output,) = (a.partition("=")[2] for a in sys.argv if a.startswith("--output_file="))
    receipt = Path(f"{output}.receipt.json")
    content = json.loads(receipt.read_text())
    content["cpu_seconds"]["duplicates"] = SPENT[0]
    receipt.write_text(json.dumps(content))
    sys.exit(code)
