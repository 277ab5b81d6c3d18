"""``python -m molfun.cli``."""

from molfun.cli.main import main

main()
