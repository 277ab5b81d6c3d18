"""The one forward pass: what heads read, and what is said of an output that is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from molfun import (
    AffinityDataset,
    FullFinetune,
    HeadOnlyFinetune,
    MolfunStructureModel,
    SequenceDataset,
)
from molfun.backbones.base import Features
from molfun.backbones.esm2 import ESM2Backbone
from molfun.errors import ConfigError, DataError
from molfun.registry import BACKBONES
from molfun.sample import Sample
from molfun.training.forward import ForwardPass, run_now
from molfun.training.inputs import Inputs
from molfun.trunk import TrunkOutput

SEQUENCES = ["MKVLAAG", "GG", "ACDEFGHIKL", "PQRST"]
CPU = torch.device("cpu")


class OnlySingle(ESM2Backbone):
    """Gives one vector per residue, whatever is asked for."""

    def forward(
        self, batch: Features, *, outputs: Sequence[str] = ("single",), layer: int = -1
    ) -> TrunkOutput:
        del outputs
        return super().forward(batch, layer=layer).select(("single",))


@pytest.fixture(autouse=True)
def _registered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BACKBONES._entries, "only_single", OnlySingle)


def model(**settings: Any) -> MolfunStructureModel:
    tiny = {"config": "esm2_tiny", "head": "mlp", "device": "cpu"}
    return MolfunStructureModel("only_single", **{**tiny, **settings})


def inputs() -> Inputs:
    return Inputs.of([Sample(id=s, sequence=s) for s in SEQUENCES])


def test_a_mean_is_pooled_where_the_backbone_gives_none() -> None:
    own, pooled = ESM2Backbone("esm2_tiny").eval(), OnlySingle("esm2_tiny").eval()
    run = {name: ForwardPass(b, ("mean",), device=CPU) for name, b in (("own", own), ("p", pooled))}
    with torch.no_grad():
        found = run["p"].whole(inputs())
        assert torch.allclose(found.need("mean"), run["own"].whole(inputs()).need("mean"))
    assert found.given == ("mean",)


@pytest.mark.parametrize("strategy", [HeadOnlyFinetune(), FullFinetune()], ids=lambda s: s.name)
def test_every_verb_works_without_a_mean_of_the_backbone(strategy: Any) -> None:
    data = SequenceDataset.from_list([(s, float(i)) for i, s in enumerate(SEQUENCES)])
    fitted = model()
    fitted.fit(data, data, strategy=strategy, epochs=1)
    many = fitted.predict(data)["prediction"]
    one = fitted.predict([Sample(id="s", sequence=SEQUENCES[0])])
    assert torch.allclose(one["prediction"], many[:1])
    means = fitted.embed(SEQUENCES, pooling="mean")
    assert np.allclose(means[0], one["trunk"].single[0].numpy().mean(0), atol=1e-6)
    assert fitted.evaluate(data)["loss"] >= 0


@pytest.mark.parametrize("verb", ["fit", "predict", "predict one"])
def test_a_missing_output_names_backbone_head_and_cure(verb: str) -> None:
    reads_cls = model(head_config={"pooling": "cls"})
    data = SequenceDataset.from_list([("MKV", 1.0), ("GG", 2.0)])
    who = "predict with the head" if verb == "predict one" else "the head"
    text = (
        rf"^ESM-2 gives no 'cls', which {who} MLPHead reads\. Choose another head, pooling or "
        r"output, or let OnlySingle\.forward give it \(it gave single\)\.$"
    )
    given = [data[0]] if verb == "predict one" else data
    with pytest.raises(ConfigError, match=text):
        getattr(reads_cls, verb.split()[0])(given)


def test_an_output_that_predict_is_asked_for_is_missed_by_name() -> None:
    text = r"OpenFold gives no 'cls', which predict reads\. .* \(it gave single\)"
    bare = MolfunStructureModel("openfold", config="tiny", device="cpu")
    with pytest.raises(ConfigError, match=text):
        bare.predict([AffinityDataset.synthetic(1, length=5)[0]], outputs=("cls",))


@pytest.mark.parametrize("verb", ["fit", "pretrain", "predict", "embed"])
def test_a_sample_that_featurize_did_not_expect_is_named(
    verb: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def featurize(self: Any, sample: Sample) -> Any:
        return {"x": "ACDEFGHIKL".index(sample.sequence[0])}  # type: ignore[index]

    monkeypatch.setattr(OnlySingle, "featurize", featurize)
    data = SequenceDataset.from_list([("WMKV", 1.0), ("WGG", 2.0)])
    text = (
        r"^seq_[12] cannot be made into an input of ESM-2: ValueError: substring not found\. "
        r"OnlySingle\.check can refuse such samples before a run starts\.$"
    )
    with pytest.raises(DataError, match=text):
        getattr(model(), verb)(data)


def test_need_says_what_there_is() -> None:
    output = TrunkOutput(mask=torch.ones(1, 2), single=torch.ones(1, 2, 3))
    assert output.need("mean").tolist() == [[1.0, 1.0, 1.0]]
    with pytest.raises(ConfigError, match=r"'pair' was not computed \(there is single\): list it"):
        output.need("pair")


def test_a_look_at_the_model_of_now_changes_no_mode() -> None:
    backbone = ESM2Backbone("esm2_tiny").train()
    backbone.blocks()[0].eval()
    modes = [m.training for m in backbone.modules()]
    found = run_now(backbone, inputs().samples, ("mean",))
    assert not found.need("mean").requires_grad
    assert [m.training for m in backbone.modules()] == modes
