"""Entry point of ``molfun``, under the name that scripts import."""

from molfun.cli.app import app, main

__all__ = ["app", "main"]

if __name__ == "__main__":
    main()
