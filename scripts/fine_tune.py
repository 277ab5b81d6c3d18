"""Fine-tune a model on structures with affinities: ``molfun fine-tune`` as a script."""

import sys

from molfun.cli.app import app

if __name__ == "__main__":
    app(["fine-tune", *sys.argv[1:]], prog_name="fine_tune.py")
