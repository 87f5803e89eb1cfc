"""`python -m batchpredict` is the command line."""

import sys

from batchpredict.cli import main

if __name__ == "__main__":
    sys.exit(main())
