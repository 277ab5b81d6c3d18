"""Translate options of metatrain (``mtt train options.yaml``) to settings of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from molfun.errors import ConfigError
from molfun.models.series_config import plain
from molfun.strict import mistyped
from molfun.text import listing, nearest

TOP = ("architecture", "training_set", "validation_set", "test_set", "seed", "device",
       "base_precision", "trust", "wandb")  # fmt: skip
REPORTS_TOP = ("print_stats", "final_eval")
ARCHITECTURE = ("name", "atomic_types", "model", "training")
TRAINING = ("batch_size", "num_epochs", "warmup_fraction", "learning_rate", "weight_decay",
            "num_workers", "grad_clip_norm", "loss", "finetune")  # fmt: skip
UNUSED: dict[str, Any] = {
    "distributed": None,
    "distributed_port": 39591,
    "atomic_baseline": {},
    "scale_targets": True,
    "fixed_scaling_weights": {},
    "per_structure_targets": [],
    "best_model_metric": "loss",
    "max_atoms_per_batch": None,
    "min_atoms_per_batch": 0,
}
"""Options of metatrain's trainer that Molfun does not have, with the values that change nothing."""
REPORTS = ("log_interval", "checkpoint_interval", "log_mae", "log_separate_blocks")
"""Options that change metatrain's reports and files, but not the model."""
FINETUNE = ("method", "read_from", "config", "inherit_heads")
METHODS: dict[str, tuple[str, ...]] = {
    "full": (),
    "heads": ("head_modules", "last_layer_modules"),
    "lora": ("rank", "alpha", "target_modules", "train_heads"),
}
DATASET = ("systems", "targets")
SYSTEMS = ("read_from", "reader", "length_unit")
TARGET = ("key", "unit", "quantity", "forces", "stress", "virial", "read_from", "reader", "type",
          "sample_kind", "per_atom", "num_subtargets", "description")  # fmt: skip
PLAIN_TARGET: dict[str, Any] = {
    "type": "scalar",
    "sample_kind": "system",
    "per_atom": False,
    "num_subtargets": 1,
}
TARGET_LOSS = ("type", "weight", "reduction", "delta", "forces", "stress", "gradients")
DERIVATIVES = {"forces": "forces", "positions": "forces", "stress": "stress", "strain": "stress"}
LOSSES = ("mse", "mae", "huber")
DEVICES = {"gpu": "cuda"}
NAMES = {
    "lr": "architecture.training.learning_rate",
    "epochs": "architecture.training.num_epochs",
    "batch_size": "architecture.training.batch_size",
    "warmup_ratio": "architecture.training.warmup_fraction",
    "grad_clip": "architecture.training.grad_clip_norm",
    "weight_decay": "architecture.training.weight_decay",
    "workers": "architecture.training.num_workers",
    "energy_weight": "architecture.training.loss: weight of the energy",
    "forces_weight": "architecture.training.loss: weight of the forces",
    "stress_weight": "architecture.training.loss: weight of the stress",
    "weights": "architecture.training.finetune.read_from",
    "lora_rank": "architecture.training.finetune.config.rank",
}
"""Names of the settings in metatrain's file, for errors."""


@dataclass
class Translation:
    """Options in Molfun's terms.

    Parameters
    ----------
    settings
        Values for `molfun.cli.settings.FineTuneSettings`.
    notes
        Differences from metatrain's behaviour, one line each.
    problems
        Errors in the options, one line each.
    """

    settings: dict[str, Any] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def check(self, where: str, section: Mapping[str, Any], known: Sequence[str]) -> None:
        """Add a problem for each unknown name."""
        for key in section:
            if key not in known:
                name = f"{where}.{key}" if where else key
                close = nearest(key, known) or f" Known: {', '.join(known)}."
                self.problems.append(f"{name}: unknown option.{close}")

    def unused(self, where: str, section: Mapping[str, Any], known: Mapping[str, Any]) -> None:
        """Add a problem for names that metatrain has and Molfun does not."""
        names = [key for key in section if key in known and section[key] != known[key]]
        if names:
            self.problems.append(
                f"{where}: Molfun does not do what metatrain does with {', '.join(names)}. Leave "
                f"{'it' if len(names) == 1 else 'them'} out, or train with metatrain itself."
            )

    def reports(self, section: Mapping[str, Any], known: Sequence[str]) -> None:
        """Add a note on names that change metatrain's reports only."""
        names = [key for key in section if key in known]
        if names:
            self.notes.append(
                f"{', '.join(names)}: not looked at. The best epoch and the last are kept, and "
                f"every epoch is in history.csv."
            )

    def section(self, where: str, value: Any) -> dict[str, Any]:
        """Return a value that must be a mapping; add a problem if it is not."""
        if value is None:
            return {}
        if isinstance(value, dict):
            return value
        self.problems.append(f"{where} must hold `name: value` lines, got {value!r}.")
        return {}


def translate(options: Mapping[str, Any], *, source: str = "options") -> Translation:
    """Return settings of ``molfun fine-tune`` that do what ``mtt train`` does with these options.

    Defaults are metatrain's. Supported are full, heads and lora fine-tuning, and training from
    random weights, of one energy with forces and stress.

    Parameters
    ----------
    options
        Content of ``options.yaml``, with ``trust: true`` added to start from a checkpoint.
    source
        Name of the file, for messages.

    Raises
    ------
    ConfigError
        If options are unknown, wrong, or not supported; the text names them all.

    Examples
    --------
    >>> finetune = {"method": "full", "read_from": "pet.ckpt"}
    >>> options = {"architecture": {"training": {"finetune": finetune}}, "training_set": "x.xyz"}
    >>> settings = translate(options).settings
    >>> settings["strategy"], settings["weights"], settings["lr"], settings["data"]
    ('full', 'pet.ckpt', 0.0001, 'x.xyz')
    """
    with mistyped(source):
        return _translate(options, source)


def _translate(options: Mapping[str, Any], source: str) -> Translation:
    found, options = Translation(), plain(options)
    found.check("", options, [*TOP, *REPORTS_TOP])
    found.reports(options, REPORTS_TOP)
    found.settings |= {"backbone": "pet", "head": "energy", "trust": bool(options.get("trust"))}
    _run(options, found)
    architecture = found.section("architecture", options.get("architecture"))
    training = found.section("architecture.training", architecture.get("training"))
    name = _data(options, source, found)
    _training(training, name, found)
    _finetune(
        found.section("architecture.training.finetune", training.get("finetune")), name, found
    )
    _architecture(architecture, found)
    if len(found.problems) == 1:
        raise ConfigError(f"{source}: {found.problems[0]}")
    if found.problems:
        raise ConfigError(f"{source}:\n{listing(found.problems)}")
    return found


def _run(options: Mapping[str, Any], found: Translation) -> None:
    if options.get("seed") is not None:
        found.settings["seed"] = options["seed"]
    if options.get("wandb") is not None:  # arguments of wandb.init, as Molfun's logger takes them
        given = {"wandb": found.section("wandb", options["wandb"])}
        found.settings |= {"logger": ["wandb"], "logger_config": given}
    device = options.get("device")
    if device is not None and str(device).startswith("multi-"):
        found.problems.append(
            f"device: {device}: leave it out and start with torchrun for several GPUs."
        )
    elif device is not None:
        found.settings["device"] = DEVICES.get(str(device), device)
    precision = options.get("base_precision")
    if precision in (32, 64):
        found.settings["backbone_config"] = {"dtype": f"float{precision}"}
    elif precision is not None:
        found.problems.append(f"base_precision: PET trains in 32 or 64 bits, got {precision!r}.")


# --- data ----------------------------------------------------------------------------------------


def _data(options: Mapping[str, Any], source: str, found: Translation) -> str:
    """Translate files, labels and parts; return the name of the target."""
    given = options.get("training_set")
    if given is None:
        found.problems.append(
            f"there is no training_set. Add the section, or name a file: molfun train {source} "
            f"training_set=structures.xyz validation_set=0.1"
        )
        return "energy"
    files, name, labels = _dataset("training_set", given, found)
    found.settings |= {"data": files[0] if len(files) == 1 else files, **labels}
    if options.get("validation_set") is None:
        found.notes.append("There is no validation_set: a tenth of training_set is taken for it.")
    for part, short, fraction in (("validation_set", "val", 0.1), ("test_set", "test", 0.0)):
        value = options.get(part)
        if value is None:
            value = fraction
        if isinstance(value, int | float) and not isinstance(value, bool):
            if not 0 <= value < 1:
                found.problems.append(f"{part}: a fraction is from 0 to below 1, got {value}.")
            found.settings[f"{short}_frac"] = float(value)
        else:
            found.settings[short] = _files_of_part(part, value, (name, labels), found)
    return name


def _files_of_part(
    part: str, value: Any, of_training: tuple[str, dict[str, Any]], found: Translation
) -> str | list[str]:
    """Return the file or files of a part, whose labels must be named as those of training."""
    files, name, labels = _dataset(part, value, found)
    if not isinstance(value, str) and (name, labels) != of_training:
        found.problems.append(
            f"{part}.targets: other labels than those of training_set. Name them alike in all "
            f"files."
        )
    return files[0] if len(files) == 1 else files


def _dataset(where: str, value: Any, found: Translation) -> tuple[list[str], str, dict[str, Any]]:
    """Return the files of a section, the name of its target, and the names of its labels."""
    sections = value if isinstance(value, list) else [value]
    files: list[str] = []
    read: list[tuple[str, dict[str, Any]]] = []
    for entry in sections:
        if isinstance(entry, str):
            files.append(entry)
            read.append(("energy", {}))
            continue
        section = found.section(where, entry)
        found.check(where, section, DATASET)
        systems = section.get("systems")
        if not isinstance(systems, str):
            inner = found.section(f"{where}.systems", systems)
            found.check(f"{where}.systems", inner, SYSTEMS)
            _check_reader(f"{where}.systems", inner, found)
            systems = inner.get("read_from")
        if systems is None:
            found.problems.append(f"{where}.systems.read_from is missing: the file of structures.")
            continue
        files.append(systems)
        read.append(_target(f"{where}.targets", section.get("targets"), systems, found))
    if any(other != read[0] for other in read[1:]):
        found.problems.append(f"{where}: its files have other labels. Name them alike in all.")
    name, labels = read[0] if read else ("energy", {})
    return files, name, labels


def _check_reader(where: str, section: Mapping[str, Any], found: Translation) -> None:
    if section.get("reader") not in (None, "ase"):
        found.problems.append(f"{where}.reader: structures are read with ase; leave it out.")
    if str(section.get("length_unit") or "angstrom").lower() not in ("angstrom", "a"):
        found.problems.append(f"{where}.length_unit: lengths are in angstrom.")


def _target(
    where: str, targets: Any, systems: str, found: Translation
) -> tuple[str, dict[str, Any]]:
    """Return the name of the only target, and the settings of its labels."""
    section = found.section(where, targets)
    if not section:
        return "energy", {}
    if len(section) > 1:
        found.problems.append(
            f"{where}: Molfun trains one energy a run, and these are {', '.join(section)}."
        )
    name, value = next(iter(section.items()))
    target = {"read_from": value} if isinstance(value, str) else value
    target = found.section(f"{where}.{name}", target)
    where = f"{where}.{name}"
    found.check(where, target, TARGET)
    found.unused(where, target, PLAIN_TARGET)
    _check_reader(where, target, found)
    _check_file(where, target, systems, found)
    return name, _energy_labels(where, name, target, systems, found)


def _energy_labels(
    where: str, name: str, target: Mapping[str, Any], systems: str, found: Translation
) -> dict[str, Any]:
    """Return the settings of an energy, its forces and its stress."""
    # without `quantity`, metatrain takes a target called energy or energy/pbe0 for an energy
    if target.get("quantity", name.partition("/")[0]) != "energy":
        found.problems.append(
            f"{where}: Molfun trains the energies of PET. If this is one, say `quantity: energy`; "
            f"for other labels use molfun fine-tune --backbone pet --head mlp --target-key KEY."
        )
    labels: dict[str, Any] = {}
    if target.get("key") is not None or name != "energy":
        labels["energy_key"] = str(target.get("key") or name)
    if target.get("unit"):
        labels["energy_unit"] = str(target["unit"])
    if target.get("virial") and target.get("stress"):
        found.problems.append(
            f"{where}: stress and virial are one label in two forms. Set one of them to false."
        )
    for kind in ("virial", "forces") if target.get("virial") else ("forces", "stress"):
        labels |= _derivative(f"{where}.{kind}", kind, target.get(kind), systems, found)
    return labels


def _derivative(
    where: str, kind: str, value: Any, systems: str, found: Translation
) -> dict[str, Any]:
    if value is None:
        return {}
    if value is False:
        return {kind: False}
    if isinstance(value, str):
        value = {"read_from": value}
    section = {} if value is True else found.section(where, value)
    found.check(where, section, ("key", "read_from", "reader"))
    _check_reader(where, section, found)
    _check_file(where, section, systems, found)
    return {f"{kind}_key": str(section.get("key") or kind)}


def _check_file(where: str, section: Mapping[str, Any], systems: str, found: Translation) -> None:
    if section.get("read_from") not in (None, systems):
        found.problems.append(
            f"{where}.read_from: labels are read from the file of the structures, {systems}."
        )


# --- training ------------------------------------------------------------------------------------


def _training(training: Mapping[str, Any], target: str, found: Translation) -> None:
    where = "architecture.training"
    found.check(where, training, [*TRAINING, *UNUSED, *REPORTS])
    found.unused(where, training, UNUSED)
    found.reports(training, REPORTS)
    decay = training.get("weight_decay")
    found.settings |= {
        "lr": training.get("learning_rate", 1e-4),
        "epochs": training.get("num_epochs", 1000),
        "batch_size": training.get("batch_size", 16),
        "warmup_ratio": training.get("warmup_fraction", 0.01),
        "grad_clip": training.get("grad_clip_norm", 1.0),
        "optimizer": "adam" if decay is None else "adamw",
        "weight_decay": decay or 0.0,
        "workers": training.get("num_workers") or 0,
        # metatrain has none of these three, so they are off whatever Molfun's defaults are
        "accum": 1,
        "ema": 0.0,
        "precision": "32-true",
    }
    _loss(training.get("loss"), target, found)


def _loss(loss: Any, target: str, found: Translation) -> None:
    """Translate the loss: a type, or per label a type, a weight, or a mapping of both."""
    where = "architecture.training.loss"
    if loss is None or isinstance(loss, str):
        _loss_type(where, loss, found)
        return
    section = found.section(where, loss)
    known = {target: "energy", "energy": "energy", **DERIVATIVES}
    found.check(where, section, list(known))
    for name, value in section.items():
        if name in known:
            _loss_term(f"{where}.{name}", known[name], value, found)


def _loss_term(where: str, kind: str, value: Any, found: Translation) -> None:
    if isinstance(value, str):
        _loss_type(where, value, found)
        return
    if isinstance(value, int | float):
        value = {"weight": value}
    section = found.section(where, value)
    found.check(where, section, TARGET_LOSS)
    found.unused(where, section, {"reduction": "mean", "delta": 1.0})
    _loss_type(where, section.get("type"), found)
    if "weight" in section:
        found.settings[f"{kind}_weight"] = section["weight"]
    inner = found.section(f"{where}.gradients", section.get("gradients"))
    inner = {**{k: section[k] for k in ("forces", "stress") if k in section}, **inner}
    found.check(f"{where}.gradients", inner, list(DERIVATIVES))
    for name, term in inner.items():
        if name in DERIVATIVES:
            _loss_term(f"{where}.{name}", DERIVATIVES[name], term, found)


def _loss_type(where: str, name: str | None, found: Translation) -> None:
    if name is None:
        return
    if name not in LOSSES:
        found.problems.append(f"{where}: Molfun has the losses {', '.join(LOSSES)}; got {name!r}.")
    elif found.settings.setdefault("loss", name) != name:
        found.problems.append(
            f"{where}: energy and derivatives have one kind of loss, and these are "
            f"{found.settings['loss']} and {name}."
        )


# --- fine-tuning ---------------------------------------------------------------------------------


def _finetune(finetune: Mapping[str, Any], target: str, found: Translation) -> None:
    where = "architecture.training.finetune"
    found.check(where, finetune, FINETUNE)
    weights = finetune.get("read_from")
    method = finetune.get("method", "full") if weights else "full"
    if weights is None and finetune:
        found.notes.append(f"{where}.read_from is not given: training starts from random weights.")
    if not isinstance(method, str) or method not in METHODS:
        found.problems.append(
            f"{where}.method: unknown method {method!r}.{nearest(str(method), METHODS)} Known: "
            f"{', '.join(METHODS)}."
        )
        return
    config = found.section(f"{where}.config", finetune.get("config")) if weights else {}
    if method != "full":  # metatrain does not look at it either
        found.check(f"{where}.config", config, METHODS[method])
    found.settings["weights"] = weights
    _new_target(where, finetune, target, keep=method == "heads", found=found)
    rate = found.settings["lr"]
    if method == "heads":
        found.settings |= _heads(config)
    elif method == "lora":
        found.settings |= _lora(config, rate, found)
    else:
        one_rate = {"lr_head": rate, "lr_embedder": rate, "layer_lr_decay": 1.0}
        found.settings |= {"strategy": "full", "strategy_config": one_rate}


def _heads(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of the method "heads", for some modules of the heads or all."""
    names = [*config.get("head_modules", ()), *config.get("last_layer_modules", ())]
    modules = [str(name).removeprefix("backend.") for name in names]
    return {"strategy": "head_only", "head_config": {"modules": modules} if modules else {}}


def _lora(config: Mapping[str, Any], rate: float, found: Translation) -> dict[str, Any]:
    """Return the settings of the method "lora"."""
    own: dict[str, Any] = {"lr_head": rate, "alpha": config.get("alpha", 8.0)}
    if config.get("target_modules") is not None:
        own["target_modules"] = list(config["target_modules"])
    trains_heads = config.get("train_heads", True)
    if trains_heads:
        found.notes.append(
            "LoRA trains the heads as well, which metatrain freezes "
            "(architecture.training.finetune.config.train_heads=false freezes them)."
        )
    return {
        "strategy": "lora",
        "strategy_config": own,
        "head_config": {} if trains_heads else {"modules": []},
        "lora_rank": config.get("rank", 4),
    }


def _new_target(
    where: str, finetune: Mapping[str, Any], target: str, *, keep: bool, found: Translation
) -> None:
    inherit = found.section(f"{where}.inherit_heads", finetune.get("inherit_heads"))
    wrong = [name for name in inherit if name != target]
    if wrong:
        found.problems.append(
            f"{where}.inherit_heads: {wrong[0]} is not the target of training_set, {target}."
        )
    if target != "energy" or inherit:
        inherited = inherit.get(target)
        found.settings |= {"new_target": target, "inherit": inherited, "keep_targets": keep}


def _architecture(architecture: Mapping[str, Any], found: Translation) -> None:
    found.check("architecture", architecture, ARCHITECTURE)
    name = architecture.get("name", "pet")
    if name != "pet":
        found.problems.append(f"architecture.name: Molfun trains pet of metatrain, not {name}.")
    model = found.section("architecture.model", architecture.get("model"))
    types = architecture.get("atomic_types")
    if found.settings.get("weights") is None:
        chosen = {"config": model or None, "atomic_types": types}
        given = {k: v for k, v in chosen.items() if v is not None}
        found.settings["backbone_config"] = {**found.settings.get("backbone_config", {}), **given}
    elif model or types:
        found.notes.append(
            "architecture.model and atomic_types are not used: the checkpoint says what they are."
        )
