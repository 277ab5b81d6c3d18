# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3
#     language: python
#     name: python3
# ---

# %% [markdown]
# # Atoms: energies and forces with PET
#
# PET predicts the energy of a structure and, as its derivative, the force on every atom. Fine-tuning adapts a
# pretrained PET to the structures and the level of theory of your own calculations, with far fewer of them
# than training from nothing takes.
#
# All runs on a CPU in less than a minute. Two Morse potentials stand for a cheap and an expensive calculation, and
# a small PET that is trained here on the cheap one stands for the pretrained model. For real results, start from a
# checkpoint of metatrain: `MolfunStructureModel("pet", weights="pet-mad.ckpt", trust=True)`.

# %%
import numpy as np
import pandas as pd
from ase import Atoms
from ase.calculators.morse import MorsePotential

from molfun import AtomsDataset, DataSplitter, FullFinetune, LoRAFinetune, MolfunStructureModel

# %% [markdown]
# ## Data
#
# `fit` takes lists of `ase.Atoms` that carry energy and forces as results of a calculator, as ASE's readers give them;
# `AtomsDataset.from_files("train.xyz")` reads extended xyz. Here are distorted tetrahedra of four copper atoms:
# many with cheap labels, few with expensive ones.

# %%
tetrahedron = np.array([[0, 0, 0], [1, 1, 0], [1, 0, 1], [0, 1, 1]])


def clusters(number, seed, **potential):
    rng = np.random.default_rng(seed)
    structures = []
    for _ in range(number):
        positions = rng.uniform(1.65, 1.95) * tetrahedron + 0.05 * rng.normal(size=(4, 3))
        atoms = Atoms("Cu4", positions=positions, calculator=MorsePotential(**potential))
        atoms.get_forces()  # energy and forces stay in atoms.calc
        structures.append(atoms)
    return structures


cheap = clusters(48, seed=0, epsilon=0.5, r0=2.4, rho0=3.0)
expensive = AtomsDataset(clusters(32, seed=1, epsilon=0.6, r0=2.5, rho0=3.0))
train, val, test = DataSplitter.random(expensive, val_frac=0.25, test_frac=0.25, seed=0)
len(cheap), len(train), len(val), len(test)

# %% [markdown]
# ## A model to start from
#
# `config` chooses the size of a new PET and `atomic_types` its elements; with `weights=` both come from the file.

# %%
model = MolfunStructureModel(
    "pet",
    config={"d_pet": 16, "d_node": 32, "d_head": 16, "d_feedforward": 32, "num_heads": 2},
    backbone_config={"atomic_types": [29]},
    device="cpu",
)
model.fit(cheap, strategy=FullFinetune(lr=1e-2), epochs=12)
before = model.evaluate(test)
model.save("base")

# %% [markdown]
# ## Fine-tune with LoRA
#
# The expensive energies get a target of their own. It inherits the head of the cheap ones, and its zero of energy is
# fitted to the new labels. Adapters of low rank then train in each attention layer, together with the head.

# %%
model = MolfunStructureModel.from_checkpoint("base", device="cpu")
model.add_target("energy/expensive", inherit="energy")
history = model.fit(
    train,
    val,
    strategy=LoRAFinetune(rank=4, lr_lora=1e-2),
    epochs=12,
    output_dir="runs/pet",
    overwrite=True,
)
history.to_pandas()[["epoch", "train_loss", "val/energy_mae", "val/forces_mae"]].tail(3)

# %%
after = model.evaluate(test)
pd.DataFrame({"before": before, "after": after}).loc[["energy_mae", "forces_mae"]].round(1)

# %% [markdown]
# Errors are in meV per atom and meV per angstrom. One batch per epoch is enough to learn the energies of the other
# potential; forces need more structures and more epochs.
#
# ## Predict
#
# `merge` folds the adapters into the weights: what is left is a plain PET.

# %%
model = MolfunStructureModel.from_checkpoint("runs/pet/checkpoint", device="cpu").merge()
prediction = model.predict(clusters(2, seed=2))
print("energies in eV:", prediction["prediction"].tolist())
pd.DataFrame(prediction["forces"][0], columns=["x", "y", "z"])  # eV per angstrom, one row per atom

# %% [markdown]
# `molfun export runs/pet/checkpoint pet.pt` writes the file that ASE and LAMMPS run. [Atoms in detail](../atoms.md)
# has the options, among them how to keep the old target.
