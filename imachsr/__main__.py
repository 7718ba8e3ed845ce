"""``python -m imachsr`` is the command line."""

from imachsr.cli import main

main()
