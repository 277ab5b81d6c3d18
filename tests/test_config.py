"""Files of settings: within limits, nothing set twice, every fault in one line."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from molfun import MolfunStructureModel
from molfun.cli.from_metatrain import translate
from molfun.cli.from_series_config import read_settings
from molfun.cli.settings import FineTuneSettings
from molfun.config import dump_yaml, parse_yaml, read_yaml
from molfun.data.kinds.base import with_kinds
from molfun.errors import ConfigError, MolfunError, UnsafeFileError
from molfun.models.series_config import load_config
from molfun.registry import HEADS


def refused(tmp_path, content: str | bytes, error=ConfigError) -> str:
    path = tmp_path / "a.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(error) as caught:
        read_yaml(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("newline", ["\n", "\r\n", "\r"])
def test_encodings_and_line_ends(tmp_path, encoding, newline):
    path = tmp_path / "a.yaml"
    path.write_bytes(f"lr-head: 0.1{newline}note: é{newline}".encode(encoding))
    assert read_yaml(path) == {"lr_head": 0.1, "note": "é"}


def test_merges_may_override(tmp_path):
    path = tmp_path / "a.yaml"
    path.write_text("base: &b {lr: 1, epochs: 2}\nrun:\n  <<: *b\n  lr: 3\n")
    assert read_yaml(path)["run"] == {"lr": 3, "epochs": 2}


LAUGHS = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{new}: &{new} [{', '.join(['*' + old] * 9)}]\n"
    for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)


def test_aliases_are_counted_as_what_they_stand_for(tmp_path, monkeypatch):
    text = refused(tmp_path, LAUGHS, UnsafeFileError)
    assert "values are more than the 100,000 allowed" in text
    assert "MOLFUN_MAX_YAML_VALUES=" in text
    assert "an alias refers to what contains it" in refused(tmp_path, "a: &a [1, *a]\n")
    monkeypatch.setenv("MOLFUN_MAX_YAML_VALUES", "10")
    assert "MOLFUN_MAX_YAML_VALUES=" in refused(tmp_path, LAUGHS[:34], UnsafeFileError)


@pytest.mark.parametrize("nested", ["[" * 20_000, "{a: " * 5000, "- " * 5000, "? " * 5000])
def test_depth_has_a_limit(tmp_path, nested):
    assert "MOLFUN_MAX_YAML_DEPTH=51" in refused(tmp_path, f"a:\n  {nested}", UnsafeFileError)


def test_what_merges_stand_for_is_counted_before_it_is_made(tmp_path):
    text = "a0: &a0 {x: 1}\n" + "".join(
        f"a{i}: &a{i} {{<<: [{', '.join([f'*a{i - 1}'] * 9)}]}}\n" for i in range(1, 30)
    )
    assert "values are more than the 100,000" in refused(tmp_path, text, UnsafeFileError)


def test_size_has_a_limit(tmp_path):
    text = "a: " + "x" * 2**18
    assert "MOLFUN_MAX_YAML_BYTES=" in refused(tmp_path, text, UnsafeFileError)


WRONG = {
    "lr: 1\nepochs: 2\nlr: 3\n": "'lr' is set twice, on lines 1 and 3",
    "{lr: 1, lr: 2}": "'lr' is set twice, on lines 1 and 1",
    "a: {b: 1, b: 2}": "'b' is set twice, on lines 1 and 1",
    "lr-head: 1\nlr_head: 2\n": "sets 'lr_head' twice, with - and with _. Keep one",
    "when: 2001-99-99\n": "is no valid YAML: month must be in 1..12",
    "a: 1" + ":1" * 1000: "is no valid YAML: a number has more than 1,000 characters",
    "a: !!int x\n": "is no valid YAML: invalid literal for int()",
    "a: !!python/name:os.system\n": "could not determine a constructor for the tag",
    "a: [1\n": "is no valid YAML: while parsing a flow sequence",
    "a: 1\n--- \nb: 2\n": "expected a single document",
    "a: *b\n": "found undefined alias",
    "[a]: {b: [c]}\n? [d]\n: e\n": "is no valid YAML",
    "a: \0\n": "is no valid YAML",
    "": "must hold `name: value` lines; found nothing instead",
    "text": "found str instead",
    b"a: \xff\n": "it is not UTF-8",
}


@pytest.mark.parametrize("content", WRONG)
def test_what_is_wrong_is_said_in_one_line(tmp_path, content):
    assert WRONG[content] in refused(tmp_path, content)


def test_an_absent_file_and_a_folder(tmp_path):
    for path, reason in ((tmp_path / "absent.yaml", "No such file"), (tmp_path, "Is a directory")):
        with pytest.raises(ConfigError, match=f"Cannot read .*: {reason}"):
            read_yaml(path)


VALUES = st.recursive(
    st.one_of(
        st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5), st.dates(),
        st.sampled_from([-1, 10**30, "nan", "1e999", "auto", ".", "\0", "a/b", "pet", "x.xyz"]),
    ),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner,
                                                                max_size=3),
    max_leaves=5,
)  # fmt: skip
TEXTS = st.one_of(
    st.text(st.sampled_from("ab: -[]{},&*!?|>'\"#%@`\n\t0.~<="), max_size=40),
    st.dictionaries(st.text(max_size=5), VALUES, max_size=4).map(dump_yaml),
    st.binary(max_size=30),
)


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(content=TEXTS)
def test_any_text_gives_settings_or_an_error_of_ours(tmp_path, content):
    path = tmp_path / "fuzz.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode("utf-8", "replace"))
    with contextlib.suppress(MolfunError):
        read_yaml(path)
    if isinstance(content, str):
        with contextlib.suppress(MolfunError):
            parse_yaml(content, "text")


KEYS = sorted(with_kinds(FineTuneSettings).model_fields)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), VALUES, max_size=3))
def test_any_values_of_settings_are_taken_or_refused(values):
    with contextlib.suppress(MolfunError):
        FineTuneSettings.build({"demo": True, **values}, source="fuzz.yaml")


SECTIONS = {
    "ssl": ["name", "mask_ratio", "views", "x"],
    "encoder": ["name", "d_model", "n_layers", "dropout", "x"],
    "task": ["name", "type", "n_classes", "class_weights", "x"],
    "optimizer": ["name", "lr", "weight_decay", "x"],
    "scheduler": ["name", "warmup_steps", "x"],
    "data": ["path", "batch_size", "train", "x"],
    "training": ["epochs", "max_steps", "x"],
    "backbone": ["path", "freeze", "x"],
    "strategy": ["name", "x"],
}


def in_sections(sections: dict[str, list[str]]):
    return st.fixed_dictionaries(
        {},
        optional={
            name: VALUES | st.dictionaries(st.sampled_from(keys), VALUES, max_size=3)
            for name, keys in sections.items()
        },
    )


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(values=in_sections(SECTIONS), pretrain=st.booleans())
def test_any_values_of_sections_are_taken_or_refused(tmp_path, values, pretrain):
    path = tmp_path / "fuzz.yaml"
    path.write_text(dump_yaml(values), encoding="utf-8")
    try:
        made = read_settings(str(path), [], pretrain=pretrain)
    except MolfunError:
        return
    with contextlib.suppress(MolfunError):
        FineTuneSettings.build(made, source="fuzz.yaml")


FINETUNE = st.dictionaries(
    st.sampled_from(["method", "read_from", "config", "inherit_heads", "x"]),
    VALUES | st.sampled_from(["lora", "full", "heads"]), max_size=4,
)  # fmt: skip
TRAINING = st.dictionaries(
    st.sampled_from(
        ["batch_size", "num_epochs", "learning_rate", "grad_clip_norm", "warmup_fraction", "loss",
         "scheduler_patience", "best_model_metric", "x"]
    ), VALUES, max_size=3,
)  # fmt: skip
DATASETS = st.one_of(
    VALUES,
    st.dictionaries(st.sampled_from(["systems", "targets"]), VALUES, max_size=2),
    st.builds(lambda target: {"systems": "x.xyz", "targets": {"energy": target}},
              VALUES | st.dictionaries(
                  st.sampled_from(["key", "read_from", "unit", "forces", "stress", "virial",
                                   "quantity", "type", "reader"]), VALUES, max_size=3)),
    st.lists(VALUES, max_size=2),
)  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(
    options=st.fixed_dictionaries(
        {},
        optional={
            "architecture": VALUES | st.fixed_dictionaries(
                {}, optional={"name": VALUES | st.just("pet"), "model": VALUES,
                              "training": TRAINING, "atomic_types": VALUES}
            ) | st.builds(lambda f: {"training": {"finetune": f}}, FINETUNE),
            "training_set": DATASETS, "validation_set": DATASETS, "test_set": DATASETS,
            "seed": VALUES, "device": VALUES, "base_precision": VALUES, "wandb": VALUES,
        },
    )
)  # fmt: skip
def test_any_options_of_metatrain_are_taken_or_refused(options):
    with contextlib.suppress(MolfunError):
        made = translate(options, source="options.yaml")
        FineTuneSettings.build(made.settings, source="options.yaml")


PART_VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-2, 9), st.floats(-1, 2), st.sampled_from(["relu", "x"]),
    st.lists(st.integers(-1, 5) | st.just("x"), max_size=2), st.just({"a": 1}),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(
    head=st.sampled_from(["linear", "mlp", "conv"]),
    head_config=st.dictionaries(
        st.sampled_from(["hidden", "dropout", "activation", "kernel_size", "pooling", "x"]),
        PART_VALUES, max_size=2,
    ),
    task=st.sampled_from(["regression", "binary", "multiclass", "multilabel"]),
    task_config=st.dictionaries(
        st.sampled_from(["level", "classes", "n_classes", "class_weights", "loss", "x"]),
        PART_VALUES, max_size=2,
    ),
)  # fmt: skip
def test_any_values_of_parts_are_taken_or_refused(head, head_config, task, task_config):
    with contextlib.suppress(MolfunError):
        MolfunStructureModel(
            "esm2_tiny", head=head, head_config=head_config, task=task, task_config=task_config
        )


def test_a_name_that_is_no_text_is_refused():
    with pytest.raises(ConfigError, match=r"The name of a head must be text, got \['mlp'\]"):
        HEADS[["mlp"]]
    assert ["mlp"] not in HEADS
    with pytest.raises(ConfigError, match="TransformerConfig: a value has the wrong type or range"):
        load_config({"ssl": "mae", "encoder": {"name": "transformer", "n_layers": [2]}})
