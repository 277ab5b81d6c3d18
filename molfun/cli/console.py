"""Output of the command line: lines, progress, logs, and errors in one line."""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import time
import traceback
from collections.abc import Iterator, Mapping
from typing import Any

from molfun.errors import MolfunError, printable
from molfun.parallel.started import Started
from molfun.text import counted, first_line, three_digits
from molfun.training.callbacks import Callback, FitPlan
from molfun.training.history import History, Row
from molfun.training.interrupt import Interrupted

PLAIN_EVERY_SECONDS = 60.0
"""Seconds between progress lines where no bar can be drawn, as in the log of a cluster job."""


def is_first_process() -> bool:
    """Return whether this process prints and writes for all that were started for the run."""
    # from the environment, as torch.distributed is not set up yet when the first lines are printed
    return Started.found().index == 0


def hush() -> None:
    """Silence warnings in this process: the first one logs the same."""
    logging.getLogger("molfun").setLevel(logging.ERROR)


def say(text: str = "") -> None:
    """Print a line; a closed pipe silences the output and does not end the run."""
    if not is_first_process():
        return
    try:
        print(printable(text), flush=True)
    except BrokenPipeError:
        # `molfun fine-tune | head`: all further lines go nowhere, the training goes on
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _nothing(text: str = "") -> None:
    """Print nothing, in place of `say`."""


class Progress:
    """Iterate over batches with a progress bar, or with one line per minute without a terminal.

    Parameters
    ----------
    batches
        A loader or list.
    text
        Name of the work, shown with the progress.
    """

    def __init__(self, batches: Any, text: str) -> None:
        self.batches, self.text = batches, text
        # `predict` reads the data set of a loader, which this object stands for
        self.dataset = getattr(batches, "dataset", None)
        self.share = getattr(batches, "share", None)

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[Any]:
        if not is_first_process():
            yield from self.batches
            return
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
    """Format metrics as ``rmse=1.2  pearson=0.31``, with "undefined" for NaN."""
    return "  ".join(f"{name}={three_digits(value)}" for name, value in metrics.items())


class ConsoleProgress(Callback):
    """Print one line per epoch, and the progress of the whole run with the time that is left.

    The progress is a bar on a terminal, and one line per minute elsewhere.

    Parameters
    ----------
    epochs
        Whether to print the epochs; a cross-validation shows the progress alone.
    """

    def __init__(self, *, epochs: bool = True) -> None:
        self._say = say if epochs else _nothing
        self._bar: Any = None
        self._task: Any = None
        # until `on_fit_start`, which a failing set-up never reaches
        self._plan = FitPlan(epochs=0, batches_per_epoch=0, steps_per_epoch=0, total_steps=0)
        self._began_at = self._said_at = time.monotonic()
        self._began_with = 0

    def on_fit_start(self, plan: FitPlan, history: History) -> None:
        """Announce the training, and print the epochs of a resumed run again."""
        self._say(f"\nTraining for {counted(plan.epochs, 'epoch')}...")
        self._plan = plan
        self._began_at, self._began_with = time.monotonic(), len(history) * plan.batches_per_epoch
        for row in history:
            self._say(epoch_line(row))
        if history:
            self._say(f"  resumed after epoch {len(history)}")
        if len(history) >= plan.epochs:
            self._say("  this run is complete; to train longer, start another with --init-from")
        if sys.stderr.isatty():
            self._start_bar()

    def _start_bar(self) -> None:
        from rich import progress
        from rich.console import Console

        self._bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TaskProgressColumn(),
            progress.TimeRemainingColumn(),
            console=Console(stderr=True),
            transient=True,
        )
        total = self._plan.epochs * self._plan.batches_per_epoch
        self._task = self._bar.add_task("", total=total, completed=self._began_with)
        self._bar.start()

    def on_batch_end(self, epoch: int, batch: int, loss: float) -> None:
        """Advance the bar, or print a progress line if the last one is a minute old."""
        per_epoch = self._plan.batches_per_epoch
        done = (epoch - 1) * per_epoch + batch
        if self._bar is not None:
            text = f"epoch {epoch}/{self._plan.epochs}  loss {loss:.3g}"
            self._bar.update(self._task, completed=done, description=text)
        elif time.monotonic() - self._said_at > PLAIN_EVERY_SECONDS:
            self._said_at = time.monotonic()
            text = f"epoch {epoch}/{self._plan.epochs}: batch {batch}/{per_epoch}  loss={loss:.3g}"
            print(f"  {text}  {self._left(done)} left", file=sys.stderr)

    def _left(self, done: int) -> str:
        """Return the time to the end of the run, at the pace of this process."""
        # not at that of the whole run: a resumed one may run on another machine
        pace = (time.monotonic() - self._began_at) / max(1, done - self._began_with)
        return duration(pace * (self._plan.epochs * self._plan.batches_per_epoch - done))

    def on_epoch_end(self, row: Row, improved: bool) -> None:  # noqa: ARG002
        """Print the line of the epoch."""
        # a live bar would be drawn over the line
        if self._bar is not None:
            self._bar.stop()
        self._say(epoch_line(row))
        self._said_at = time.monotonic()
        if self._bar is not None:
            self._bar.start()

    def close(self) -> None:
        """Remove the bar."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


def duration(seconds: float) -> str:
    """Format a time span.

    Examples
    --------
    >>> duration(42), duration(250), duration(9000)
    ('42 s', '4 min', '2 h 30 min')
    """
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def epoch_line(row: Row) -> str:
    """Format one epoch: losses and learning rate, followed by validation metrics.

    The first part has the form of the lines in the OpenFold fine-tuning guide.

    Examples
    --------
    >>> epoch_line({"epoch": 1, "train_loss": 1.5, "val_loss": 0.7, "lr": 8.01e-4})
    '  epoch   1  train_loss=1.50  val_loss=0.70  lr=8.01e-04'
    """
    losses = "  ".join(f"{name}={_loss(row[name])}" for name in ("train_loss", "val_loss"))
    line = f"  epoch {row['epoch']:3d}  {losses}  lr={row['lr']:.2e}"
    metrics = {k.removeprefix("val/"): v for k, v in row.items() if k in SHOWN}
    metrics |= _of_heads(row)
    return f"{line}  {metric_line(metrics)}" if metrics else line


def _of_heads(row: Row) -> dict[str, float]:
    """Return one metric for each of several heads, which the line has room for.

    Examples
    --------
    >>> _of_heads({"val/kd/rmse": 0.5, "val/kd/spearman": 0.7, "val/tm/rmse": 2.0})
    {'kd/spearman': 0.7, 'tm/rmse': 2.0}
    """
    of: dict[str, dict[str, float]] = {}
    for key, value in row.items():
        parts = key.split("/")
        if len(parts) == 3 and parts[0] == "val" and parts[2] in ONE_SHOWN:
            of.setdefault(parts[1], {})[parts[2]] = value
    chosen = {head: min(own, key=ONE_SHOWN.index) for head, own in of.items()}
    return {f"{head}/{metric}": of[head][metric] for head, metric in chosen.items()}


def _loss(value: float) -> str:
    """Format a loss with two decimals, or in scientific notation if these would be zeros."""
    return f"{value:.2e}" if 0 < abs(value) < 0.005 else f"{value:.2f}"


SHOWN = (
    *("val/rmse", "val/pearson", "val/spearman"),
    *("val/energy_mae", "val/forces_mae", "val/stress_mae"),
    *("val/accuracy", "val/mcc", "val/auroc", "val/perplexity"),
)
"""Metrics in the line of an epoch, which fits a terminal; history.csv has all."""
ONE_SHOWN = ("spearman", "mcc", "auroc", "accuracy", "perplexity", "rmse", "energy_mae")
"""Of these the first is shown for each of several heads."""


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
        raise SystemExit(130) from None  # as shells report a process ended by Ctrl-C: 128 + SIGINT
    except MolfunError as error:
        _fail(str(error), debug=debug)
    except MemoryError:
        _fail(_out_of_memory(), debug=debug)
    except RuntimeError as error:
        # torch has a class for CUDA's memory only; a CPU's allocator raises a plain RuntimeError
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
    reason = f"{type(error).__name__}: {first_line(error)}"
    return f"{reason} (run again with --debug for the traceback)"


def _fail(text: str, *, debug: bool) -> None:
    if debug:
        traceback.print_exc()
    index = Started.found().index
    who = f" in process {index}" if index else ""  # the first one most often says the same
    # in one piece, as other processes may write as well
    sys.stderr.write(f"Error{who}: {printable(text)}\n")
    raise SystemExit(1)


class _OtherPackages(logging.Handler):
    """Handler for warnings of other packages, which prints them as logging does without handlers.

    A call such as ``logging.warning`` by another package would otherwise add a handler to the root
    logger, which repeats every line of Molfun.
    """

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.addFilter(lambda record: not record.name.startswith("molfun"))

    def emit(self, record: logging.LogRecord) -> None:
        """Print the message alone."""
        print(printable(self.format(record)), file=sys.stderr)


class _Lines(logging.Formatter):
    """Formatter that escapes control characters: names in a file must not control a terminal."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the formatted record."""
        return printable(super().format(record))


def set_up_logging(log_file: str | None, *, debug: bool) -> None:
    """Send warnings to the terminal, and all records to the log file of the run."""
    logger = logging.getLogger("molfun")
    logger.setLevel(logging.DEBUG)
    # of an earlier command in the same process, as in tests and notebooks
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
        file.setLevel(logging.DEBUG if debug else logging.INFO)
        file.setFormatter(_Lines("%(asctime)s %(levelname)s %(name)s: %(message)s"))
        logger.addHandler(file)
    if not is_first_process():
        hush()
