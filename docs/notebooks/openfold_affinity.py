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
# # Structures: affinity with OpenFold
#
# OpenFold (AlphaFold 2) has learned how residues see each other. A head on its representations predicts an
# affinity, and LoRA adapts its blocks to the task.
#
# All runs on a CPU in about a minute, with an architecture of two blocks on random weights
# (`config="tiny"`). For real results, use `config="model_1_ptm"` with
# `weights="~/.molfun/weights/finetuning_ptm_2.pt"`, and your own table and structures.

# %%
from molfun import (
    AffinityDataset,
    DataSplitter,
    HeadOnlyFinetune,
    LoRAFinetune,
    MolfunStructureModel,
)

# %% [markdown]
# ## Data
#
# `AffinityDataset.from_csv("data/pdbbind.csv", "data/pdbs/")` reads a table with the columns `pdb_id` and
# `affinity`, and the structures that are named after the ids. Here are synthetic ones.

# %%
data = AffinityDataset.synthetic(12, length=8)
train, val, test = DataSplitter.random(data, val_frac=0.2, test_frac=0.2, seed=0)
data.ids[:3], data.targets[:3]

# %% [markdown]
# Real complexes are split by similarity, so that the test set holds proteins unlike those of the training
# set: `DataSplitter.by_identity(data)`.
#
# ## Only a head


# %%
def new_model():
    return MolfunStructureModel("openfold", config="tiny", head="affinity", device="cpu")


model = new_model()
history = model.fit(train, val, strategy=HeadOnlyFinetune(), epochs=3)
print(history.cache_report)
history.to_pandas()[["epoch", "train_loss", "val_loss", "val/rmse"]]

# %% [markdown]
# The trunk ran once per structure: what is frozen is kept from the first epoch on.
#
# ## LoRA

# %%
model = new_model()
history = model.fit(
    train,
    val,
    strategy=LoRAFinetune(rank=4, ema_decay=0.9),
    epochs=2,
    output_dir="runs/affinity",
    overwrite=True,
)
print(model.summary())

# %%
{name: round(value, 3) for name, value in model.evaluate(test).items()}

# %% [markdown]
# `rmse` is in the units of the table. A run that is killed goes on with `resume=True`, bit by bit.
#
# ## Predict
#
# `merge` folds the adapters into the weights, which makes inference faster.

# %%
model = MolfunStructureModel.from_checkpoint("runs/affinity/checkpoint", device="cpu")
prediction = model.merge().predict(test)["prediction"]
dict(zip(test.ids, [round(value, 2) for value in prediction.tolist()], strict=True))
