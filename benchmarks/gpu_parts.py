"""The parts of ``benchmarks/gpu.py``: each function measures one thing and reports rows."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib.util
import logging
import math
import os
import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import esm2_vs_peers as peers
import harness
import numpy as np
import openfold_kernels
import parallel
import torch
from openfold_kernels import Case
from torch.utils._pytree import tree_leaves

from molfun.backbones.language.packing import PackedAttention
from molfun.text import first_line

Status = Literal["ok", "broken", "skipped", "failed"]
FABRIC = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}
"""Fabric's names of the precisions."""
DTYPES = {"fp32": None, "tf32": None, "bf16": torch.bfloat16, "fp16": torch.float16}
LOSS_LIMIT = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2, "fp16": 1e-2}
"""Largest relative difference of losses and norms of two implementations of the same model."""
CPU_LIMIT = {"fp32": 1e-3, "bf16": 0.1, "fp16": 2e-2}
"""Largest relative difference from the CPU in float32."""
SCALES = {"fp16": (256.0, 16.0, 1.0)}
"""Factors of the loss, of which the first that gives finite gradients counts, as in a scaler. Small
gradients of float16 are zero, large ones infinite."""


@dataclass(frozen=True)
class Options:
    """Device of all parts, and whether sizes are tiny."""

    device: str
    quick: bool

    def of(self, quick: Any, full: Any) -> Any:
        """Return the value for this kind of run."""
        return quick if self.quick else full


@dataclass(frozen=True)
class Row:
    """A row of the table; what a row does not measure is None.

    Parameters
    ----------
    part, label
        What is measured.
    status, note
        "broken" is a result too far from its reference, "skipped" what cannot run here.
    precision
        The peak with which `tflops` is compared.
    seconds, per_second
        Median over the runs, and residues per second.
    memory_mb
        Peak of a run over what was held before it.
    value, difference
        Result, and its relative difference from the reference.
    """

    part: str
    label: str
    status: Status = "ok"
    note: str = ""
    precision: str = ""
    seconds: float | None = None
    per_second: float | None = None
    memory_mb: float | None = None
    tflops: float | None = None
    value: float | None = None
    difference: float | None = None


class CannotRunError(Exception):
    """What cannot run here, and why."""


class Report:
    """Sends the rows of a part.

    Parameters
    ----------
    part
        Its name.
    send
        Function that takes a row.
    """

    def __init__(self, part: str, send: Callable[[Row], None]) -> None:
        self._part, self._send = part, send

    def attempt(self, label: str, work: Callable[[], Mapping[str, Any]]) -> Row:
        """Send the row that `work` gives the fields of, or the reason why it gives none."""
        try:
            row = Row(self._part, label, **work())
        except (CannotRunError, ImportError) as reason:
            row = Row(self._part, label, status="skipped", note=first_line(reason))
        except Exception as error:  # a row that fails must not cost the others their card time
            note = f"{type(error).__name__}: {first_line(error)}"
            row = Row(self._part, label, status="failed", note=note)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
        self._send(row)
        return row

    def skip(self, label: str, reason: str) -> None:
        """Send a row that says why it cannot be measured."""
        self._send(Row(self._part, label, status="skipped", note=reason))


def serve(pipe: Any, name: str, options: Options) -> None:
    """Run a part; the process and those it starts are a group of their own."""
    os.setsid()
    logging.disable(logging.WARNING)
    if options.device == "cpu":
        torch.set_num_threads(1)  # a try of the script on a busy machine
    gc.freeze()  # what is imported: else each collection looks at all of it
    report = Report(name, pipe.send)
    # a part that cannot even begin gives its reason as a row as well
    try:
        PARTS[name].run(options, report)
    except Exception as error:  # as any row
        report.attempt("start", functools.partial(_raise, error))


def _raise(error: Exception) -> Mapping[str, Any]:
    raise error


# --- measuring -----------------------------------------------------------------------------------


def timed(
    run: harness.Measure, options: Options, *, precision: str, most: float = 1.5
) -> dict[str, Any]:
    """Return median seconds, peak memory and value of a run, repeated for `most` seconds."""
    with products(precision):
        value = run()  # warm-up: kernels are chosen and loaded
        gc.collect()
        cuda = options.device == "cuda"
        harness.wait(options.device)
        if cuda:
            torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated() if cuda else 0
        seconds: list[float] = []
        while not seconds or (sum(seconds) < options.of(0.0, most) and len(seconds) < 20):
            start = time.perf_counter()
            value = run()
            harness.wait(options.device)
            seconds.append(time.perf_counter() - start)
    held = (torch.cuda.max_memory_allocated() - before) / 1e6 if cuda else None
    found: dict[str, Any] = {"seconds": statistics.median(seconds), "value": value}
    return {**found, "memory_mb": held, "precision": precision}


@contextlib.contextmanager
def products(precision: str) -> Iterator[None]:
    """Allow TF32 in products of float32 within a block, or not."""
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision("highest")


def cast(options: Options, precision: str) -> Any:
    """Return the context in which a model computes in a precision."""
    dtype = DTYPES[precision]
    return torch.autocast(options.device, dtype) if dtype else contextlib.nullcontext()


def against(
    found: dict[str, Any], reference: float | None, limit: float, name: str
) -> dict[str, Any]:
    """Return the fields of a row with the difference of its value from a reference."""
    if reference is None:
        return found
    apart = abs(found["value"] - reference) / max(abs(reference), 1e-30)
    return {**found, **judged(apart, limit), "note": f"next to {name}"}


def judged(difference: float, limit: float) -> dict[str, Any]:
    """Return difference and verdict; NaN is broken."""
    return {"difference": difference, "status": "ok" if difference <= limit else "broken"}


def precisions_of(options: Options) -> tuple[str, ...]:
    """Return the precisions in which speed is measured; TF32 is of NVIDIA's cards."""
    return ("fp32", "bf16") if options.device == "cpu" else ("fp32", "tf32", "bf16")


# --- products ------------------------------------------------------------------------------------


def gemm(options: Options, report: Report) -> None:
    """Measure the best rate of a product in each precision."""
    n = options.of(256, 8192)
    shapes = [(n, n, n), (n, n // 2, n * 2)]

    def rate(precision: str) -> dict[str, Any]:
        dtype = DTYPES[precision] or torch.float32
        with products(precision), torch.no_grad():
            found = harness.best_rate(
                torch.nn.functional.linear, dtype, device=options.device, shapes=shapes
            )
        return {"tflops": found / 1e3, "precision": precision}

    for precision in dict.fromkeys((*precisions_of(options), "fp16")):
        report.attempt(f"{precision}, up to {n} x {n} x {n}", lambda p=precision: rate(p))


# --- correctness ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Subject:
    """A backbone for the comparison with the CPU: its arguments, its samples, its kernels."""

    arguments: Mapping[str, Any]
    samples: Callable[[], list[Any]]
    kernels: tuple[str, ...] = ("auto",)


def proteins_of(lengths: Sequence[int]) -> list[Any]:
    """Return random proteins with labels."""
    from molfun.protein import Protein
    from molfun.testing.samples import sequences

    return [
        replace(s, protein=Protein.from_sequence(s.sequence, name=s.id))
        for s in sequences(len(lengths), lengths=lengths)
    ]


def series_of() -> list[Any]:
    """Return series with labels."""
    from molfun.testing.samples import series

    return series(6, lengths=(40, 64, 33))


def atoms_of() -> list[Any]:
    """Return small clouds of atoms with energies."""
    from ase import Atoms

    from molfun.sample import Sample

    rng = np.random.default_rng(0)
    grid = 1.5 * np.stack(np.meshgrid(*[range(3)] * 3), -1).reshape(-1, 3)
    made = []
    for i, n in enumerate((8, 15, 27)):
        positions = grid[:n] + 0.2 * rng.normal(size=(n, 3))
        atoms = Atoms(numbers=rng.choice([1, 6, 7, 8], n), positions=positions)
        label = {"energy": -2.0 * float(atoms.numbers.sum())}
        made.append(Sample(id=str(i), atoms=atoms, target=label))
    return made


def subjects(options: Options) -> dict[str, Subject]:
    """Return the four backbones."""
    from molfun.testing.samples import SERIES_CONFIG

    proteins = options.of((9, 17, 30), (40, 130, 250))
    return {
        "ESM-2": Subject(
            {"backbone": options.of("esm2_tiny", peers.NAMES["8M"]), "head": "regression"},
            lambda: proteins_of(proteins),
        ),
        "OpenFold": Subject(
            {"backbone": "openfold", "config": "tiny", "head": "affinity",
             "backbone_config": {"fill_zero_init": 0.02}},
            lambda: proteins_of(options.of((9, 17), (40, 130))),
            ("stock", "fast"),
        ),
        "PET": Subject({"backbone": "pet", "head": "energy"}, atoms_of),
        "time series": Subject(
            {"backbone": "timeseries", "config": SERIES_CONFIG, "head": "regression"}, series_of
        ),
    }  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """What a model gives for some samples."""

    predictions: np.ndarray
    gradient: float

    def apart(self, other: Outcome) -> float:
        """Return the larger relative difference of the two."""
        size = max(float(np.abs(other.predictions).max()), 1e-30)
        first = float(np.abs(self.predictions - other.predictions).max()) / size
        second = abs(self.gradient - other.gradient) / max(other.gradient, 1e-30)
        return math.nan if math.isnan(first + second) else max(first, second)


def outcome(subject: Subject, device: str, kernels: str, precision: str) -> Outcome:
    """Return predictions and the norm of all gradients of one model."""
    from molfun import FullFinetune, MolfunStructureModel
    from molfun.models.assembly import use_precision
    from molfun.models.evaluation import runner_of
    from molfun.training.inputs import Inputs

    given = dict(subject.arguments)
    chosen = {"device": device, "kernels": kernels, "seed": 0}
    model = MolfunStructureModel(given.pop("backbone"), **given, **chosen)
    samples = subject.samples()
    model.task.fit_targets([sample.target for sample in samples])
    FullFinetune().setup(model)
    model.eval()
    use_precision(model, FABRIC[precision])
    runner, inputs = runner_of(model), Inputs.of(samples)
    with products(precision):
        for scale in SCALES.get(precision, (1.0,)):
            model.zero_grad()
            outputs = runner.outputs(inputs)
            (runner.loss(inputs, outputs).total * scale).backward()
            norms = [p.grad.float().norm() for p in model.parameters() if p.grad is not None]
            gradient = float(torch.stack(norms).norm()) / scale
            if math.isfinite(gradient):
                break
    # before units: a mean of the labels would hide differences
    found = [
        t.detach().double().cpu().flatten()
        for t in tree_leaves(outputs)
        if isinstance(t, torch.Tensor) and t.requires_grad
    ]
    return Outcome(torch.cat(found).numpy(), gradient)


def correctness(options: Options, report: Report) -> None:
    """Compare each backbone on the device with the CPU in float32."""
    for name, subject in subjects(options).items():
        first = subject.kernels[0]
        known: dict[str, Outcome] = {}

        def reference(subject: Subject, kernels: str, known: dict[str, Outcome]) -> dict[str, Any]:
            known["cpu"] = outcome(subject, "cpu", kernels, "fp32")
            return {"value": known["cpu"].gradient, "note": "the reference; norm of gradients"}

        def compared(
            subject: Subject, kernels: str, precision: str, known: dict[str, Outcome]
        ) -> dict[str, Any]:
            if "cpu" not in known:
                raise RuntimeError("there is no reference")
            found = outcome(subject, options.device, kernels, precision)
            verdict = judged(found.apart(known["cpu"]), CPU_LIMIT[precision])
            return {"value": found.gradient, **verdict}

        label = f"{name}, cpu, fp32"
        report.attempt(label, functools.partial(reference, subject, first, known))
        for kernels in subject.kernels:
            for precision in CPU_LIMIT:
                tail = "" if kernels == "auto" else f", {kernels}"
                report.attempt(
                    f"{name}, {options.device}, {precision}{tail}",
                    functools.partial(compared, subject, kernels, precision, known),
                )
    short_folds(options, report)


def short_folds(options: Options, report: Report) -> None:
    """Compare pTM and pLDDT of short sequences, where half precision once gave NaN."""
    from molfun import MolfunStructureModel
    from molfun.models.assembly import use_precision

    # the scale of the TM score is that of 19 residues or fewer
    lengths = options.of((5, 19), (3, 15, 19, 40))
    texts = [("ACDEFGHIKLMNPQRSTVWY" * 2)[:n] for n in lengths]

    @functools.cache
    def model_on(device: str) -> Any:
        settings = {"fill_zero_init": 0.1}
        return MolfunStructureModel(
            "openfold", config="tiny", head=None, device=device, backbone_config=settings
        )

    @functools.cache
    def scores(device: str, precision: str) -> np.ndarray:
        model = model_on(device)
        use_precision(model, FABRIC[precision])
        folds = model.fold(texts, recycles=options.of(0, 1))
        return np.array([[f.ptm, f.plddt.mean() / 100] for f in folds], dtype=float)

    def compared(precision: str) -> dict[str, Any]:
        found, expected = scores(options.device, precision), scores("cpu", "fp32")
        apart = float(np.abs(found - expected).max())
        return {
            "value": float(found[0, 0]),
            **judged(apart, CPU_LIMIT[precision]),
            "note": f"pTM and pLDDT of {', '.join(map(str, lengths))} residues",
        }

    for precision in CPU_LIMIT:
        report.attempt(
            f"OpenFold, short folds, {options.device}, {precision}",
            functools.partial(compared, precision),
        )


# --- ESM-2 ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Way:
    """An implementation of ESM-2: how to build it, and which order it gets.

    `missing` is the reason why it cannot run here.
    """

    label: str
    build: Callable[[Any, str], Any]
    order: str = "random"
    varlen: bool = False
    half: bool = False
    missing: str = ""


def ways_of(options: Options) -> tuple[Way, ...]:
    """Return the implementations, the reference first."""
    flash = functools.partial(peers.HuggingFace, attention="flash_attention_2")
    cpu = options.device == "cpu"
    return (
        Way("transformers sdpa, padded", peers.HuggingFace),
        Way("transformers sdpa, sorted", peers.HuggingFace, "sorted"),
        Way("transformers flash 2, padded", flash, half=True, missing=absent("flash_attn")),
        Way("molfun packed", peers.Molfun),
        Way(
            "molfun packed, varlen_attn", peers.Molfun, varlen=True, half=True,
            missing="it runs on GPUs alone" if cpu else absent("torch.nn.attention.varlen"),
        ),
    )  # fmt: skip


def absent(module: str) -> str:
    """Return that a module is missing; empty if it is there."""
    return "" if importlib.util.find_spec(module) else f"{module} is not installed"


@contextlib.contextmanager
def varlen_attention() -> Iterator[None]:
    """Let Molfun's packed forward pass attend by torch's ``varlen_attn`` within a block."""
    from torch.nn.attention.varlen import varlen_attn

    def attend(
        self: PackedAttention, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, _: float
    ) -> torch.Tensor:
        packing = self.packing
        offsets, longest = packing.offsets.to(q.device, torch.int32), max(packing.lengths)
        found: torch.Tensor = varlen_attn(
            q.contiguous(), k.contiguous(), v.contiguous(), offsets, offsets, longest, longest
        )
        return found

    before, PackedAttention._jagged = PackedAttention._jagged, attend  # type: ignore[method-assign]
    try:
        yield
    finally:
        PackedAttention._jagged = before  # type: ignore[method-assign]


def work_of(source: Any, texts: Sequence[str], *, train: bool) -> float:
    """Return the floating-point operations of a pass over sequences.

    Those of the products in the blocks: 24 d^2 per token in the layers, and 4 L d in attention. The
    backward pass of LoRA needs those of the layers once more (for the inputs alone, as the weights
    are frozen), and those of attention twice.
    """
    size = source.backbone.config
    layers, attention = (
        size.num_layers * sum(per(len(t) + 2) for t in texts)
        for per in (
            lambda n: 24 * size.embed_dim**2 * n,
            lambda n: 4 * n * n * size.embed_dim,
        )
    )
    return float((2 * layers + 3 * attention) if train else layers + attention)


def esm2_row(
    peer: Any, way: Way, texts: Sequence[str], options: Options, *, train: bool, precision: str
) -> dict[str, Any]:
    """Measure one implementation on some sequences."""
    batches = peers.batches_in(way.order, texts, options.of(4, 16))
    inputs = list(peers.inputs_of(peer, texts, batches))
    chosen = varlen_attention() if way.varlen else contextlib.nullcontext()

    def run() -> float:
        return peers.one_pass(peer, inputs, train=train, dtype=DTYPES[precision])

    with chosen:
        found = timed(run, options, precision=precision, most=1.0)
    return {
        **found,
        "per_second": sum(map(len, texts)) / found["seconds"],
        "tflops": work_of(peer.source, texts, train=train) / found["seconds"] / 1e12,
    }


def esm2(options: Options, report: Report) -> None:
    """Compare Molfun's packed ESM-2 with transformers and peft on equal weights."""
    n = options.of(8, 64)
    mixed = peers.sequences(n, 0)
    even = [text * 8 for text in mixed]
    data = {"mixed lengths": mixed, "equal lengths": [t[: options.of(64, 320)] for t in even]}
    for way in ways_of(options):
        if way.missing:
            report.skip(way.label, way.missing)
    for size in options.of(("tiny",), ("8M", "150M", "650M")):
        try:
            source = peers.source_of(size, options.device)
        except Exception as error:  # as any row; the other sizes go on
            report.attempt(f"{size}", functools.partial(_raise, error))
            continue
        for kind in ("inference", "lora"):
            esm2_table(f"{size} {kind}", source, kind, data, options, report)


def esm2_table(
    title: str, source: Any, kind: str, data: Mapping[str, list[str]],
    options: Options, report: Report,
) -> None:  # fmt: skip
    """Measure all implementations in all precisions."""
    losses: dict[tuple[str, str], float | None] = {}
    for way in ways_of(options):
        if way.missing:
            continue
        build = functools.cache(functools.partial(built, way, source, kind))
        for precision in ("bf16",) if way.half else precisions_of(options):
            for name, texts in data.items():
                if way.order == "sorted" and name != "mixed lengths":
                    continue

                def measure(
                    way: Way = way, texts: list[str] = texts, precision: str = precision,
                    build: Any = build, key: tuple[str, str] = (precision, name),
                ) -> dict[str, Any]:  # fmt: skip
                    found = esm2_row(
                        build(), way, texts, options, train=kind == "lora", precision=precision
                    )
                    return against(found, losses.get(key), LOSS_LIMIT[precision], "transformers")

                row = report.attempt(f"{title}, {way.label}, {name[:5]}, {precision}", measure)
                losses.setdefault((precision, name), row.value)


def built(way: Way, source: Any, kind: str) -> Any:
    """Return an implementation with the weights of `source`."""
    peer = way.build(source, "lora" if kind == "lora" else "head").eval()
    peer.source = source
    return peer


# --- OpenFold ------------------------------------------------------------------------------------


def openfold_models(options: Options) -> Iterator[tuple[Case, Any, dict[int, Any]]]:
    """Yield, for a forward pass and for a LoRA step, the model and a batch of each length."""
    for mode in ("forward", "lora"):
        case = Case(
            mode, 0, options.of(2, 32), "fast", checkpointing=mode == "lora",
            config=options.of("tiny", "model_1_ptm"), device=options.device,
        )  # fmt: skip
        model = openfold_kernels.model_of(case)
        lengths = options.of((24, 40), (128, 256, 384))
        batches = {n: openfold_kernels.batch_of(model, replace(case, length=n)) for n in lengths}
        yield case, model, batches


def openfold_row(
    model: Any, case: Case, batch: Any, work: float | None, options: Options, *, precision: str
) -> dict[str, Any]:
    """Measure a forward pass or step of the trunk."""
    under = functools.partial(cast, options, precision)
    run = openfold_kernels.pass_of(model.backbone, batch, case, under)
    found = timed(run, options, precision=precision)
    rate = None if work is None else work / found["seconds"] / 1e12
    return {**found, "tflops": rate, "per_second": case.length / found["seconds"]}


def operations(model: Any, case: Case, batch: Any) -> float | None:
    """Return the operations of the products of openfold's own code; a LoRA step has twice those.

    That is a lower bound: products of two activations have two in the backward pass.
    """
    from torch.utils.flop_counter import FlopCounterMode

    forward = openfold_kernels.pass_of(model.backbone, batch, replace(case, mode="forward"))
    with FlopCounterMode(display=False) as counter:
        forward()
    total = counter.get_total_flops() * (2 if case.mode == "lora" else 1)
    return float(total) if total else None


VARIANTS = (
    ("stock", "stock", "fp32", False), ("fast", "fast", "fp32", False),
    ("stock", "stock", "bf16", False), ("fast", "fast", "bf16", False),
    ("fast", "fast", "tf32", False), ("cuEquivariance", "fast", "fp32", True),
    ("cuEquivariance", "fast", "bf16", True),
)  # fmt: skip
"""Label, kernels, precision, and whether NVIDIA's triangle kernels are asked for."""


def openfold(options: Options, report: Report) -> None:
    """Measure forward pass and LoRA step of the trunk with each of the kernels."""
    from molfun.nn import cuequivariance

    missing = cuequivariance.problem()
    if missing:
        report.skip("cuEquivariance", missing)
    for case, model, batches in openfold_models(options):
        for length, batch in batches.items():
            one, known = replace(case, length=length), dict[str, float | None]()

            def measure(
                kernels: Any, precision: str, by_nvidia: bool,
                model: Any = model, case: Case = one, batch: Any = batch,
                known: dict[str, float | None] = known,
            ) -> dict[str, Any]:  # fmt: skip
                select_kernels(model, kernels, by_nvidia=by_nvidia)
                if "work" not in known:
                    known["work"] = operations(model, case, batch)
                found = openfold_row(
                    model, case, batch, known["work"], options, precision=precision
                )
                # NVIDIA's kernels compute in TF32
                limit = LOSS_LIMIT["tf32" if by_nvidia and precision == "fp32" else precision]
                return against(found, known.get("norm"), limit, "stock in fp32")

            for label, kernels, precision, by_nvidia in VARIANTS:
                if precision not in precisions_of(options) or (by_nvidia and missing):
                    continue
                row = report.attempt(
                    f"{case.mode}, {length} residues, {label}, {precision}",
                    functools.partial(measure, kernels, precision, by_nvidia),
                )
                known.setdefault("norm", row.value)


def select_kernels(model: Any, kernels: Any, *, by_nvidia: bool) -> None:
    """Switch the kernels of the trunk."""
    from molfun.backbones.openfold.kernel_choice import CUEQUIVARIANCE_SWITCH

    os.environ[CUEQUIVARIANCE_SWITCH] = "on" if by_nvidia else "off"
    model.backbone.set_kernels(kernels)


def compiled(options: Options, report: Report) -> None:
    """Measure the trunk with each block under ``torch.compile``, next to the same code without."""
    if not any(map(shutil.which, ("g++", "clang++", "c++"))):
        report.skip("torch.compile", "this machine has no C++ compiler, which it needs")
        return
    # one precision: a compilation takes a good part of the time there is
    precision = options.of("fp32", "bf16")
    for case, model, batches in openfold_models(options):
        blocks = list(model.backbone.blocks())
        for length, batch in batches.items():
            one = replace(case, length=length)
            for kernels in ("fast", "stock"):
                row = functools.partial(
                    compiled_row, model, one, batch, options=options, precision=precision,
                    kernels=kernels,
                )  # fmt: skip
                title = f"{case.mode}, {length} residues, {kernels}, {precision}"
                plain = report.attempt(title, functools.partial(row, blocks=(), reference=None))
                work = functools.partial(row, blocks=blocks, reference=plain.value)
                report.attempt(f"{title}, compiled", work)


def compiled_row(
    model: Any,
    case: Case,
    batch: Any,
    *,
    options: Options,
    precision: str,
    kernels: str,
    blocks: Sequence[Any],
    reference: float | None,
) -> dict[str, Any]:
    """Measure the trunk with some blocks compiled."""
    from torch._dynamo.exc import TorchDynamoException

    select_kernels(model, kernels, by_nvidia=False)
    for block in blocks:
        block.compile(dynamic=False)
    start = time.perf_counter()
    try:
        found = openfold_row(model, case, batch, None, options, precision=precision)
    except TorchDynamoException as error:  # not our code: it does not work with this torch
        cause = getattr(error, "inner_exception", error)
        raise CannotRunError(f"torch.compile: {first_line(cause)}") from error
    finally:
        for block in blocks:
            block._compiled_call_impl = None
    took = time.perf_counter() - start
    found = against(found, reference, LOSS_LIMIT["bf16"], "the same without")
    return {**found, "note": f"{found.get('note', '')} ({took:.0f} s with compilation)".strip()}


# --- a divided model, and int8 -------------------------------------------------------------------


def fsdp2(options: Options, report: Report) -> None:
    """Measure `molfun.parallel.sharded.Sharded` in a group of one process, next to a plain step.

    Nothing is divided there: the difference is what gathering blocks, copying gradients and hooks
    cost before any communication. Gains in memory need a second process.
    """
    from torch import distributed

    from molfun.testing.samples import sequences

    backend = "nccl" if options.device == "cuda" else "gloo"
    distributed.init_process_group(backend, store=distributed.HashStore(), rank=0, world_size=1)
    preset = options.of("esm2_tiny", peers.NAMES["150M"])
    length, n = options.of(32, 256), options.of(2, 32)
    features = features_of(preset, sequences(n, lengths=(length,)), options)
    half = () if options.device == "cpu" else ("bf16",)
    if not half:
        report.skip("bf16", "torch's layer norm on CPUs takes no bf16 weights with float32 input")
    for precision in ("fp32", *half):
        known: dict[str, float | None] = {}
        for way in ("alone", "molfun", "fsdp2"):

            def measure(
                way: str = way, precision: str = precision, known: dict[str, Any] = known
            ) -> dict[str, Any]:
                step = parallel.stepper(
                    way, preset, features, device=options.device, precision=FABRIC[precision],
                    cast=functools.partial(cast, options, precision),
                )  # fmt: skip
                found = timed(step, options, precision=precision)
                found["per_second"] = n * length / found["seconds"]
                return against(found, known.get("norm"), LOSS_LIMIT[precision], "alone")

            label = {"alone": "plain", "molfun": "replicated"}.get(way, way)
            row = report.attempt(f"{preset}, full step, {label}, {precision}", measure)
            known.setdefault("norm", row.value)
    distributed.destroy_process_group()


def features_of(preset: str, samples: Sequence[Any], options: Options) -> Any:
    """Return the features of samples on the device."""
    from molfun import MolfunStructureModel

    backbone = MolfunStructureModel(preset, device="cpu").backbone
    features = backbone.collate([backbone.featurize(sample) for sample in samples])
    return harness.moved(features, torch.device(options.device))


def int8(options: Options, report: Report) -> None:
    """Compare a LoRA step on a base in int8 with one in float32: memory, speed and loss."""
    size = options.of("tiny", "650M")
    texts = peers.sequences(options.of(4, 32), 0)
    for precision in ("fp32", "bf16"):
        known: dict[str, float | None] = {}
        for base in ("float32", "int8"):

            def measure(
                base: Any = base, precision: str = precision, known: dict[str, Any] = known
            ) -> dict[str, Any]:
                way = Way(base, functools.partial(peers.Molfun, base=base))
                peer = built(way, peers.source_of(size, options.device), "lora")
                found = esm2_row(peer, way, texts, options, train=True, precision=precision)
                kept = sum(_bytes(p) for p in peer.parameters()) / 1e6
                found = against(found, known.get("loss"), LOSS_LIMIT["tf32"], "float32")
                return {**found, "note": f"{found.get('note', '')} weights {kept:.0f} MB".strip()}

            row = report.attempt(f"{size}, LoRA step, {base} base, {precision}", measure)
            known.setdefault("loss", row.value)


def _bytes(parameter: torch.Tensor) -> int:
    """Return the memory of a weight: that of its integers if it is in int8."""
    held = getattr(parameter, "qdata", parameter)
    return held.numel() * held.element_size()


@dataclass(frozen=True)
class Part:
    """Function of a part, and the seconds that are kept for it."""

    run: Callable[[Options, Report], None]
    seconds: float


PARTS = {
    "gemm": Part(gemm, 25),
    "correctness": Part(correctness, 85),
    "esm2": Part(esm2, 125),
    "openfold": Part(openfold, 105),
    "fsdp2": Part(fsdp2, 35),
    "int8": Part(int8, 35),
    "compile": Part(compiled, 60),
}
"""Parts by name, in the order in which they run."""
