"""Frame-aligned point error and names of symmetric atoms, for the atoms and frames that exist.

openfold computes both over all 14 places of atoms and all 8 of frames, most of which are empty, and
turns points component by component. Here absent ones are left out and one matrix product turns the
rest: at 64 residues the loss of a structure takes a quarter of the time, at 256 a tenth of the
memory. The values are those of ``openfold.utils.loss`` (tested, 1e-6).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from molfun._shapes import Bool, Float

Tensors = Mapping[str, torch.Tensor]
EPSILON = 1e-10
"""Added to squared distances of atoms before their root, as in openfold."""


class Frames(NamedTuple):
    """Rigid transformations from local to global coordinates.

    Parameters
    ----------
    turn
        (..., frames, 3, 3) rotations.
    shift
        (..., frames, 3) origins in angstrom.
    """

    turn: torch.Tensor
    shift: torch.Tensor

    @classmethod
    def from_4x4(cls, matrices: torch.Tensor) -> Frames:
        """Return the frames of homogeneous matrices (..., frames, 4, 4)."""
        return cls(matrices[..., :3, :3], matrices[..., :3, 3])

    @classmethod
    def from_quaternions(cls, values: torch.Tensor) -> Frames:
        """Return the frames of (..., frames, 7): a quaternion, and an origin."""
        from openfold.utils.rigid_utils import Rigid

        rigid = Rigid.from_tensor_7(values)
        return cls(rigid.get_rots().get_rot_mats(), rigid.get_trans())

    def local(self, points: torch.Tensor) -> torch.Tensor:
        """Return points (..., points, 3) as each frame sees them: (..., frames, points, 3)."""
        seen: torch.Tensor = points.unsqueeze(-3) @ self.turn
        return seen - self.shift.unsqueeze(-2) @ self.turn

    def take(self, chosen: torch.Tensor) -> Frames:
        """Return the frames for which a mask is true."""
        return Frames(self.turn[..., chosen, :, :], self.shift[..., chosen, :])


def errors(
    frames: tuple[Frames, Frames], points: tuple[torch.Tensor, torch.Tensor], eps: float
) -> torch.Tensor:
    """Return the error of each point in each frame, (..., frames, points) in angstrom.

    Parameters
    ----------
    frames, points
        Of prediction and reference, those that exist.
    eps
        Added to squares before the root, so that an error of 0 has a gradient.

    References
    ----------
    Jumper et al. 2021, supplement, algorithm 28.
    """
    difference = frames[0].local(points[0]) - frames[1].local(points[1])
    return (difference.square().sum(-1) + eps).sqrt()


def mean(error: torch.Tensor, *, clamp: float | None, unit: float, eps: float) -> torch.Tensor:
    """Return the mean of errors (..., frames, points), clamped and in units of `unit`."""
    n_frames, n_points = error.shape[-2:]
    clamped = error if clamp is None else error.clamp(max=clamp)
    total: torch.Tensor = clamped.sum((-1, -2)) / unit
    return total / ((eps + n_frames) * (eps + n_points))


def backbone_loss(trajectory: torch.Tensor, batch: Tensors, settings: Any) -> torch.Tensor:
    """Return the mean backbone FAPE over all layers, as ``openfold.utils.loss.backbone_loss``.

    Parameters
    ----------
    trajectory
        (layers, 1, residues, 7) backbone frames of the structure module.
    batch
        From `molfun.backbones.openfold.losses.ground_truth`, with ``use_clamped_fape``.
    settings
        ``clamp_distance``, ``loss_unit_distance``.
    """
    known = batch["backbone_rigid_mask"][0] > 0
    true = Frames.from_4x4(batch["backbone_rigid_tensor"][0]).take(known)
    predicted = Frames.from_quaternions(trajectory[:, 0]).take(known)
    eps = float(settings.get("eps", 1e-4))
    error = errors((predicted, true), (predicted.shift, true.shift), eps)
    unit = float(settings.loss_unit_distance)
    clamped = mean(error, clamp=float(settings.clamp_distance), unit=unit, eps=eps)
    share = batch["use_clamped_fape"]
    whole = mean(error, clamp=None, unit=unit, eps=eps)
    return (clamped * share + whole * (1 - share)).mean()


def sidechain_loss(structure: Tensors, batch: Tensors, settings: Any) -> torch.Tensor:
    """Return the FAPE of all atoms in all frames, as ``openfold.utils.loss.sidechain_loss``.

    Parameters
    ----------
    structure
        Outputs of the structure module, ``sidechain_frames`` and ``positions``.
    batch
        From `ground_truth` and `renamed`.
    settings
        ``clamp_distance``, ``length_scale``.
    """
    frames = batch["rigidgroups_gt_exists"][0].flatten() > 0
    atoms = batch["renamed_atom14_gt_exists"][0].flatten() > 0
    better = batch["alt_naming_is_better"][0][:, None, None, None] > 0
    wanted = torch.where(
        better, batch["rigidgroups_alt_gt_frames"][0], batch["rigidgroups_gt_frames"][0]
    )
    predicted = Frames.from_4x4(structure["sidechain_frames"][-1, 0].flatten(0, 1)).take(frames)
    true = Frames.from_4x4(wanted.flatten(0, 1)).take(frames)
    places = structure["positions"][-1, 0].flatten(0, 1)[atoms]
    known = batch["renamed_atom14_gt_positions"][0].flatten(0, 1)[atoms]
    eps = float(settings.get("eps", 1e-4))
    error = errors((predicted, true), (places, known), eps)
    clamp, unit = float(settings.clamp_distance), float(settings.length_scale)
    return mean(error, clamp=clamp, unit=unit, eps=eps)


@torch.no_grad()
def renamed(batch: Tensors, positions: Float[torch.Tensor, "1 n 14 3"]) -> dict[str, torch.Tensor]:
    """Return the names of symmetric atoms that fit a prediction, as openfold's function.

    Parameters
    ----------
    batch
        From `molfun.backbones.openfold.losses.ground_truth`.
    positions
        Predicted atoms in angstrom.

    References
    ----------
    Jumper et al. 2021, supplement, algorithm 26.
    """
    exists, ambiguous = batch["atom14_gt_exists"][0] > 0, batch["atom14_atom_is_ambiguous"][0] > 0
    one, other = (batch[f"atom14_{kind}_positions"][0] for kind in ("gt", "alt_gt"))
    rows, fixed = exists & ambiguous, exists & ~ambiguous
    predicted = _distances(positions[0], rows, fixed)
    off = [_off(predicted, _distances(places, rows, fixed)) for places in (one, other)]
    residue = rows.nonzero()[:, 0]
    sums = [off[0].new_zeros(len(rows)).index_add(0, residue, values) for values in off]
    better = sums[1] < sums[0]
    alternative = {
        "positions": (batch["atom14_alt_gt_positions"], batch["atom14_gt_positions"]),
        "exists": (batch["atom14_alt_gt_exists"], batch["atom14_gt_exists"]),
    }
    return {
        "alt_naming_is_better": better[None].to(positions.dtype),
        "renamed_atom14_gt_positions": torch.where(
            better[None, :, None, None], *alternative["positions"]
        ),
        "renamed_atom14_gt_exists": torch.where(better[None, :, None], *alternative["exists"]),
    }


def _distances(
    places: Float[torch.Tensor, "n 14 3"],
    rows: Bool[torch.Tensor, "n 14"],
    columns: Bool[torch.Tensor, "n 14"],
) -> Float[torch.Tensor, "rows columns"]:
    square = (places[rows][:, None] - places[columns][None]).square().sum(-1)
    return (square + EPSILON).sqrt()


def _off(predicted: torch.Tensor, true: torch.Tensor) -> torch.Tensor:
    """Return how far the distances of each row are off, summed over its columns."""
    total: torch.Tensor = ((predicted - true).square() + EPSILON).sqrt().sum(-1)
    return total
