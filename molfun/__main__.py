"""``python -m molfun``."""

from molfun.cli.app import main

main()
