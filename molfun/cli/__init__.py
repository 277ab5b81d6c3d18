"""The command line: ``molfun fine-tune``, ``molfun predict``, ``molfun evaluate`` and others."""
