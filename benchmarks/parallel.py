"""Sum gradients over two processes: ours next to the reducer of torch's DDP, and FSDP2.

Two processes (gloo, on this machine) hold the same ESM-2 and run forward and backward passes of
their own batches. "alone" sends nothing and is the floor (its gradient is that of one process);
"ddp" is torch's wrapper; "molfun" is `molfun.parallel.gradients.GradientSum`, which a fit with
copies uses; "fsdp2" divides the blocks, as a fit with ``parallel="fsdp2"`` does. All take turns in
every round. The table shows the median wall seconds per step of the slower process, its ratio to
DDP, and the norm of the summed gradient.

    python benchmarks/parallel.py
    python benchmarks/parallel.py --quick
"""

from __future__ import annotations

import argparse
import logging
import os
import socket
import statistics
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from harness import gemm_peaks
from torch import distributed, multiprocessing, nn
from torch.nn.parallel import DistributedDataParallel

WAYS = ("alone", "ddp", "molfun", "fsdp2")
SIZE = 2


def stepper(
    way: str,
    preset: str,
    batch: Any,
    *,
    device: str = "cpu",
    precision: str = "32-true",
    cast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> Callable[[], float]:
    """Return a function that runs forward and backward once and gives the norm of the gradient."""
    from molfun import MolfunStructureModel
    from molfun.parallel.base import Parallel, Replicated
    from molfun.parallel.ranks import Ranks
    from molfun.parallel.sharded import Sharded

    size = distributed.get_world_size()
    ranks = Ranks(distributed.get_rank(), size)
    model = MolfunStructureModel(preset, device=device).backbone.train()
    loss_of(model, batch).backward()
    parameters = {n: p for n, p in model.named_parameters() if p.grad is not None}
    for parameter in model.parameters():  # what no loss reaches; DDP would wait for it
        parameter.requires_grad_(parameter.grad is not None)
        parameter.grad = None
    parallel = {
        "alone": Parallel(ranks),
        "ddp": Parallel(ranks),
        "molfun": Replicated(ranks),
        "fsdp2": Sharded(ranks, torch.device(device), precision),
    }[way]
    optimizer = torch.optim.SGD(list(parameters.values()), lr=0.0)
    trained = parallel.spread(model.blocks(), optimizer, parameters)
    parallel.begin(list(trained.values()))
    called: nn.Module = DistributedDataParallel(model) if way == "ddp" else model

    def step() -> float:
        with cast():
            loss = parallel.run(loss_of, called, batch)
        parallel.last_backward()
        loss.backward()
        parallel.add_up_gradients()
        norm = float(parallel.clip(list(trained.values()), None))
        optimizer.zero_grad(set_to_none=True)
        # DDP gives the mean over processes, ours the sum
        return norm * (size if way == "ddp" else 1)

    return step


def loss_of(model: nn.Module, batch: Any) -> torch.Tensor:
    """Return a loss that depends on all weights of the trunk."""
    total: torch.Tensor = model(batch).single.square().sum()
    return total


def work(rank: int, port: int, options: argparse.Namespace, pipe: Any) -> None:
    """Run all variants in turns in one process, and send the seconds of each step."""
    logging.disable(logging.WARNING)
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo", rank=rank, world_size=SIZE)
    from molfun import MolfunStructureModel
    from molfun.sample import Sample

    draw = torch.Generator().manual_seed(rank)
    letters = [
        "".join(
            "ACDEFGHIKLMNPQRSTVWY"[i] for i in torch.randint(20, (options.length,), generator=draw)
        )
        for _ in range(options.batch)
    ]
    backbone = MolfunStructureModel(options.preset, device="cpu").backbone
    samples = [Sample(id=str(i), sequence=text) for i, text in enumerate(letters)]
    batch = backbone.collate([backbone.featurize(sample) for sample in samples])
    steps = {way: stepper(way, options.preset, batch) for way in WAYS}
    norms = {way: step() for way, step in steps.items()}  # the second window overlaps
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, step in steps.items():
            distributed.barrier()
            start = time.perf_counter()
            for _ in range(options.steps):
                norms[way] = step()
            seconds[way].append((time.perf_counter() - start) / options.steps)
    pipe.send((seconds, norms))
    distributed.barrier()
    distributed.destroy_process_group()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="esm2_t6_8M_UR50D")
    parser.add_argument("--length", type=int, default=128)
    parser.add_argument("--batch", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--quick", action="store_true")
    options = parser.parse_args()
    if options.quick:
        options.preset, options.rounds, options.steps, options.length = "esm2_tiny", 2, 1, 32
    spawn = multiprocessing.get_context("spawn")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    pipes = [spawn.Pipe() for _ in range(SIZE)]
    workers = [
        spawn.Process(target=work, args=(rank, port, options, pipes[rank][1]))
        for rank in range(SIZE)
    ]
    for worker in workers:
        worker.start()
    found = [pipe.recv() for pipe, _ in pipes]
    for worker in workers:
        worker.join()
    peaks = "  ".join(f"{name} {rate:.0f}" for name, rate in gemm_peaks(1).items())
    print(
        f"{options.preset}, {options.batch} x {options.length} residues per process, "
        f"{SIZE} processes of one thread"
    )
    print(f"products in GFLOP/s: {peaks}")
    print(f"{'way':<10}{'s/step':>10}{'of ddp':>10}{'norm':>14}")
    slower = {
        way: [max(pair) for pair in zip(*(seconds[way] for seconds, _ in found), strict=True)]
        for way in WAYS
    }
    for way in WAYS:
        # in pairs, as the machine may slow down between two rounds
        ratio = statistics.median(a / b for a, b in zip(slower[way], slower["ddp"], strict=True))
        print(
            f"{way:<10}{statistics.median(slower[way]):>10.4f}{ratio:>10.2f}"
            f"{found[0][1][way]:>14.4f}"
        )


if __name__ == "__main__":
    main()
