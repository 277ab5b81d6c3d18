"""Run a command of molfun in several processes, which start as torchrun starts them."""

from __future__ import annotations

import contextlib
import os
import socket
from collections.abc import Iterator

import warm


@contextlib.contextmanager
def started(size: int, *command: object) -> Iterator[list[warm.Process]]:
    """Start a command in processes, as torchrun would."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    shared = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    shared |= {"WORLD_SIZE": str(size), "LOCAL_WORLD_SIZE": str(size)}
    with contextlib.ExitStack() as stack:
        yield [
            stack.enter_context(
                warm.Process(
                    "-m", "molfun", *command,
                    env={**shared, "RANK": str(i), "LOCAL_RANK": str(i)}, output=f"said{i}",
                )
            )
            for i in range(size)
        ]  # fmt: skip


def together(size: int, *command: object) -> str:
    """Run a command in processes to its end, and return what the first one prints."""
    with started(size, *command) as processes:
        codes = [process.wait() for process in processes]
        said = [process.stdout() for process in processes]
        assert codes == [0] * size, "".join(process.stderr() for process in processes)
    assert said[1:] == [""] * (size - 1)
    return said[0]
