"""Model card of a checkpoint: what it predicts, from which data, how well, and where it ends.

A card is written with every checkpoint, when little is known but validation. A command writes it
again at the end of its run, with the results on the test part.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from molfun.registry import BACKBONES
from molfun.tasks.titles import title_of
from molfun.text import three_digits

PARTS = {"train": "training", "val": "validation", "test": "test"}
Content = Mapping[str, Any]


def card_text(
    meta: Content,
    *,
    evaluation: Content | None = None,
    provenance: Content | None = None,
    settings: Content | None = None,
) -> str:
    """Return the model card as Markdown.

    Parameters
    ----------
    meta
        Content of ``meta.json``.
    evaluation, provenance, settings
        Content of ``evaluation.json``, ``provenance.json`` and ``config.yaml`` of the run; None or
        empty where there is none.

    Examples
    --------
    >>> text = card_text({"backbone": {"name": "esm2", "weights": None, "fingerprint": "a1"},
    ...     "head": {"name": "mlp"}, "task": {"name": "regression"}, "strategy": None,
    ...     "molfun_version": "1", "result": {"val/rmse": 0.51234, "lr": 1e-9}})
    >>> [line for line in text.splitlines() if line.startswith("| RMSE")]
    ['| RMSE | 0.512 |']
    """
    evaluation, provenance, settings = evaluation or {}, provenance or {}, settings or {}
    blocks = [
        _header(meta),
        _model(meta),
        _data(meta, provenance, settings),
        _results(meta, evaluation),
        _limits(meta, evaluation, provenance),
        _loading(),
    ]
    return "\n".join(blocks)


def write_card(run: Path, card: Path, settings: Content) -> None:
    """Write the card of a run's checkpoint again, with all that the run found out.

    Parameters
    ----------
    run
        Folder of the run.
    card
        File to write, outside the manifest of the checkpoint.
    settings
        Settings of the run.
    """
    from molfun._io import write_text

    meta, evaluation, provenance = (
        json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        for path in (card.with_name("meta.json"), run / "evaluation.json", run / "provenance.json")
    )
    text = card_text(meta, evaluation=evaluation, provenance=provenance, settings=settings)
    write_text(card, text)


def _heads(meta: Content) -> list[Content]:
    return list(meta.get("heads") or [meta])


def _header(meta: Content) -> str:
    """Return the header that Hugging Face's hub reads, and the title."""
    tasks = ", ".join(one["task"]["name"] for one in _heads(meta))
    heads = " and ".join(
        f"{one['head']['name']} ({one['name']})" if one.get("name") else one["head"]["name"]
        for one in _heads(meta)
    )
    backbone = meta["backbone"]["name"]
    return (
        f"---\nlibrary_name: molfun\ntags: [{backbone}, {tasks}]\n---\n\n"
        f"# {backbone} with head {heads}\n"
    )


def _model(meta: Content) -> str:
    """Say what the model predicts, how it was trained, and from which weights."""
    strategy = (meta.get("strategy") or {}).get("name", "none")
    lines = [_task(one, meta.get("data", {})) for one in _heads(meta)]
    lines.append(f"Fine-tuned with the strategy `{strategy}`, Molfun {meta['molfun_version']}.")
    base = meta["backbone"]
    lines.append(
        f"Base weights: `{base['weights'] or 'random initialisation'}` "
        f"(fingerprint `{base['fingerprint'][:16]}`)."
    )
    lines.append(_licence(meta))
    return "\n".join(filter(None, lines)) + "\n"


def _task(one: Content, data: Content) -> str:
    data = data.get("heads", {}).get(one.get("name"), data)
    level = one["task"].get("config", {}).get("level")
    columns = data.get("target_column") or one.get("name")
    target = ", ".join(columns) if isinstance(columns, list) else columns
    words = f"Task: {one['task']['name']}"
    words += f" of `{_plain(target)}`" if target else ""
    return f"{words}, one label per {level}." if level else f"{words}."


def _licence(meta: Content) -> str:
    """Name the licence of the published weights of the backbone."""
    name = meta["backbone"]["name"]
    if not meta["backbone"]["weights"] or name not in BACKBONES:
        return ""
    licence = BACKBONES.about(name, "weights_licence")
    if not licence:
        return "This checkpoint is derived from its base weights: their licence holds for it, too."
    return (
        f"The published weights are under {licence}; this checkpoint is derived from its base "
        f"weights: pass the credit on."
    )


def _data(meta: Content, provenance: Content, settings: Content) -> str:
    """Say where the samples are from, how many there are, and how they are split."""
    lines = [*_files(provenance, settings), *_split(provenance, settings)]
    if not lines:
        kind = meta.get("data", {}).get("kind", "structures")
        lines = [f"Trained on {kind} given in Python; nothing more is known of them."]
    return "\n".join(["## Data", "", *lines]) + "\n"


def _files(provenance: Content, settings: Content) -> Iterator[str]:
    for name in ("data", "val", "test"):
        given = settings.get(name)
        for path in [given] if isinstance(given, str) else given or ():
            digest = provenance.get("files", {}).get(path, {}).get("sha256")
            known = f" (sha256 `{digest}`)" if digest else ""
            yield f"- `{_plain(Path(path).name)}`{known}"


def _split(provenance: Content, settings: Content) -> Iterator[str]:
    counts = provenance.get("data", {}).get("n", {})
    if counts:
        texts = [f"{counts[p]:,} {words}" for p, words in PARTS.items() if p in counts]
        yield f"- samples: {', '.join(texts)}"
    if settings.get("demo"):
        yield "- synthetic samples of the demo"
    else:
        yield from _parts(settings)


def _parts(settings: Content) -> Iterator[str]:
    """Yield how the rows of ``data`` are split, and which parts are files of their own."""
    own = [PARTS[part] for part in ("val", "test") if settings.get(part)]
    if len(own) < 2 and settings.get("split"):
        within = " within `data`" if own else ""
        yield f"- split{within}: {settings['split']}, seed {settings.get('seed')}"
    yield from (f"- the {words} part is a file of its own" for words in own)


def _results(meta: Content, evaluation: Content) -> str:
    lines = ["## Results", ""]
    heads = evaluation.get("heads", {"": evaluation} if evaluation else {})
    for name, found in heads.items():
        lines += [f"### {_plain(name)}", ""] if name else []
        lines += [_plain(found["verdict"]), "", *_table(found), ""]
    return "\n".join(lines if heads else [*lines, *_validation(meta)]) + "\n"


def _table(found: Content) -> Iterator[str]:
    """Yield metrics of model and baselines, on the part that the verdict speaks of."""
    part = found["parts"].get(found["part"])
    if part is None:
        return
    others = part["baselines"].values()
    names = [found["metric"], *(m for m in part["metrics"] if m != found["metric"])]
    words = PARTS.get(found["part"], found["part"])
    header = [f"{words} ({part['n']:,})", "model", *(_plain(one["title"]) for one in others)]
    yield _row(header)
    yield _row(["---"] * len(header))
    for metric in names:
        cells = [one["metrics"].get(metric) for one in (part, *others)]
        yield _row([title_of(metric), *map(_estimate, cells)])
    yield ""
    yield "Brackets are 95 % bootstrap intervals."
    threshold = found.get("threshold")
    if threshold:
        values = [f"{title_of(m)} {_number(v)}" for m, v in threshold["metrics"].items()]
        yield ""
        yield (
            f"From the probability {_number(threshold['value'])} of the positive class, the "
            f"threshold chosen on validation, the test part has {', '.join(values)}."
        )


def _validation(meta: Content) -> Iterator[str]:
    """Yield the metrics of the epoch of the weights; rates and counters are no results."""
    found = {k: v for k, v in meta["result"].items() if k.startswith("val")}
    if not found:
        yield "None were measured."
        return
    yield from ("| validation | value |", "|---|---|")
    for name, value in found.items():
        yield _row([title_of(name), _number(value)])
    yield ""
    yield "Validation also chose the epoch; no baseline was computed."


def _limits(meta: Content, evaluation: Content, provenance: Content) -> str:
    """Say what the results do not show."""
    lines = [*_weaknesses(meta, evaluation), *_ranges(meta, provenance)]
    lines.append("- Nothing is known about samples unlike those it was trained on.")
    return "\n".join(["## Limits", "", *lines]) + "\n"


def _weaknesses(meta: Content, evaluation: Content) -> Iterator[str]:
    for name, found in evaluation.get("heads", {"": evaluation} if evaluation else {}).items():
        prefix = f"- {_plain(name)}: " if name else "- "
        if found["outcome"] in ("worse", "not better"):
            yield f"{prefix}A simple baseline does as well: see the results."
        if found["part"] == "val":
            yield f"{prefix}There was no test part, and validation also chose the epoch."
        if found["outcome"] == "too few":
            yield f"{prefix}Too few samples were measured: nothing can be concluded."
    if meta.get("data", {}).get("random_base"):
        yield "- The backbone started from random weights: it is no pretrained model."


def _ranges(meta: Content, provenance: Content) -> Iterator[str]:
    """Yield lengths and labels that the training part had."""
    data = provenance.get("data", {})
    lengths = data.get("lengths", {}).get("numbers", {}).get("train")
    if lengths:
        yield f"- Trained on lengths {lengths['min']:,.0f} to {lengths['max']:,.0f}."
    for name, found in data.get("labels", {}).items():
        numbers = found.get("numbers", {}).get("train")
        if numbers:
            low, high = _number(numbers["min"]), _number(numbers["max"])
            yield f"- Labels{f' of {_plain(name)}' if name else ''} in training: {low} to {high}."
    for one in _heads(meta):
        classes = one["task"].get("state", {}).get("classes")
        if classes:
            shown = ", ".join(map(_plain, classes[:20])) + (", ..." if len(classes) > 20 else "")
            yield f"- Knows the classes {shown}."


def _loading() -> str:
    return (
        "## Use\n\n"
        "```python\nfrom molfun import MolfunStructureModel\n"
        'model = MolfunStructureModel.from_checkpoint("path/to/this/folder")\n```\n'
    )


def _row(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return three_digits(math.nan if value is None else float(value))


def _estimate(found: Content | None) -> str:
    if not found:
        return ""
    low, high = found.get("low"), found.get("high")
    text = _number(found.get("value"))
    return text if low is None or high is None else f"{text} [{_number(low)}, {_number(high)}]"


def _plain(text: object) -> str:
    """Return a user's text without what ends a cell, or begins a tag in Markdown."""
    return str(text).replace("|", "\\|").replace("<", "&lt;").replace("`", "'").replace("\n", " ")
