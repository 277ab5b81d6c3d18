"""The site is built strictly, its pages are whole, and its notebooks run."""

from __future__ import annotations

import importlib
import importlib.util
import os
import re
import subprocess
import sys
import time
from html.parser import HTMLParser
from pathlib import Path
from types import ModuleType

import pytest
import warm

ROOT = Path(__file__).parents[1]
RAW = re.compile(r"```|\]\(|:::|(?<!\w)\*\*\w[^*]*\*\*|:\w+:$|\.\. \w+::|^#+ ", re.MULTILINE)
"""Marks of Markdown and reStructuredText that no reader should see."""
NOTEBOOKS = sorted((ROOT / "docs/notebooks").glob("*.py"))


def hook() -> ModuleType:
    """Load the hook of mkdocs, each time with empty caches."""
    spec = importlib.util.spec_from_file_location("docs_site", ROOT / "docs/site.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SITE = hook()


@pytest.mark.parametrize("package", SITE.packages())
def test_every_public_name_is_in_the_reference(package: str) -> None:
    public = set(importlib.import_module(package).__all__) - {"__version__"}
    assert set(SITE.declared(package)) == public
    assert not SITE.undocumented(package)
    for name, origin in SITE.declared(package).items():
        home = SITE.home(origin)
        if home == package:
            assert f"::: {origin}\n" in SITE.reference(package)
        else:
            assert f"[`{name}`][{origin}]" in SITE.reference(package)
            assert home in SITE.MODULES or f"::: {origin}\n" in SITE.reference(home)


@pytest.mark.parametrize("page", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))])
def test_what_a_page_imports_is_public(page: Path) -> None:
    """All that a user meets is in `molfun` or a named sub-package, and so in the reference."""
    modules = set(re.findall(r"^ *from (molfun[\w.]*) import", page.read_text(), re.MULTILINE))
    legacy = {"molfun.models.structure"}  # the path of the facade in published guides
    assert modules <= {*SITE.packages(), *SITE.MODULES, *legacy}


def test_names_without_docstring_or_place_are_found(tmp_path: Path) -> None:
    """The checks above fail for a package that hides a name, and the build stops."""
    toy = tmp_path / "molfun/toy"
    toy.mkdir(parents=True)
    (toy / "__init__.py").write_text('__all__ = ["Bare", "Told", "LIMIT"]\n')
    (toy / "__init__.pyi").write_text(
        "from molfun.toy.parts import Bare as Bare\n"
        "from molfun.toy.parts import LIMIT as LIMIT\n"
        "from molfun.toy.parts import Told as Told\n"
    )
    (toy / "parts.py").write_text('class Bare: ...\n\n\nclass Told:\n    """A."""\n\n\nLIMIT = 3\n')
    site = hook()
    site.ROOT = tmp_path
    assert site.undocumented("molfun.toy") == [
        "molfun.toy.Bare (molfun.toy.parts)",
        "molfun.toy.LIMIT (molfun.toy.parts)",
    ]
    assert "::: molfun.toy.parts.Told" in site.reference("molfun.toy")
    errors = pytest.importorskip("mkdocs.exceptions", reason="make docs installs it")
    with pytest.raises(errors.PluginError, match=r"without a docstring: molfun\.toy\.Bare"):
        site.on_files(None, None)


class Page(HTMLParser):
    """What a reader sees of a page, without its code, and where its parts are."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.title = ""
        self.ids: set[str] = set()
        self.links: list[str] = []
        self.words: list[str] = []
        self.highlighted = self.blocks = 0
        self._open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.ids |= {values["id"] or ""} if "id" in values else set()
        self.links += [values["href"] or ""] if tag == "a" and "href" in values else []
        self.blocks += tag == "pre"
        self.highlighted += "highlight" in (values.get("class") or "").split() and tag == "div"
        if tag in ("script", "style", "pre", "code", "title"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if self._open and self._open[-1] == tag:
            self._open.pop()

    def handle_data(self, data: str) -> None:
        if not self._open:
            self.words.append(data)
        elif self._open[-1] == "title":
            self.title += data


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the site strictly: no broken link or anchor, no page outside the navigation."""
    pytest.importorskip("mkdocstrings", reason="make docs installs it")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.fixture(scope="module")
def pages(site: Path) -> dict[Path, Page]:
    return {file: Page(file.read_text()) for file in site.rglob("index.html")}


@pytest.mark.slow
def test_the_reference_has_a_place_for_every_public_name(
    site: Path, pages: dict[Path, Page]
) -> None:
    for package in SITE.packages():
        for origin in SITE.declared(package).values():
            page = pages[site / "reference" / SITE.home(origin) / "index.html"]
            assert str(origin) in page.ids, origin


@pytest.mark.slow
def test_pages_are_whole(pages: dict[Path, Page]) -> None:
    assert len(pages) > len(SITE.packages()) + len(NOTEBOOKS)
    for file, page in pages.items():
        seen = "".join(page.words)
        assert page.title, file
        assert not (raw := RAW.search(seen)), (file, raw)
        assert page.highlighted >= page.blocks, (file, "a block of code without colours")
        for link in page.links:
            path, _, anchor = link.partition("#")
            if path.startswith(("http:", "https:", "mailto:")):
                continue
            target = (file.parent / path).resolve() if path else file.parent
            target = target / "index.html" if target.is_dir() else target
            assert target.is_file(), (file, link)
            if anchor and target in pages:
                assert anchor in pages[target].ids, (file, link)


class Kernel(warm.Process):
    """A kernel in a fork, with what its manager reads of `subprocess.Popen`."""

    stdin = stdout = stderr = None  # type: ignore[assignment]  # it closes the pipes that there are


KERNEL = """
import os, runpy
os.setsid()  # signals to the kernel go to its process group
runpy.run_module("ipykernel_launcher", run_name="__main__", alter_sys=True)
"""


def start_kernel(folder: Path, command: list[str], *, cwd: str, env: dict[str, str]) -> Kernel:
    """Start what `make docs` starts, without the import of torch and the project in each."""
    assert command[1:3] == ["-m", "ipykernel_launcher"]
    kernel = Kernel("-c", KERNEL, *command[3:], cwd=cwd, env=env, output=folder)
    while os.getpgid(kernel.pid) != kernel.pid:
        time.sleep(0.01)
    return kernel


@pytest.mark.slow
@pytest.mark.parametrize("source", NOTEBOOKS, ids=lambda p: p.stem)
def test_a_notebook_runs(source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("jupytext", reason="pip install 'molfun[notebooks]'")
    pytest.importorskip("nbclient", reason="pip install 'molfun[notebooks]'")
    monkeypatch.setattr(
        "jupyter_client.provisioning.local_provisioner.launch_kernel",
        lambda command, *, cwd, env, **_: start_kernel(tmp_path, command, cwd=cwd, env=env),
    )
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    page = SITE.tutorial(source, run=True)
    assert page.startswith("# ")
    assert page.count('```text title="Output"') >= 2
    assert "Traceback" not in page
