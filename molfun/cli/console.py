"""What the command line shows: lines, progress, and errors in one line."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from molfun.data.words import counted
from molfun.errors import MolfunError, printable
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History, Row
from molfun.training.interrupt import Interrupted

PLAIN_EVERY_SECONDS = 60.0


def is_first_process() -> bool:
    """Whether this process speaks and writes for all that ``torchrun`` started."""
    return os.environ.get("RANK", "0") == "0"


def hush() -> None:
    """Leave warnings to the first process: they are the same in all."""
    logging.getLogger("molfun").setLevel(logging.ERROR)


def say(text: str = "") -> None:
    """Print a line; a closed pipe silences the output and does not end the run."""
    if not is_first_process():
        return
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


class Progress:
    """Batches, given one by one under a progress bar, or with a line a minute.

    Parameters
    ----------
    batches
        A loader or list.
    text
        What is being done.
    """

    def __init__(self, batches: Any, text: str) -> None:
        self.batches, self.text = batches, text
        self.dataset = getattr(batches, "dataset", None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if sys.stderr.isatty():
            from rich.console import Console
            from rich.progress import track

            yield from track(self.batches, self.text, console=Console(stderr=True), transient=True)
            return
        said_at = time.monotonic()
        for done, batch in enumerate(self.batches):
            if time.monotonic() - said_at > PLAIN_EVERY_SECONDS:
                said_at = time.monotonic()
                print(f"  {self.text}: {done}/{len(self.batches)}", file=sys.stderr)
            yield batch


def metric_line(metrics: Mapping[str, float]) -> str:
    """Metrics as ``rmse=1.204  pearson=0.31``, "undefined" where they are NaN."""
    shown = {k: "undefined" if math.isnan(v) else f"{v:.4g}" for k, v in metrics.items()}
    return "  ".join(f"{name}={value}" for name, value in shown.items())


class ConsoleProgress(Callback):
    """The guide's epoch lines, and a progress bar on a terminal (a line a minute elsewhere)."""

    def __init__(self) -> None:
        self._bar: Any = None
        self._task: Any = None
        self._said_at = time.monotonic()

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        """Announce the training; show rows of a resumed run again."""
        say(f"\nTraining for {counted(plan.epochs, 'epoch')}...")
        self._plan = plan
        for row in history:
            say(epoch_line(row))
        if history:
            say(f"  resumed after epoch {len(history)}")
        if sys.stderr.isatty():
            self._start_bar()

    def _start_bar(self) -> None:
        from rich.console import Console
        from rich.progress import Progress

        self._bar = Progress(console=Console(stderr=True), transient=True)
        self._bar.start()
        self._task = self._bar.add_task("", total=self._plan.batches_per_epoch)

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        """Move the bar."""
        total = self._plan.batches_per_epoch
        if self._bar is not None:
            text = f"epoch {epoch}/{self._plan.epochs}  loss {loss:.3g}"
            self._bar.update(self._task, completed=batch, description=text)
        elif time.monotonic() - self._said_at > PLAIN_EVERY_SECONDS:
            self._said_at = time.monotonic()
            print(f"  epoch {epoch}: batch {batch}/{total}  loss={loss:.3g}", file=sys.stderr)

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Print the epoch's line."""
        line = epoch_line(row)
        if self._bar is not None:
            self._bar.stop()
        say(line)
        self._said_at = time.monotonic()
        if self._bar is not None:
            self._start_bar()

    def close(self) -> None:
        """Take the bar away."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def epoch_line(row: Row) -> str:
    """One epoch in the guide's form, with the validation metrics behind it.

    Examples
    --------
    >>> epoch_line({"epoch": 1, "train_loss": 1.5, "val_loss": 0.7, "lr": 8.01e-4})
    '  epoch   1  train_loss=1.50  val_loss=0.70  lr=8.01e-04'
    """
    losses = "  ".join(f"{name}={_loss(row[name])}" for name in ("train_loss", "val_loss"))
    line = f"  epoch {row['epoch']:3d}  {losses}  lr={row['lr']:.2e}"
    metrics = {k.removeprefix("val/"): v for k, v in row.items() if k in SHOWN}
    return f"{line}  {metric_line(metrics)}" if metrics else line


def _loss(value: float) -> str:
    """Two decimals; in powers of ten where these would be zeros."""
    return f"{value:.2e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


SHOWN = (
    *("val/rmse", "val/pearson", "val/spearman"),
    *("val/energy_mae", "val/forces_mae", "val/stress_mae"),
    *("val/accuracy", "val/mcc", "val/auroc", "val/perplexity"),
)


@contextlib.contextmanager
def errors_in_one_line(*, debug: bool) -> Iterator[None]:
    """Turn errors into one clear message and an exit code; tracebacks only with ``--debug``."""
    try:
        yield
    except Interrupted as stop:
        print(printable(str(stop)), file=sys.stderr)
        raise SystemExit(stop.exit_code) from None
    except KeyboardInterrupt:
        print("Stopped.", file=sys.stderr)
        raise SystemExit(130) from None
    except MolfunError as error:
        _fail(str(error), debug=debug)
    except MemoryError:
        _fail(_out_of_memory(), debug=debug)
    except RuntimeError as error:
        text = str(error)
        memory = "out of memory" in text.lower() or "can't allocate memory" in text
        _fail(_out_of_memory() if memory else _unexpected(error), debug=debug)
    except Exception as error:  # the last resort of the command line
        _fail(_unexpected(error), debug=debug)


def _out_of_memory() -> str:
    return (
        "Out of memory. Lower --max-length (memory grows with its square), --batch-size or the "
        "blocks that train (--unfreeze-blocks), or use --strategy head_only."
    )


def _unexpected(error: Exception) -> str:
    first = (str(error) or type(error).__name__).splitlines()[0]
    return f"{type(error).__name__}: {first} (run again with --debug for the traceback)"


def _fail(text: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    print(f"Error: {printable(text)}", file=sys.stderr)
    raise SystemExit(1)


class _OtherPackages(logging.Handler):
    """Warnings of other packages, as without any handler.

    A package that logs before anyone has set up the root logger gives it a handler, which would
    repeat every line of Molfun's.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(lambda record: not record.name.startswith("molfun"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone."""
        print(printable(self.format(record)), file=sys.stderr)


class _Lines(logging.Formatter):
    """Records whose names and messages cannot control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """The line or lines."""
        return printable(super().format(record))


def set_up_logging(log_file: str | None, *, debug: bool) -> None:
    """Warnings to the terminal, everything to the run's log file."""
    logger = logging.getLogger("molfun")
    logger.setLevel(logging.DEBUG)
    for handler in list(logger.handlers):
        logger.removeHandler(handler)
        handler.close()
    terminal = logging.StreamHandler(sys.stderr)
    terminal.setLevel(logging.DEBUG if debug else logging.WARNING)
    terminal.setFormatter(_Lines("%(levelname)s: %(message)s"))
    logger.addHandler(terminal)
    root = logging.getLogger()
    if not root.handlers:
        root.addHandler(_OtherPackages())
    if log_file is not None:
        file = logging.FileHandler(log_file, encoding="utf-8")
        file.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
