"""`python -m cipherdm` is the command `cipherdm`."""

from .cli import main

main()
