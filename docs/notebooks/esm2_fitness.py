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
# # Sequences: fitness of variants with ESM-2
#
# A deep mutational scan measures how well variants of a protein work. Here a model learns the fitness of
# variants from their sequences and ranks variants it has not seen. Fine-tuning a pretrained model needs
# far fewer measurements than training one.
#
# All runs on a CPU in about a minute, with a small model on random weights. For real results, use
# `"esm2_t6_8M_UR50D"` with `weights="esm2_t6_8M_UR50D.pt"` in place of `"esm2_tiny"`.

# %%
import numpy as np
import pandas as pd

from molfun import (
    DataSplitter,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
    SequenceDataset,
)

# %% [markdown]
# ## Data
#
# One row per variant: the sequence and a number. This synthetic scan prefers hydrophobic residues at
# four positions; replace it by a table of yours.

# %%
rng = np.random.default_rng(0)
wild_type = "MTYKLILNGKTLKGETTTEA"
variants = {}
for _ in range(120):
    letters = list(wild_type)
    for position in (4, 8, 12, 16):
        letters[position] = rng.choice(list("ADEFGIKLMNSTVWY"))
    hydrophobic = sum(letters[i] in "FILMVWY" for i in (4, 8, 12, 16))
    variants["".join(letters)] = hydrophobic + 0.1 * rng.normal()
table = pd.DataFrame({"sequence": variants.keys(), "fitness": variants.values()})
table.to_csv("scan.csv", index=False)

data = SequenceDataset.from_csv("scan.csv", target_column="fitness")
train, val, test = DataSplitter.random(data, val_frac=0.2, test_frac=0.2, seed=0)
len(train), len(val), len(test)

# %% [markdown]
# ## Only a head
#
# The model stays as it is, and a small head learns on top of it. It is computed once per sequence, so
# epochs after the first cost almost nothing.

# %%
model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
history = model.fit(train, val, strategy=HeadOnlyFinetune(lr=1e-2), epochs=20)
head_only = model.evaluate(test)
{name: round(value, 3) for name, value in head_only.items()}

# %% [markdown]
# ## LoRA
#
# Adapters of low rank inside of the model train along. `history.best` is the epoch whose weights are kept.

# %%
model = MolfunStructureModel("esm2_tiny", head="regression", device="cpu")
strategy = LoRAFinetune(rank=4, lr_lora=1e-2, lr_head=1e-2)
history = model.fit(
    train, val, strategy=strategy, epochs=10, output_dir="runs/scan", overwrite=True
)
history.to_pandas()[["epoch", "train_loss", "val_loss", "val/spearman"]].tail(3)

# %%
scores = model.evaluate(test, bootstrap=200)
{name: round(value, 3) for name, value in scores.items()}

# %% [markdown]
# Spearman's correlation says if variants are ranked rightly; its interval, from samples drawn again with
# replacement, says how much of it may be chance.
#
# ## Rank new variants
#
# The checkpoint in `runs/scan/checkpoint` is all that is needed.

# %%
model = MolfunStructureModel.from_checkpoint("runs/scan/checkpoint", device="cpu")
candidates = ["MTYKFILNFKTLFGETFTEA", "MTYKDILNDKTLDGETDTEA"]
prediction = model.predict(candidates)["prediction"]
pd.DataFrame({"sequence": candidates, "fitness": prediction.tolist()})
