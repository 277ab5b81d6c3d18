"""Pre-train a backbone without labels: ``molfun pretrain`` as a script."""

import typer

from molfun.cli.main import pretrain

if __name__ == "__main__":
    typer.run(pretrain)
