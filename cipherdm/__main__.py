"""The command line as `python -m cipherdm`."""

import sys

if not sys.flags.safe_path:
    del sys.path[0]  # the working directory, in which a file may have the name of a library

from .cli import main  # noqa: E402

main()
