"""Checkpoints: complete, exact, checked, never half written, and unable to run anything."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import warm

from molfun._io import load_safetensors, load_torch
from molfun.errors import CheckpointError, ConfigError, RunError, UnsafeFileError
from molfun.models.structure import MolfunStructureModel
from molfun.training import FullFinetune, HeadOnlyFinetune, LoRAFinetune, PartialFinetune

STRATEGIES = {
    "head_only": HeadOnlyFinetune(lr=1e-2),
    "lora": LoRAFinetune(rank=2, lr_lora=1e-2),
    "partial": PartialFinetune(unfreeze_last_n=1, lr_trunk=1e-2),
    "full": FullFinetune(lr=1e-2),
}
CASES = [(name, base) for name in STRATEGIES for base in ("file", "random")]

FRESH_PROCESS = """
import json, sys, torch
torch.set_num_threads(1)
sys.path.insert(0, sys.argv[1])
from tiny import build_samples
from molfun.models.structure import MolfunStructureModel
result = {}
for path in sys.argv[3:]:
    model = MolfunStructureModel.from_checkpoint(path, device="cpu")
    result[path] = model.predict(build_samples(3))["prediction"].tolist()
json.dump(result, open(sys.argv[2], "w"))
"""


@pytest.fixture(scope="module")
def base_file(tiny_model, tmp_path_factory) -> Path:
    """Weights as OpenFold publishes them."""
    path = tmp_path_factory.mktemp("base") / "weights.pt"
    torch.save({"ema": {"params": tiny_model(seed=7).backbone.model.state_dict()}}, path)
    return path


@pytest.fixture(scope="module")
def trained(tiny_model, batches, samples, base_file, tmp_path_factory):
    """Folder and predictions of a checkpoint of every strategy, from a file and from nothing."""
    folder = tmp_path_factory.mktemp("trained")
    made = {}
    for name, base in CASES:
        model = tiny_model(weights=base_file if base == "file" else None)
        model.fit(batches(4), strategy=STRATEGIES[name], epochs=1)
        path = folder / f"{name}_{base}"
        model.save(path)
        made[name, base] = (path, model.predict(samples(3))["prediction"])
    return made


@pytest.fixture(scope="module")
def fresh(trained, tmp_path_factory) -> dict[str, list[float]]:
    """Predictions of all checkpoints in a new process."""
    output = tmp_path_factory.mktemp("fresh") / "predictions.json"
    tests = Path(__file__).parents[1]
    paths = [str(path) for path, _ in trained.values()]
    run_python(FRESH_PROCESS, tests, output, *paths)
    return json.loads(output.read_text())


def run_python(code: str, *arguments: object, **settings) -> subprocess.CompletedProcess[str]:
    result = warm.run("-c", code, *arguments, timeout=240, **settings)
    assert result.returncode == 0, result.stderr
    return result


@pytest.fixture
def checkpoint(trained, tmp_path) -> Path:
    """An own copy of the LoRA checkpoint on a base file, to damage."""
    return copy_of(trained["lora", "file"][0], tmp_path / "checkpoint")


def copy_of(source: Path, target: Path) -> Path:
    shutil.copytree(source, target)
    return target


def sign_again(folder: Path) -> None:
    """Write the manifest anew, as somebody does who changes a file on purpose."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != "manifest.json"]
    entries = {
        p.relative_to(folder).as_posix(): {
            "size": p.stat().st_size,
            "sha256": hashlib.sha256(p.read_bytes()).hexdigest(),
        }
        for p in files
    }
    (folder / "manifest.json").write_text(json.dumps(entries))


# Saved is what is loaded


@pytest.mark.parametrize(("name", "base"), CASES)
def test_a_new_process_predicts_the_same_bits(trained, fresh, name, base):
    path, prediction = trained[name, base]
    assert fresh[str(path)] == prediction.tolist()


@pytest.mark.parametrize(("name", "base"), CASES)
def test_load_applies_the_strategy_by_itself(trained, tiny_model, samples, base_file, name, base):
    path, prediction = trained[name, base]
    weights = base_file if base == "file" else None
    alone = tiny_model(weights=weights)
    assert alone.load(path) is alone
    prepared = tiny_model(weights=weights)
    STRATEGIES[name].setup(prepared)
    prepared.load(path)
    assert torch.equal(alone.predict(samples(3))["prediction"], prediction)
    assert torch.equal(prepared.predict(samples(3))["prediction"], prediction)
    assert alone.strategy == prepared.strategy == STRATEGIES[name]
    trainable = {n for n, p in alone.named_parameters() if p.requires_grad}
    assert trainable == {n for n, p in prepared.named_parameters() if p.requires_grad}


def test_loading_twice_is_loading_once(trained, tiny_model, samples, base_file):
    for name in STRATEGIES:
        path, prediction = trained[name, "file"]
        model = tiny_model(weights=base_file).load(path).load(path)
        assert torch.equal(model.predict(samples(3))["prediction"], prediction)


def test_saved_again_it_is_the_same(trained, base_file, tmp_path):
    path, _ = trained["partial", "file"]
    MolfunStructureModel.from_checkpoint(path, device="cpu").save(tmp_path / "again")
    for name in ("trunk.safetensors", "meta.json"):
        assert (tmp_path / "again" / name).read_bytes() == (path / name).read_bytes()


def test_the_label_statistics_come_back(trained, base_file):
    path, _ = trained["head_only", "file"]
    meta = json.loads((path / "meta.json").read_text())
    model = MolfunStructureModel.from_checkpoint(path, device="cpu")
    assert model.task.state_dict() == meta["task"]["state"]
    assert model.task.fitted
    assert abs(model.task.mean - 6) < 2


def test_a_tilde_in_the_weights_path_is_the_home_folder(
    tiny_model, base_file, tmp_path, monkeypatch, samples
):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "weights").mkdir()
    shutil.copy(base_file, tmp_path / "weights" / "base.pt")
    model = tiny_model(weights="~/weights/base.pt")
    assert model.base_fingerprint == tiny_model(weights=base_file).base_fingerprint
    model.save("~/checkpoint")
    loaded = MolfunStructureModel.from_checkpoint("~/checkpoint", device="cpu")
    assert torch.equal(
        loaded.predict(samples(2))["prediction"], model.predict(samples(2))["prediction"]
    )


def test_base_weights_that_moved_can_be_named(trained, base_file, tmp_path, samples):
    path, prediction = trained["lora", "file"]
    moved = shutil.copy(base_file, tmp_path / "elsewhere.pt")
    model = MolfunStructureModel.from_checkpoint(path, weights=moved, device="cpu")
    assert torch.equal(model.predict(samples(3))["prediction"], prediction)


def test_base_weights_that_are_gone_are_named(tiny_model, base_file, tmp_path):
    here = shutil.copy(base_file, tmp_path / "here.pt")
    tiny_model(weights=here).save(tmp_path / "checkpoint")
    Path(here).unlink()
    with pytest.raises(CheckpointError, match=r"here\.pt, which are not there\. Pass weights="):
        MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint")


@pytest.mark.parametrize("name", ["with space", "ünïcødé-蛋白", "a" * 200, "deep/er/folder"])
def test_any_path_will_do(tiny_model, tmp_path, samples, name):
    model = tiny_model()
    model.save(tmp_path / name)
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / name, device="cpu")
    assert torch.equal(
        loaded.predict(samples(1))["prediction"], model.predict(samples(1))["prediction"]
    )


# What is in the folder


def test_the_files_are_those_of_the_format(trained):
    common = {"meta.pt", "meta.json", "head.pt", "manifest.json", "README.md",
              "training_inputs.safetensors", "training_record.safetensors"}  # fmt: skip
    adapter = {f"peft_adapter/{n}" for n in ("adapter_config.json", "adapter_model.safetensors")}
    expected = {
        ("head_only", "file"): common,
        ("lora", "file"): common | adapter | {"peft_adapter/molfun_spec.json"},
        ("full", "file"): common | {"trunk.safetensors"},
        ("head_only", "random"): common | {"trunk.safetensors"},
    }
    for case, names in expected.items():
        folder = trained[case][0]
        found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert found == names


def test_only_what_changed_is_stored_on_a_base_file(trained, base_file, tiny_model):
    base = tiny_model(weights=base_file).backbone
    partial = load_safetensors(trained["partial", "file"][0] / "trunk.safetensors")
    layers = {base.layer_of(name).kind for name in partial}
    assert layers <= {"block", "structure_module"}
    assert {base.layer_of(n).index for n in partial if base.layer_of(n).kind == "block"} == {1}
    reference = base.base_state_dict()
    assert all(not torch.equal(tensor, reference[name]) for name, tensor in partial.items())
    whole = load_safetensors(trained["partial", "random"][0] / "trunk.safetensors")
    assert whole.keys() == reference.keys()


def test_the_description_is_plain_and_twice_the_same(trained):
    for path, _ in trained.values():
        assert load_torch(path / "meta.pt") == json.loads((path / "meta.json").read_text())
        manifest = json.loads((path / "manifest.json").read_text())
        assert set(manifest["head.pt"]) == {"size", "sha256"}


def test_the_card_says_what_it_is(trained, base_file):
    card = (trained["lora", "file"][0] / "README.md").read_text()
    assert "Fine-tuned with the strategy `lora`" in card
    assert f"Base weights: `{base_file}`" in card
    assert "MolfunStructureModel.from_checkpoint" in card


# Adapters in the PEFT format


def test_peft_reads_the_adapters_without_a_warning(trained, tiny_model, base_file, samples):
    from peft import LoraConfig, PeftConfig, PeftModel

    path, prediction = trained["lora", "file"]
    model = tiny_model(weights=base_file)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        config = LoraConfig.from_pretrained(path / "peft_adapter")
        assert isinstance(PeftConfig.from_pretrained(path / "peft_adapter"), LoraConfig)
        PeftModel.from_pretrained(model.backbone, path / "peft_adapter")
    assert (config.r, config.lora_alpha, config.use_dora) == (2, 4.0, False)
    model.head.load_state_dict(load_torch(path / "head.pt"))
    model.task.load_state_dict(load_torch(path / "meta.pt")["task"]["state"])
    assert torch.equal(model.predict(samples(3))["prediction"], prediction)


@pytest.mark.parametrize("variant", ["use_dora", "use_rslora"])
def test_peft_reads_the_variants_too(tiny_model, batches, samples, base_file, tmp_path, variant):
    from peft import PeftModel

    model = tiny_model(weights=base_file)
    model.fit(batches(2), strategy=LoRAFinetune(rank=2, lr_lora=1e-2, **{variant: True}), epochs=1)
    expected = model.save(tmp_path / "checkpoint").predict(samples(2))["trunk"].single
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert torch.equal(loaded.predict(samples(2))["trunk"].single, expected)
    bare = tiny_model(weights=base_file)
    assert not torch.equal(bare.predict(samples(2))["trunk"].single, expected)
    PeftModel.from_pretrained(bare.backbone, tmp_path / "checkpoint" / "peft_adapter")
    assert torch.equal(bare.predict(samples(2))["trunk"].single, expected)


def test_adapter_weights_have_pefts_names(trained):
    folder = trained["lora", "file"][0] / "peft_adapter"
    names = set(load_safetensors(folder / "adapter_model.safetensors"))
    sites = {name.rsplit(".lora_", 1)[0] for name in names}
    assert names == {f"{site}.lora_{part}.weight" for site in sites for part in "AB"}
    # query and value of the four attentions of two blocks
    assert len(sites) == 2 * 4 * 2
    assert all(s.startswith("base_model.model.model.evoformer.blocks.") for s in sites)


# Another base, another model


def test_other_base_weights_are_refused(trained, tiny_model, base_file):
    path, _ = trained["lora", "file"]
    with pytest.raises(
        CheckpointError, match=r"does not fit this model:\n  base weights: .* in it"
    ):
        tiny_model(seed=8).load(path)


def test_a_file_of_other_weights_is_refused(trained, tiny_model, tmp_path):
    path, _ = trained["lora", "file"]
    other = tmp_path / "other.pt"
    torch.save(tiny_model(seed=9).backbone.model.state_dict(), other)
    with pytest.raises(CheckpointError, match="base weights: "):
        MolfunStructureModel.from_checkpoint(path, weights=other)


def changed_config(change):
    from molfun.backbones.openfold import presets

    config = presets.resolve_config("tiny")[1]
    change(config)
    return config


def fewer_blocks(config):
    config.model.evoformer_stack.no_blocks = 1


def another_width(config):
    config.globals.c_m = 24


@pytest.mark.parametrize("change", [fewer_blocks, another_width])
@pytest.mark.parametrize("base", ["file", "random"])
def test_another_architecture_is_refused(trained, tiny_model, change, base):
    model = tiny_model(config=changed_config(change))
    with pytest.raises(
        CheckpointError, match=r"backbone config\.preset: 'tiny' in it, 'custom' in"
    ):
        model.load(trained["lora", base][0])


def test_a_difference_between_custom_configs_is_named(tiny_model, tmp_path):
    tiny_model(config=changed_config(another_width)).save(tmp_path / "checkpoint")
    other = tiny_model(config=changed_config(fewer_blocks))
    with pytest.raises(CheckpointError) as caught:
        other.load(tmp_path / "checkpoint")
    text = str(caught.value)
    assert "backbone config.custom.globals.c_m: 24 in it, 32 in this model" in text
    assert "evoformer_stack.no_blocks: 2 in it, 1 in this model" in text
    assert len(text) < 3000


def test_a_custom_config_comes_back_from_the_checkpoint(tiny_model, tmp_path, samples, monkeypatch):
    from molfun.backbones.openfold import backbone

    model = tiny_model(config=changed_config(fewer_blocks))
    expected = model.predict(samples(2))["prediction"]
    monkeypatch.setattr(backbone, "CHUNK_ABOVE", 4)
    model.predict(samples(2))  # in chunks, which the model notes in its own config
    model.save(tmp_path / "checkpoint")
    monkeypatch.undo()
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert len(loaded.backbone.blocks()) == 1
    assert torch.equal(loaded.predict(samples(2))["prediction"], expected)


def test_another_head_is_refused(trained, tiny_model):
    model = tiny_model(head_config={"hidden_dim": 7})
    with pytest.raises(
        CheckpointError, match=r"head config.hidden_dim: 128 in it, 7 in this model"
    ):
        model.load(trained["head_only", "random"][0])


def test_other_adapters_in_the_model_are_refused(trained, tiny_model, base_file):
    model = tiny_model(weights=base_file)
    LoRAFinetune(rank=3).setup(model)
    with pytest.raises(RunError, match=r"already has adapters of another kind .*rank 3 there, 2"):
        model.load(trained["lora", "file"][0])


@pytest.mark.parametrize(
    ("name", "left"), [("full", r"\d+ weights of the backbone"), ("lora", "adapters")]
)
def test_a_trained_model_does_not_mix_with_a_checkpoint(trained, tiny_model, base_file, name, left):
    model = tiny_model(weights=base_file).load(trained[name, "file"][0])
    with pytest.raises(CheckpointError, match=f"does not hold {left} that were trained in this"):
        model.load(trained["head_only", "file"][0])


# Damage


def test_a_folder_that_is_none(tmp_path):
    with pytest.raises(CheckpointError, match=r"No checkpoint at .*nowhere: no such folder"):
        MolfunStructureModel.from_checkpoint(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match=r"manifest.json is missing \(found: nothing\)"):
        MolfunStructureModel.from_checkpoint(tmp_path / "empty")


FILES = (
    "meta.pt",
    "meta.json",
    "head.pt",
    "peft_adapter/adapter_config.json",
    "peft_adapter/molfun_spec.json",
    "peft_adapter/adapter_model.safetensors",
)


def refuse(folder: Path, text: str) -> None:
    with pytest.raises(CheckpointError, match=text):
        MolfunStructureModel.from_checkpoint(folder, device="cpu")


@pytest.mark.parametrize("name", FILES)
def test_cut_files_are_refused(checkpoint, name):
    file = checkpoint / name
    content = file.read_bytes()
    for size in {0, 1, len(content) // 2, len(content) - 1}:
        file.write_bytes(content[:size])
        refuse(checkpoint, f"damaged:\n  {name}: {size} bytes, expected {len(content)}")


@pytest.mark.parametrize("name", FILES)
def test_missing_and_flipped_files_are_refused(checkpoint, name):
    file = checkpoint / name
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    refuse(checkpoint, rf"damaged:\n  {name}: its content was changed \(sha256 differs\)")
    file.unlink()
    refuse(checkpoint, f"damaged:\n  {name}: missing")


@pytest.mark.parametrize("size", [0, 1, 40, -1])
def test_a_cut_manifest_is_refused(checkpoint, size):
    manifest = checkpoint / "manifest.json"
    manifest.write_text(manifest.read_text().rstrip()[:size])
    refuse(checkpoint, r"manifest\.json is damaged|not in the manifest")


@pytest.mark.parametrize("content", ["[]", "3", '{"head.pt": 1}', '{"head.pt": {}}', "{}"])
def test_a_manifest_of_another_form_is_refused(checkpoint, content):
    (checkpoint / "manifest.json").write_text(content)
    refuse(checkpoint, r"manifest\.json is damaged|head\.pt: not in the manifest")


def test_files_of_two_checkpoints_do_not_mix(trained, checkpoint):
    for name in ("head.pt", "meta.pt"):
        kept = (checkpoint / name).read_bytes()
        shutil.copy(trained["partial", "file"][0] / name, checkpoint / name)
        refuse(checkpoint, f"{name}: (its content was changed|.* bytes, expected)")
        (checkpoint / name).write_bytes(kept)


@pytest.mark.parametrize("name", ["head.pt", "meta.pt"])
def test_damage_under_a_new_manifest_is_still_one_clear_error(checkpoint, name):
    file = checkpoint / name
    content = file.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        sign_again(checkpoint)
        refuse(checkpoint, rf"{name} is damaged (or not a torch file|\(checksum\))")


def test_cut_adapters_under_a_new_manifest(checkpoint):
    file = checkpoint / "peft_adapter" / "adapter_model.safetensors"
    content = file.read_bytes()
    for size in (0, 1, len(content) // 2, len(content) - 1):
        file.write_bytes(content[:size])
        sign_again(checkpoint)
        refuse(checkpoint, r"adapter_model\.safetensors is damaged")


@pytest.mark.parametrize(
    "header",
    [(2**60).to_bytes(8, "little") + b"{}", (2).to_bytes(8, "little") + b"{]", b"\0" * 8],
)
def test_a_forged_safetensors_header_is_refused(checkpoint, header):
    (checkpoint / "peft_adapter" / "adapter_model.safetensors").write_bytes(header)
    sign_again(checkpoint)
    refuse(checkpoint, r"adapter_model\.safetensors is damaged")


def test_a_newer_format_is_refused(checkpoint):
    meta = load_torch(checkpoint / "meta.pt")
    torch.save({**meta, "format": 99}, checkpoint / "meta.pt")
    sign_again(checkpoint)
    refuse(
        checkpoint,
        r"has checkpoint format 99; this version of Molfun reads 1 and 2\. Update Molfun",
    )


def test_a_description_with_missing_entries_is_refused(checkpoint):
    meta = load_torch(checkpoint / "meta.pt")
    del meta["task"]
    torch.save(meta, checkpoint / "meta.pt")
    sign_again(checkpoint)
    refuse(checkpoint, r"meta\.pt lacks entries: .*'task'")


# Malice


class Canary:
    """Creates a file when it is unpickled by a careless reader."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return os.system, (f"touch '{self.path}'",)


@pytest.mark.parametrize("name", ["meta.pt", "head.pt"])
@pytest.mark.parametrize("zipped", [True, False])
def test_nothing_in_a_checkpoint_is_run(checkpoint, tmp_path, name, zipped):
    canary = tmp_path / "canary"
    torch.save(
        {"format": 1, "x": Canary(canary)},
        checkpoint / name,
        _use_new_zipfile_serialization=zipped,
    )
    sign_again(checkpoint)
    with pytest.raises(UnsafeFileError, match=f"Refused .*{name}: it holds more than tensors"):
        MolfunStructureModel.from_checkpoint(checkpoint, device="cpu")
    assert not canary.exists()


def test_an_absurd_rank_is_refused(checkpoint):
    path = checkpoint / "peft_adapter" / "molfun_spec.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "rank": 10**9}))
    sign_again(checkpoint)
    refuse(checkpoint, "asks for rank 1000000000; allowed: 1 to 4096")


def test_pefts_own_file_decides_nothing(checkpoint, trained, samples):
    path = checkpoint / "peft_adapter" / "adapter_config.json"
    forged = {"r": 10**9, "auto_mapping": {"parent_library": "os", "base_model_class": "system"}}
    path.write_text(json.dumps({**json.loads(path.read_text()), **forged}))
    sign_again(checkpoint)
    model = MolfunStructureModel.from_checkpoint(checkpoint, device="cpu")
    assert torch.equal(model.predict(samples(3))["prediction"], trained["lora", "file"][1])


def test_a_strategy_out_of_bounds_is_refused(checkpoint):
    meta = load_torch(checkpoint / "meta.pt")
    meta["strategy"]["rank"] = 10**9
    torch.save(meta, checkpoint / "meta.pt")
    sign_again(checkpoint)
    with pytest.raises(ConfigError, match="rank must be from 1 to 4096, got 1000000000"):
        MolfunStructureModel.from_checkpoint(checkpoint, device="cpu")


def test_adapters_for_other_layers_are_refused(checkpoint):
    path = checkpoint / "peft_adapter" / "molfun_spec.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "target_modules": ["linear_k"]}))
    sign_again(checkpoint)
    refuse(checkpoint, r"16 adapter weights missing \(.*linear_k")


# Interrupted writing


SAVE_FOREVER = """
import sys
sys.path.insert(0, sys.argv[1])
from tiny import build_tiny_model
from molfun.training import LoRAFinetune
model = build_tiny_model()
LoRAFinetune(rank=2).setup(model)
print("ready", flush=True)
step = 0
while True:
    step += 1
    model.result = {"step": step}
    model.save(sys.argv[2])
    print(step, flush=True)
"""


@pytest.mark.slow
def test_kill_at_any_moment_leaves_a_checkpoint_that_loads(tmp_path):
    path = tmp_path / "checkpoint"
    rng = np.random.default_rng(0)
    for _ in range(3):
        with warm.Process("-c", SAVE_FOREVER, Path(__file__).parents[1], path) as writer:
            while not writer.stdout().startswith("ready\n1\n"):
                assert writer.poll() is None, writer.stderr()
                time.sleep(0.01)
            time.sleep(float(rng.uniform(0, 0.3)))
            writer.send_signal(signal.SIGKILL)
            assert writer.wait() == -signal.SIGKILL
            last = int(writer.stdout().split()[-1])
        model = MolfunStructureModel.from_checkpoint(path, device="cpu")
        assert model.result["step"] in (last, last + 1)
    model.save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


def test_an_error_while_writing_keeps_the_old_checkpoint(tiny_model, tmp_path, monkeypatch):
    from molfun.runs import checkpoint as portable

    model = tiny_model()
    model.result = {"step": 1}
    model.save(tmp_path / "checkpoint")

    def fail(_meta):
        raise KeyboardInterrupt

    monkeypatch.setattr(portable, "card_text", fail)
    model.result = {"step": 2}
    with pytest.raises(KeyboardInterrupt):
        model.save(tmp_path / "checkpoint")
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]
    loaded = MolfunStructureModel.from_checkpoint(tmp_path / "checkpoint", device="cpu")
    assert loaded.result == {"step": 1}


DISK_FULL = """
import resource, signal, sys
sys.path.insert(0, sys.argv[1])
from tiny import build_tiny_model
from molfun.errors import RunError
model = build_tiny_model()
model.result = {"step": 1}
model.save(sys.argv[2])
model.result = {"step": 2}
next(model.backbone.parameters()).data += 1  # so that the trunk is written anew
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        model.save(sys.argv[2])
        print("saved")
    except RunError as error:
        print(error)
"""


def test_a_full_disk_keeps_the_old_checkpoint_and_says_so(tmp_path):
    path = tmp_path / "checkpoint"
    # in meta.pt, in head.pt, in trunk.safetensors
    limits = (100, 5000, 200_000)
    result = run_python(DISK_FULL, Path(__file__).parents[1], path, *limits)
    lines = result.stdout.splitlines()
    assert len(lines) == len(limits)
    for line, limit, name in zip(
        lines, limits, ("meta.pt", "head.pt", "trunk.safetensors"), strict=True
    ):
        assert line == (
            f"The file-size limit of {limit:,} bytes (ulimit -f) does not allow a file as large as "
            f"{path / name}. Raise the limit or choose another folder; the previous version is "
            f"intact."
        )
    loaded = MolfunStructureModel.from_checkpoint(path, device="cpu")
    assert loaded.result == {"step": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint"]


READ_ONLY = """
import sys
from molfun._io import write_text
from molfun.errors import RunError
try:
    write_text(sys.argv[1], "x")
except RunError as error:
    print(error)
"""


def test_a_read_only_folder_is_named(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o555)
    command = [sys.executable, "-c", READ_ONLY, str(folder / "file")]
    if os.geteuid() == 0:
        dropped = shutil.which("setpriv")
        if dropped is None:
            pytest.skip("root may write everywhere, and setpriv is not here to drop the right")
        command = [dropped, "--bounding-set=-all", "--inh-caps=-all", "--", *command]
    result = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    if "setpriv" in result.stderr or not (result.stdout or result.stderr):
        pytest.skip(f"setpriv cannot drop the rights of root here: {result.stderr.strip()}")
    assert result.stdout.startswith(f"Cannot write {folder / 'file'}: Permission denied. Choose a")
