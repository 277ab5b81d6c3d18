"""`Sharded`: the blocks of a backbone are divided among the processes (torch's FSDP2).

Each process holds a part of each weight of a block, of its gradient and of the optimizer's moments,
and the whole block only while it computes. What is outside of the blocks (embedders, heads) is
small, as are the vectors in them (biases, scales): each process has a copy, as in `Replicated`.
"""

from __future__ import annotations

import contextlib
import copy
import math
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import nn
from torch.distributed import _composable_state
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import (
    CPUOffloadPolicy,
    MixedPrecisionPolicy,
    OffloadPolicy,
    fully_shard,
)
from torch.distributed.tensor import DTensor
from torch.utils._pytree import tree_leaves

from molfun.errors import ConfigError
from molfun.nn.mapped import is_mapped, put_into, to_file
from molfun.parallel import parts
from molfun.parallel.base import Replicated
from molfun.parallel.parts import Place
from molfun.parallel.ranks import Ranks

T = TypeVar("T")


class _Root(nn.Module):
    """What FSDP2 takes for the model: it runs any function that calls the blocks."""

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(blocks)

    def forward(self, function: Callable[..., T], *args: Any) -> Callable[[], T]:
        result = function(*args)
        # hidden from FSDP2, which would add hooks for weights of the root, and it has none
        return lambda: result


@dataclass(eq=False)
class _Shard:
    """A weight of a block.

    Parameters
    ----------
    module, name
        Where it is.
    divided
        The weight as FSDP2 knows it.
    local
        The part of this process, in the same memory. Optimizer, moving average and clipping work
        on it as on any tensor.
    source
        The whole weight before, if it is part of a file (`molfun.nn.mapped`).
    """

    module: nn.Module
    name: str
    divided: DTensor
    local: nn.Parameter
    source: torch.Tensor | None = None

    def like(self, tensor: torch.Tensor) -> DTensor:
        """Return parts of something that has the weight's shape as one divided tensor."""
        whole = self.divided
        return DTensor.from_local(
            tensor.to(whole.device_mesh.device_type),
            whole.device_mesh,
            whole.placements,
            run_check=False,
            shape=whole.shape,
            stride=whole.stride(),
        )

    def part_of(self, tensor: torch.Tensor) -> torch.Tensor:
        """Return this process's part of something of the weight's shape; another is unchanged."""
        whole = self.divided
        if tensor.shape != whole.shape:
            return tensor
        size, index = whole.device_mesh.size(), whole.device_mesh.get_local_rank()
        chunks = tensor.chunk(size)  # as FSDP2 divides: rounded up, the last ones less or nothing
        return chunks[index] if index < len(chunks) else tensor[:0]

    def equals_source(self) -> bool:
        """Return whether this process's part is that of the file."""
        return self.source is not None and torch.equal(
            self.local.detach().cpu(), self.part_of(self.source)
        )

    def put_back(self, whole: torch.Tensor) -> nn.Parameter:
        """Put a whole weight into the module."""
        parameter = nn.Parameter(whole, requires_grad=self.divided.requires_grad)
        self.module._parameters[self.name] = parameter
        return parameter


class Sharded(Replicated):
    """The blocks of a backbone divided among processes.

    Parameters
    ----------
    ranks
        The processes that train together.
    device
        Device of the model.
    precision
        Fabric's name of the precision.
    offload
        Whether weights, gradients and moments wait in the memory of the host.

    References
    ----------
    Zhao et al. 2023, PyTorch FSDP: Experiences on Scaling Fully Sharded Data Parallel, VLDB.
    """

    in_step = True

    def __init__(
        self, ranks: Ranks, device: torch.device, precision: str, *, offload: bool = False
    ) -> None:
        super().__init__(ranks)
        self._device, self._offload = device, offload
        # sums in float32 of what autocast computes in bfloat16 anyway
        self._policy = MixedPrecisionPolicy(
            param_dtype=torch.bfloat16 if precision == "bf16-mixed" else None,
            reduce_dtype=torch.float32,
            cast_forward_inputs=False,
        )
        self._shards: list[_Shard] = []
        self._named: dict[str, _Shard] = {}
        self._numbered: dict[int, _Shard] = {}  # by their places in the optimizer
        self._undo: list[Callable[[], None]] = []
        self._root: nn.Module | None = None
        self._is_alone = False

    # --- the model -----------------------------------------------------------------------------

    def spread(
        self,
        blocks: Sequence[nn.Module],
        optimizer: torch.optim.Optimizer,
        parameters: Mapping[str, nn.Parameter],
    ) -> dict[str, nn.Parameter]:
        """Divide the blocks, and give the optimizer this process's part of their weights."""
        # PET's blocks do, and nothing changes these in place
        warnings.filterwarnings("ignore", message="FSDP2-wrapped module .* returned a view")
        mesh = init_device_mesh(self._device.type, (self.ranks.size,))
        of: dict[int, _Shard] = {}
        for block in blocks:
            of |= self._divided(block, mesh)
        self._root = _Root(blocks)
        fully_shard(self._root, mesh=mesh, ignored_params={*self._root.parameters()})
        self._shards = list(of.values())
        self._named = {name: of[id(p)] for name, p in parameters.items() if id(p) in of}
        number = 0
        for group in optimizer.param_groups:
            for i, parameter in enumerate(group["params"]):
                if id(parameter) in of:
                    self._numbered[number] = of[id(parameter)]
                    group["params"][i] = of[id(parameter)].local
                number += 1
        return {n: self._named[n].local if n in self._named else p for n, p in parameters.items()}

    def _divided(self, block: nn.Module, mesh: DeviceMesh) -> dict[int, _Shard]:
        """Divide a block, and return its weights by the identity of what they were before."""
        # biases and scales are small, and normalisations need theirs in float32: copies
        vectors = {p for p in block.parameters() if p.ndim < 2}
        before = [
            (module, name, id(parameter), parameter.data if is_mapped(parameter) else None)
            for module in block.modules()
            for name, parameter in module._parameters.items()
            if parameter is not None and parameter not in vectors
        ]
        self._undo.append(_undo_of(block))
        waits = CPUOffloadPolicy(pin_memory=self._device.type == "cuda")
        fully_shard(
            block,
            mesh=mesh,
            reshard_after_forward=True,
            mp_policy=self._policy,
            offload_policy=waits if self._offload else OffloadPolicy(),
            ignored_params=vectors,
        )
        # the sum, which is divided once by the labels of all; gloo has no other
        block.set_gradient_divide_factor(1.0)  # type: ignore[operator]  # it is an FSDPModule now
        block.set_force_sum_reduction_for_comms(True)  # type: ignore[operator]
        # before FSDP2's own, which waits for the other processes
        block.register_forward_pre_hook(self._refuse_one, prepend=True)
        return {key: _shard_of(module, name, source) for module, name, key, source in before}

    def _refuse_one(self, *_: Any) -> None:
        if self._is_alone:
            raise ConfigError(
                "A callback ran the model while its blocks are divided among processes, which "
                "only all of them together can. Do that after the training (on_fit_end), or train "
                "with parallel='ddp', a copy in each process."
            )

    @contextlib.contextmanager
    def in_one(self) -> Iterator[None]:
        """Refuse to run the blocks within a ``with`` block."""
        self._is_alone = True
        try:
            yield
        finally:
            self._is_alone = False

    def collect(self) -> None:
        """Give every process the whole weights, and plain modules."""
        # FSDP2 has no way back of its own
        for shard, whole in self._gathered():
            if shard.source is None:
                shard.put_back(whole.to(self._device))
            else:
                put_into(shard.put_back(whole), whole)
        for undo in self._undo:
            undo()
        self._shards, self._named, self._numbered = [], {}, {}
        self._undo, self._root = [], None

    @contextlib.contextmanager
    def whole(self) -> Iterator[None]:
        """Put the whole weights into the modules of the first process, on the CPU."""
        for shard, whole in self._gathered(first=True):
            if self.ranks.is_first:
                shard.put_back(whole.cpu())
        try:
            yield
        finally:
            for shard in self._shards:
                shard.module._parameters[shard.name] = shard.divided  # type: ignore[assignment]  # a parameter

    def _gathered(self, *, first: bool = False) -> Iterator[tuple[_Shard, torch.Tensor]]:
        """Return each weight as a whole, for the first process alone or for all of them.

        Of weights that were parts of a file none is held: one that did not change is as it was, and
        others go into temporary files.
        """
        kept = [float(shard.equals_source()) for shard in self._shards]
        if any(shard.source is not None for shard in self._shards):
            kept = self.ranks.add_up(kept, self._device)
        holds = self.ranks.is_first or not first
        for shard, equal in zip(self._shards, kept, strict=True):
            if shard.source is not None and equal == self.ranks.size:
                yield shard, shard.source
                continue
            whole = shard.divided.full_tensor().detach()
            yield shard, to_file(whole) if holds and shard.source is not None else whole

    def run(self, function: Callable[..., T], *args: Any) -> T:
        """Call a function that runs the model, with the blocks gathered one after the other."""
        assert self._root is not None
        result: Callable[[], T] = self._root(function, *args)
        return result()

    # --- batches -------------------------------------------------------------------------------

    def passes(self, n_own: int, n_all: int, *, last: bool) -> int | None:  # noqa: ARG002
        """Return those of the process with most batches: all gather each block together."""
        return -(-n_all // self.ranks.size)

    def take_part(self, outputs: Any, backward: Callable[[torch.Tensor], object]) -> None:
        """Run the backward pass of a sum over all outputs, times zero."""
        leaves = [t for t in tree_leaves(outputs) if isinstance(t, torch.Tensor)]
        sums = [t.sum() * 0 for t in leaves if t.requires_grad]
        if sums:
            backward(torch.stack(sums).sum())

    # --- weights and gradients -----------------------------------------------------------------

    def align(self, parameters: Iterable[nn.Parameter]) -> None:
        """Overwrite copies outside of the blocks with those of the first process."""
        super().align(self._copies(parameters))

    def begin(self, parameters: Sequence[nn.Parameter]) -> None:
        """Sum the gradients outside of the blocks; FSDP2 sums those of the blocks."""
        for shard in self._named.values():
            shard.divided.requires_grad_(shard.local.requires_grad)
        super().begin(self._copies(parameters))

    def add_up_gradients(self) -> None:
        """Wait for the sums, and take this process's part of those of the blocks."""
        super().add_up_gradients()
        for shard in self._shards:
            gradient, shard.divided.grad = shard.divided.grad, None
            shard.local.grad = gradient.to_local() if isinstance(gradient, DTensor) else None

    def put_back(
        self, gradients: Mapping[str, torch.Tensor], parameters: Mapping[str, nn.Parameter]
    ) -> None:
        """Take up the gradients, each process its part of those of the blocks."""
        for name in gradients.keys() & self._named.keys():
            shard = self._named[name]
            shard.divided.grad = shard.like(gradients[name].to(shard.local.device))
        copies = {n: g for n, g in gradients.items() if n not in self._named}
        super().put_back(copies, parameters)

    def clip(self, parameters: Sequence[nn.Parameter], limit: float | None) -> torch.Tensor:
        """Scale by the norm over all processes."""
        local = {id(shard.local) for shard in self._shards}
        both = [[p for p in parameters if (id(p) in local) is inside] for inside in (True, False)]
        squares = [
            float(nn.utils.get_total_norm([p.grad for p in some if p.grad is not None])) ** 2
            for some in both
        ]
        (divided,) = self.ranks.add_up(squares[:1], self._device)
        norm = torch.tensor(divided + squares[1]).sqrt()
        for some in both:
            nn.utils.clip_grads_with_norm_(some, limit or math.inf, norm)
        return norm

    def _copies(self, parameters: Iterable[nn.Parameter]) -> list[nn.Parameter]:
        local = {id(shard.local) for shard in self._shards}
        return [p for p in parameters if id(p) not in local]

    # --- files ---------------------------------------------------------------------------------

    def full(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Gather one weight after the other; the first process keeps them, on the CPU."""
        found = {}
        for name, tensor in tensors.items():
            if name in self._named:
                tensor = self._named[name].like(tensor).full_tensor().cpu()
            if self.ranks.is_first:
                found[name] = tensor
        return found

    def own(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Return the parts of this process."""
        return {
            name: self._named[name].part_of(tensor) if name in self._named else tensor
            for name, tensor in tensors.items()
        }

    def put_apart(self, content: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Write what is divided, each process its part."""

        def divided(place: Place, tensor: torch.Tensor) -> DTensor | None:
            shard = self._at(place)
            fits = shard is not None and tensor.ndim and tensor.shape == shard.local.shape
            return shard.like(tensor) if shard is not None and fits else None

        return parts.write(content, folder, divided, self.ranks)

    def put_together(self, content: dict[str, Any], folder: Path) -> dict[str, Any]:
        """Read the parts of this process, whatever the number of those that wrote them."""

        def empty(place: Place, like: torch.Tensor) -> torch.Tensor:
            shard = self._at(place)
            part = torch.empty(like.shape if shard is None else shard.local.shape, dtype=like.dtype)
            return part if shard is None else shard.like(part)

        def own(place: Place, tensor: torch.Tensor) -> torch.Tensor:
            shard = self._at(place)
            return tensor if shard is None else shard.part_of(tensor)

        # a state that processes with copies wrote holds whole tensors
        return parts.changed(parts.read(content, folder, empty), own)

    def _at(self, place: Place) -> _Shard | None:
        """Return the weight that a place in a state belongs to."""
        if place[:3] == ("progress", "optimizer", "state"):
            return self._numbered.get(place[3])
        return self._named.get(place[-1])


def _shard_of(module: nn.Module, name: str, source: torch.Tensor | None) -> _Shard:
    divided = module._parameters[name]
    assert isinstance(divided, DTensor)
    part = divided.to_local().detach()
    local = nn.Parameter(part, requires_grad=divided.requires_grad)
    return _Shard(module, name, divided, local, source)


def _undo_of(block: nn.Module) -> Callable[[], None]:
    """Return a function that makes a block a plain module again."""
    cls, names = type(block), set(vars(block))
    hooks = {name: copy.copy(value) for name, value in vars(block).items() if "_hooks" in name}

    def undo() -> None:
        block.__class__ = cls
        for name in set(vars(block)) - names:
            delattr(block, name)
        vars(block).update(hooks)
        for module in block.modules():
            for name in ("_is_fsdp_managed_module", "_fsdp_use_orig_params"):
                vars(module).pop(name, None)
        _composable_state._module_state_mapping.pop(block, None)

    return undo
