"""Install the openfold package: ``molfun install openfold`` under its older name."""

import sys

from molfun.cli.main import main

sys.argv[1:1] = ["install", "openfold"]
main()
