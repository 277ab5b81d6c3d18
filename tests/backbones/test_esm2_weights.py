"""ESM-2 weights in every layout they are published in, on files made here."""

from __future__ import annotations

import json
import logging
from argparse import Namespace
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from molfun import MolfunStructureModel
from molfun.backbones.esm2 import ESM2Backbone
from molfun.errors import CheckpointError, ConfigError, UnsafeFileError
from molfun.nn import kernels
from molfun.sample import Sample

CONFIG = "esm2_tiny"
SAMPLE = Sample(id="s", sequence="MKT<mask>AYIAKQR")


@pytest.fixture(scope="module")
def source() -> ESM2Backbone:
    """Weights to write, none of them trivial."""
    backbone = ESM2Backbone(CONFIG, seed=7).eval()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in backbone.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
        for layer in backbone.model.layers:  # a checkpoint may hold rounded frequencies
            layer.self_attn.rot_emb.inv_freq.copy_(layer.self_attn.rot_emb.inv_freq.half().float())
    return backbone


def representation(backbone: ESM2Backbone) -> torch.Tensor:
    with torch.no_grad():
        output = backbone.eval()(backbone.collate([backbone.featurize(SAMPLE)]))
    return output.single  # type: ignore[no-any-return]  # modules are untyped


def fair_state(source: ESM2Backbone) -> dict[str, torch.Tensor]:
    """Names of Meta's files."""
    names = {}
    for name, tensor in source.model.state_dict().items():
        prefix = "encoder." if name.startswith("lm_head") else "encoder.sentence_encoder."
        names[prefix + name] = tensor.clone()
    return names


def save_fair(path: Path, source: ESM2Backbone, *, contacts: bool = True) -> Path:
    """A file in the layout of Meta's: settings as a Namespace, contacts in a file beside it."""
    size = source.config
    settings = Namespace(
        encoder_layers=size.num_layers,
        encoder_embed_dim=size.embed_dim,
        encoder_attention_heads=size.attention_heads,
        token_dropout=True,
    )
    state = fair_state(source)
    head = {k.split(".", 2)[2]: state.pop(k) for k in list(state) if "contact_head" in k}
    torch.save({"cfg": {"model": settings}, "model": state}, path)
    if contacts:
        torch.save({"model": head}, path.with_name(path.stem + "-contact-regression.pt"))
    return path


def hugging_face(source: ESM2Backbone) -> Any:
    """transformers' own class with the same weights."""
    transformers = pytest.importorskip("transformers")
    size = source.config
    config = transformers.EsmConfig(
        vocab_size=33, mask_token_id=32, pad_token_id=1, hidden_size=size.embed_dim,
        num_hidden_layers=size.num_layers, num_attention_heads=size.attention_heads,
        intermediate_size=4 * size.embed_dim, position_embedding_type="rotary",
        token_dropout=True, emb_layer_norm_before=False, hidden_dropout_prob=0.0,
        attention_probs_dropout_prob=0.0, layer_norm_eps=1e-5,
    )  # fmt: skip
    model = transformers.EsmForMaskedLM(config).eval()
    spelling = [
        ("layers.", "esm.encoder.layer."),
        ("self_attn.q_proj", "attention.self.query"),
        ("self_attn.k_proj", "attention.self.key"),
        ("self_attn.v_proj", "attention.self.value"),
        ("self_attn.out_proj", "attention.output.dense"),
        ("self_attn_layer_norm", "attention.LayerNorm"),
        ("final_layer_norm", "LayerNorm"),
        ("fc1", "intermediate.dense"),
        ("fc2", "output.dense"),
        ("embed_tokens", "esm.embeddings.word_embeddings"),
        ("emb_layer_norm_after", "esm.encoder.emb_layer_norm_after"),
        ("contact_head", "esm.contact_head"),
        ("lm_head.weight", "lm_head.decoder.weight"),
    ]
    state = {}
    for name, tensor in source.model.state_dict().items():
        theirs = name
        for ours, there in spelling:
            theirs = theirs.replace(ours, there)
        state["esm.rotary_embeddings.inv_freq" if "inv_freq" in name else theirs] = tensor
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert not unexpected
    assert not [n for n in missing if "position_ids" not in n]
    return model


def assert_same(loaded: ESM2Backbone, source: ESM2Backbone) -> None:
    for name, tensor in source.model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name
    assert torch.equal(representation(loaded), representation(source))


# --- Meta ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["esm2_tiny.pt", "renamed by a user.pt"])
def test_meta_s_files_under_any_name(source: ESM2Backbone, tmp_path: Path, name: str) -> None:
    assert_same(ESM2Backbone(CONFIG, weights=save_fair(tmp_path / name, source)), source)


def test_without_the_contact_file(
    source: ESM2Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = save_fair(tmp_path / "esm2.pt", source, contacts=False)
    loaded = ESM2Backbone(CONFIG, weights=path)
    assert torch.equal(representation(loaded), representation(source))
    (message,) = caplog.messages
    assert message.startswith(f"{path} has no weights for contact_head: masked-residue or contact")


def test_plain_state_dicts_and_safetensors(source: ESM2Backbone, tmp_path: Path) -> None:
    state = source.model.state_dict()
    torch.save(state, tmp_path / "plain.pt")
    assert_same(ESM2Backbone(CONFIG, weights=tmp_path / "plain.pt"), source)
    save_file({k: v.clone() for k, v in state.items()}, tmp_path / "plain.safetensors")
    assert_same(ESM2Backbone(CONFIG, weights=tmp_path / "plain.safetensors"), source)


def test_half_precision_files_are_read_as_float32(source: ESM2Backbone, tmp_path: Path) -> None:
    state = {k: v.half() for k, v in source.model.state_dict().items()}
    save_file(state, tmp_path / "half.safetensors")
    loaded = ESM2Backbone(CONFIG, weights=tmp_path / "half.safetensors")
    assert {p.dtype for p in loaded.parameters()} == {torch.float32}
    assert torch.allclose(representation(loaded), representation(source), atol=0.05)


def test_code_in_a_file_is_not_run(tmp_path: Path) -> None:
    class Evil:
        def __reduce__(self) -> Any:
            return (exec, (f"open({str(tmp_path / 'ran')!r}, 'w')",))

    torch.save({"model": {"w": torch.zeros(1)}, "args": Evil()}, tmp_path / "esm2.pt")
    with pytest.raises(UnsafeFileError, match="holds more than tensors and plain values"):
        ESM2Backbone(CONFIG, weights=tmp_path / "esm2.pt")
    assert not (tmp_path / "ran").exists()


# --- Hugging Face --------------------------------------------------------------------------------


@torch.no_grad()
def test_a_hugging_face_folder(source: ESM2Backbone, tmp_path: Path) -> None:
    """As transformers writes it, and the same numbers as transformers gives."""
    model = hugging_face(source)
    model.save_pretrained(tmp_path)
    loaded = ESM2Backbone(CONFIG, weights=tmp_path)
    assert_same(loaded, source)
    assert_same(ESM2Backbone(CONFIG, weights=tmp_path / "model.safetensors"), source)
    tokens = torch.tensor([[0, 20, 15, 32, 11, 2, 1, 1], [0, 5, 10, 17, 13, 15, 15, 2]])
    theirs = model.esm(tokens, attention_mask=(tokens != 1).long()).last_hidden_state
    ours = loaded.eval()({"tokens": tokens})
    assert torch.allclose(ours.single[0, :4], theirs[0, 1:5], rtol=0, atol=1e-5)
    assert torch.allclose(ours.single[1], theirs[1, 1:7], rtol=0, atol=1e-5)


def test_sharded_folders_and_pickled_ones(source: ESM2Backbone, tmp_path: Path) -> None:
    state = {f"esm.{n}": t for n, t in hugging_face(source).esm.state_dict().items()}
    names = sorted(state)
    shards = {"a.safetensors": names[::2], "b.safetensors": names[1::2]}
    for file, part in shards.items():
        save_file({n: state[n].clone() for n in part}, tmp_path / file)
    index = {"weight_map": {n: f for f, part in shards.items() for n in part}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    loaded = ESM2Backbone(CONFIG, weights=tmp_path)
    assert torch.equal(representation(loaded), representation(source))
    other = tmp_path / "bin"
    other.mkdir()
    torch.save(state, other / "pytorch_model.bin")
    loaded = ESM2Backbone(CONFIG, weights=other)
    assert torch.equal(representation(loaded), representation(source))


@pytest.mark.parametrize("spelling", ["attention.self.qkv", "self_attn.in_proj"])
def test_fused_projections(source: ESM2Backbone, tmp_path: Path, spelling: str) -> None:
    state = {k: v.clone() for k, v in source.model.state_dict().items()}
    fused = {}
    for i in range(source.config.num_layers):
        for leaf in ("weight", "bias"):
            parts = [state.pop(f"layers.{i}.self_attn.{p}_proj.{leaf}") for p in "qkv"]
            joint = "_" if spelling.endswith("in_proj") else "."
            fused[f"layers.{i}.{spelling}{joint}{leaf}"] = torch.cat(parts)
    save_file({**state, **fused}, tmp_path / "fused.safetensors")
    assert_same(ESM2Backbone(CONFIG, weights=tmp_path / "fused.safetensors"), source)


def test_settings_of_another_model_are_refused(source: ESM2Backbone, tmp_path: Path) -> None:
    hugging_face(source).save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "config.json").read_text())
    settings |= {"num_attention_heads": 2, "token_dropout": False}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError) as caught:
        ESM2Backbone(CONFIG, weights=tmp_path)
    assert "num_attention_heads: 2 there, 4 in this model" in str(caught.value)
    assert "token_dropout: False there, True in this model" in str(caught.value)


def test_an_output_embedding_of_its_own_is_said(
    source: ESM2Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = source.model.state_dict()
    state = broken(state, **{"lm_head.weight": state["lm_head.weight"] + 1})
    save_file(state, tmp_path / "w.safetensors")
    assert_same(ESM2Backbone(CONFIG, weights=tmp_path / "w.safetensors"), source)
    assert "has an output embedding of its own" in caplog.text


# --- what does not fit ---------------------------------------------------------------------------


def broken(state: Mapping[str, torch.Tensor], **changes: Any) -> dict[str, torch.Tensor]:
    return {k: v.clone() for k, v in {**state, **changes}.items() if v is not None}


def test_missing_weights_are_listed(source: ESM2Backbone, tmp_path: Path) -> None:
    state = broken(source.model.state_dict(), **{"layers.1.fc1.weight": None})
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        ESM2Backbone(CONFIG, weights=tmp_path / "w.safetensors")
    assert "does not fit this ESM-2 (2 blocks, width 32): 1 weights missing" in str(caught.value)
    assert "layers.1.fc1.weight" in str(caught.value)


def test_another_size_is_named(tmp_path: Path) -> None:
    big = ESM2Backbone("esm2_t6_8M_UR50D")
    save_file({k: v.clone() for k, v in big.model.state_dict().items()}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError) as caught:
        ESM2Backbone(CONFIG, weights=tmp_path / "w.safetensors")
    assert "The file is of the size 'esm2_t6_8M_UR50D': use that as the backbone." in str(
        caught.value
    )


def test_weights_without_a_place_are_told(
    source: ESM2Backbone, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = broken(source.model.state_dict(), **{"classifier.weight": torch.zeros(2)})
    save_file(state, tmp_path / "w.safetensors")
    with caplog.at_level(logging.WARNING):
        assert_same(ESM2Backbone(CONFIG, weights=tmp_path / "w.safetensors"), source)
    assert "1 weights have no place in ESM-2 and are left out:\n  classifier.weight" in caplog.text


@pytest.mark.parametrize(
    ("content", "text"),
    [
        (None, "No such file"),
        (b"", "is damaged or not a torch file"),
        (b"junk" * 100, "is damaged or not a torch file"),
    ],
)
def test_a_file_that_is_none(tmp_path: Path, content: bytes | None, text: str) -> None:
    path = tmp_path / "esm2.pt"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(CheckpointError, match=text):
        ESM2Backbone(CONFIG, weights=path)


def test_a_folder_without_weights(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(CheckpointError, match=r"holds neither model.safetensors nor .*notes.txt"):
        ESM2Backbone(CONFIG, weights=tmp_path)


def test_another_architecture_is_no_esm2(tmp_path: Path) -> None:
    save_file({"conv.weight": torch.zeros(2, 2)}, tmp_path / "w.safetensors")
    with pytest.raises(CheckpointError, match="It holds no ESM-2: expected embed_tokens and layer"):
        ESM2Backbone(CONFIG, weights=tmp_path / "w.safetensors")


# --- through the facade --------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["head_only", "lora", "partial", "full"])
def test_checkpoints_hold_what_changed(source: ESM2Backbone, tmp_path: Path, strategy: str) -> None:
    from molfun import FinetuneStrategy, SequenceDataset

    data = SequenceDataset.from_list([("MKVA", 1.0), ("ACDEFGH", 2.0), ("GG", 3.0)])
    weights = save_fair(tmp_path / "w.pt", source)
    options = {"unfreeze_last_n": 1} if strategy == "partial" else {}
    model = MolfunStructureModel("esm2_tiny", weights=weights, head="regression", device="cpu")
    chosen = FinetuneStrategy.from_dict({"name": strategy, **options})
    model.fit(data, strategy=chosen, epochs=2, output_dir=tmp_path / "run")
    again = MolfunStructureModel.from_checkpoint(tmp_path / "run" / "checkpoint", device="cpu")
    expected = model.predict(data)["prediction"]
    assert torch.equal(again.predict(data)["prediction"], expected)
    trunk = tmp_path / "run" / "checkpoint" / "trunk.safetensors"
    names = set(load_file(trunk)) if trunk.exists() else set()
    if strategy in ("head_only", "lora"):
        assert not names
    elif strategy == "partial":
        assert names
        assert all(".layers.1." in n or "emb_layer_norm_after" in n for n in names)
    else:
        assert "model.embed_tokens.weight" in names
        assert "model.lm_head.weight" not in names, "the output embedding is the input embedding"


@torch.no_grad()
def test_contacts_are_those_of_fair_esm(source: ESM2Backbone, tmp_path: Path) -> None:
    """The published regression on attention maps becomes the contact head."""
    sequences = ["MKTAYIAKQRDLV", "ACDEF", "GGSGWYHILMNPQ"]
    converter = source.model.alphabet.get_batch_converter()
    tokens = converter([(s, s) for s in sequences])[2]
    expected = source.model.eval().predict_contacts(tokens)
    weights = save_fair(tmp_path / "w.pt", source)
    model = MolfunStructureModel("esm2_tiny", weights=weights, head="contact", device="cpu")
    samples = [Sample(id=s, sequence=s) for s in sequences]
    for batch in (samples, samples[1:2]):
        found = model.predict(batch)["prediction"]
        for sample, contacts in zip(batch, found, strict=True):
            n = len(sample.sequence or "")
            row = expected[samples.index(sample), :n, :n]
            # fair-esm corrects with sums over padding, which are zero but for its own end token
            assert torch.allclose(torch.from_numpy(contacts).float(), row, rtol=0, atol=1e-5)


# --- the same numbers as transformers ------------------------------------------------------------


@pytest.mark.parametrize("size", ["esm2_tiny", "esm2_t6_8M_UR50D", "esm2_t12_35M_UR50D"])
@pytest.mark.parametrize("kernel", ["torch", "onednn"])
def test_outputs_and_gradients_are_those_of_transformers(size: str, kernel: str) -> None:
    ours = ESM2Backbone(size, seed=1).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in ours.parameters():
            if parameter.ndim == 1:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs = hugging_face(ours)
    texts = ["MKTAYIAKQRQISFVKSH", "M", "ACDEFGHIKLMNPQRSTVWYXBUZO" * 3, "GG<mask><mask>AV"]
    converter = ours.model.alphabet.get_batch_converter()
    tokens = converter([(str(i), t) for i, t in enumerate(texts)])[2]
    inside = (tokens != 0) & (tokens != 1) & (tokens != 2)
    expected = theirs.esm(input_ids=tokens, attention_mask=(tokens != 1).long()).last_hidden_state[
        inside
    ]
    samples = [Sample(id=str(i), sequence=t) for i, t in enumerate(texts)]
    try:
        kernels.set_matrix_kernel(kernel)  # type: ignore[arg-type]
        output = ours(ours.collate([ours.featurize(s) for s in samples]))
        found = output.single[output.mask.bool()]
        weights = torch.randn(found.shape, generator=generator)
        (found * weights).sum().backward()
    except ConfigError as refused:
        pytest.skip(str(refused))
    finally:
        kernels.set_matrix_kernel("auto")
    (expected * weights).sum().backward()
    assert float((found - expected).detach().abs().max()) <= 1e-5
    last = ours.config.num_layers - 1
    layers = theirs.esm.encoder.layer
    pairs = [
        (ours.model.embed_tokens.weight, theirs.esm.embeddings.word_embeddings.weight),
        (ours.model.layers[0].self_attn.q_proj.weight, layers[0].attention.self.query.weight),
        (ours.model.layers[last].fc1.weight, layers[last].intermediate.dense.weight),
        (ours.model.emb_layer_norm_after.bias, theirs.esm.encoder.emb_layer_norm_after.bias),
    ]
    for mine, other in pairs:
        assert mine.grad is not None
        # embeddings of tokens that do not occur have no gradient here and a zero one there
        difference = float((mine.grad - other.grad).norm() / other.grad.norm())
        assert difference < 2e-5
