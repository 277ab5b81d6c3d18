"""Fine-tune a model on structures with affinities: ``molfun fine-tune`` as a script."""

import typer

from molfun.cli.main import fine_tune

if __name__ == "__main__":
    typer.run(fine_tune)
