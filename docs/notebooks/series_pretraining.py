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
# # Time series: pre-train without labels, fine-tune with few
#
# Observables along molecular-dynamics trajectories are easy to record and expensive to label. An encoder first
# learns from all of them by filling in values that are hidden from it; then fewer labels
# may be enough for a classifier on top of it.
#
# All runs on a CPU in less than a minute, on simulated trajectories. Replace them by your own with
# `TimeSeriesDataset.from_csv`, `from_arrays` or `from_trajectories`.

# %%
import pandas as pd

from molfun import FullFinetune, GradualFinetune, HeadOnlyFinetune, MolfunStructureModel
from molfun.data import double_well

# %% [markdown]
# ## Data
#
# A particle hops between two wells and is seen through four noisy observables, of which a tenth is missing. The
# label says if the barrier between the wells is low or high. Missing values are NaN; nothing fills them in.

# %%
data = double_well(n_series=120, n_frames=(40, 60), seed=0, target="barrier_class")
train, val, test = data.split(val_frac=0.2, test_frac=0.3, seed=0)
labelled = train.subset(range(24))
len(train), len(labelled), len(val), len(test), data.n_features

# %% [markdown]
# ## Pre-train on all series
#
# `objective="mae"` hides values and predicts them from the rest. The labels are not looked at.

# %%
encoder = {
    "name": "transformer",
    "d_input": data.n_features,
    "d_model": 32,
    "n_heads": 2,
    "n_layers": 2,
}
model = MolfunStructureModel("timeseries", config=encoder, head="binary", device="cpu")
history = model.pretrain(
    train, val, objective="mae", epochs=8, output_dir="runs/series", overwrite=True
)
history.to_pandas()[["epoch", "train_loss", "val_loss"]].tail(3)

# %% [markdown]
# ## Fine-tune on 24 labels
#
# `weights.safetensors` holds the encoder with its settings and the scale of the features. For the first epochs only
# the head trains; then the encoder trains as well.


# %%
def pretrained():
    weights = "runs/series/weights.safetensors"
    return MolfunStructureModel("timeseries", weights=weights, head="binary", device="cpu")


model = pretrained()
strategy = GradualFinetune(inner=FullFinetune(lr=1e-3), unfreeze_epoch=5)
model.fit(labelled, val, strategy=strategy, epochs=10, output_dir="runs/few", overwrite=True)
gradual = model.evaluate(test)

# %% [markdown]
# Does it pay? Compare it with the frozen encoder and with an encoder that starts from random weights.

# %%
frozen = pretrained()
frozen.fit(labelled, val, strategy=HeadOnlyFinetune(lr=1e-2), epochs=10)
scratch = MolfunStructureModel("timeseries", config=encoder, head="binary", device="cpu")
scratch.fit(labelled, val, strategy=FullFinetune(lr=1e-3), epochs=10)
results = {
    "pre-trained, gradual": gradual,
    "pre-trained, frozen": frozen.evaluate(test),
    "random weights": scratch.evaluate(test),
}
pd.DataFrame(results).T[["accuracy", "auroc"]].round(2)

# %% [markdown]
# On simulated data as simple as this, all three come out the same within chance: a few of 36 series are no difference.
# `model.evaluate(test, bootstrap=1000)` adds intervals, and `benchmarks/series_transfer.py` compares on your own files,
# with several seeds.
#
# ## Predict

# %%
model = MolfunStructureModel.from_checkpoint("runs/few/checkpoint", device="cpu")
new = double_well(n_series=3, n_frames=50, seed=1, target="barrier_class")
prediction = model.predict(new)
list(zip(prediction["prediction"], new.targets, strict=True))
