"""batchpredict without the work of its journal: what a batch gave is not kept.

python without_commits.py OPTION…   (those of `batchpredict predict`)
"""

from __future__ import annotations

import sys
from typing import Any

from batchpredict import cli
from batchpredict.run.journal import Journal


def nothing(journal: Journal, *_: Any) -> None:
    journal.added_rows = 1


if __name__ == "__main__":
    Journal.add = nothing  # type: ignore[method-assign]
    sys.exit(cli.main(sys.argv[1:]))
