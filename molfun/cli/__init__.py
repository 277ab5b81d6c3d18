"""The command line: ``molfun fine-tune``, ``molfun predict`` and ``molfun evaluate``."""
