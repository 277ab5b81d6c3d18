"""``python -m molfun.cli``."""

from molfun.cli.app import main

main()
