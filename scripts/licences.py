"""Write docs/licences.md: all packages that come with Molfun and its extras, and their licences.

Run it in an environment with all extras: ``.venv/bin/python scripts/licences.py``. Licences are
those that the packages state in their metadata.
"""

from __future__ import annotations

import re
import sys
from collections import deque
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "licences.md"
OWN = "molfun"
STRICT = ("GPL", "GNU")
"""Words that mark copyleft licences, with conditions for whoever distributes the package."""
KNOWN = {
    "openfold": "Apache-2.0",
    "fair-esm": "MIT",
    "python-hostlist": "GPL-2.0-or-later",
    "mdanalysis": "LGPL-3.0-or-later (LGPL-2.1-or-later in parts)",
    "cuequivariance-torch": "of NVIDIA, see the package",
    "cuequivariance-ops-torch-cu12": "of NVIDIA, see the package",
}
"""Licences that packages state only in their files, or without a version."""
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")
EXTRA = re.compile(r"extra\s*==\s*[\"']([^\"']+)")


def canonical(name: str) -> str:
    """Return a package's name in the form that the index compares (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements(package: str) -> list[tuple[str, str]]:
    """Return the names of a package's requirements, each with its extra or an empty text."""
    found = []
    for line in metadata.requires(package) or []:
        name, extra = NAME.match(line), EXTRA.search(line)
        if name is not None:
            found.append((canonical(name[0]), extra[1] if extra else ""))
    return found


def direct() -> dict[str, list[str]]:
    """Return the direct requirements of Molfun with their extras (none for those always needed)."""
    # no requirement of pyproject.toml: `molfun install openfold` installs it
    found: dict[str, list[str]] = {"openfold": ["openfold"]}
    for name, extra in requirements(OWN):
        found.setdefault(name, []).extend([extra] if extra else [])
    return found


def installed() -> dict[str, str]:
    """Return every installed package with the direct requirement that it came through."""
    found: dict[str, str] = {}
    queue = deque((name, name) for name in direct())
    while queue:
        name, through = queue.popleft()
        if name in found or name == OWN:
            continue
        try:
            needs = requirements(name)
        except metadata.PackageNotFoundError:
            continue
        found[name] = through
        queue.extend((need, through) for need, extra in needs if not extra)
    return found


def licence(name: str) -> str:
    """Return the licence that an installed package states."""
    if name in KNOWN:
        return KNOWN[name]
    try:
        about = metadata.metadata(name)
    except metadata.PackageNotFoundError:
        return "not installed here, see the package"
    texts = [*(about.get_all("License-Expression") or []), *(about.get_all("License") or [])]
    stated = next(iter(texts), "")
    trove = [c.rpartition(" :: ")[2] for c in about.get_all("Classifier") or []
             if c.startswith("License :: ") and not c.endswith("OSI Approved")]  # fmt: skip
    short = " ".join(stated.split())
    return short if 0 < len(short) <= 60 else ", ".join(trove) or f"{short[:50]}..."


def page() -> str:
    """Return the text of the document."""
    own, found = direct(), installed()
    lines = [
        "# Licences",
        "",
        "Molfun is under Apache-2.0. The only code of others in it is 3Dmol.js 2.5.5",
        "(BSD-3-Clause, with parts of GLmol and three.js under MIT; `molfun/report/assets`), which",
        "shows structures in reports. Installing it brings these",
        "packages along, each under its own licence (as the packages state them; written by",
        "`scripts/licences.py`).",
        "",
        "Those under the GPL or LGPL:",
        "",
    ]
    names = sorted({*found, *own})
    for name in [n for n in names if any(word in licence(n) for word in STRICT)]:
        origin = found.get(name, name)
        place = f"the extra `{own[origin][0]}`" if own[origin] else "every installation"
        through = "" if origin == name else f", through {origin}"
        lines.append(f"- **{name}**: {licence(name)}. Comes with {place}{through}.")
    lines += ["", "| package | licence | comes with |", "|---|---|---|"]
    for name in names:
        extras = own.get(name)
        place = f"through {found[name]}" if extras is None else ", ".join(extras) or "always"
        lines.append(f"| {name} | {licence(name)} | {place} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(), encoding="utf-8")
    print(f"{PAGE.relative_to(ROOT)}: {len(installed())} packages")
    return 0


if __name__ == "__main__":
    sys.exit(main())
