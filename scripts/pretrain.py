"""Pre-train a backbone without labels: ``molfun pretrain`` as a script."""

import sys

from molfun.cli.app import app

if __name__ == "__main__":
    app(["pretrain", *sys.argv[1:]], prog_name="pretrain.py")
