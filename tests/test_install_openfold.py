"""``molfun install openfold`` with a pretended pip: nothing is downloaded, nothing installed."""

import ast
import doctest
import hashlib
import io
import re
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from molfun.cli import install as script
from molfun.cli.main import app

COMPILING_SETUP = "import nvcc\nsetup(\n    name=\"openfold\",\n    version='2.2.0',\n)\n"


def make_tree(folder: Path, setup: str = COMPILING_SETUP) -> Path:
    """Write a source tree as upstream has it: package, kernels, a setup.py that compiles."""
    kernels = folder / "openfold" / "utils" / "kernel" / "csrc"
    kernels.mkdir(parents=True)
    (kernels / "softmax_cuda.cpp").write_text("#error must not be compiled\n")
    (folder / "openfold" / "__init__.py").write_text("")
    (folder / "openfold" / "utils" / "__init__.py").write_text("")
    (folder / "scripts").mkdir()
    (folder / "scripts" / "utils.py").write_text("")
    (folder / "setup.py").write_text(setup)
    (folder / "LICENSE").write_text("Apache-2.0\n")
    return folder


def run(*arguments: str) -> int:
    """Run the command and give its exit code."""
    with pytest.raises(SystemExit) as end:
        app(["install", "openfold", *arguments])
    return end.value.code


def archive_of(path: Path, *members: tuple[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return path


class Environment:
    """Answers in place of `subprocess.run`: an interpreter with pip, and git."""

    def __init__(self, tmp_path: Path, version: str | None = None) -> None:
        self.version = version
        self.commands: list[list[str]] = []
        self.failure: tuple[str, str] | None = None
        self.upstream = make_tree(tmp_path / "upstream" / "openfold-0.0.1")

    def __call__(self, command, *, cwd, env, **_):
        self.commands.append(command)
        step = next((w for w in ("download", "install", "clone") if w in command), "query")
        if self.failure and self.failure[0] == step:
            return subprocess.CompletedProcess(command, 1, "", self.failure[1])
        answer = getattr(self, f"_{step}")(command, cwd, env)
        return subprocess.CompletedProcess(command, 0, answer or "", "")

    def _query(self, command, cwd, env):
        assert command[1] == "-c"
        return f"{self.version or ''}\n" if "metadata" in command[2] else ""

    def _download(self, command, cwd, env):
        helpers = Path(env["PYTHONPATH"])
        assert (helpers / "scripts" / "utils.py").is_file()
        assert not (cwd / "scripts").exists()  # it would hide the helper
        assert {"--no-deps", "--no-build-isolation", "--no-binary=:all:"} <= set(command)
        wanted = Path(command[command.index("--requirement") + 1]).read_text()
        assert wanted == f"openfold==0.0.1 --hash=sha256:{script.SHA256}\n"
        with tarfile.open(cwd / "openfold-0.0.1.tar.gz", "w:gz") as tar:
            tar.add(self.upstream, "openfold-0.0.1")

    def _clone(self, command, cwd, env):
        assert env["GIT_TERMINAL_PROMPT"] == "0"
        make_tree(Path(command[-1]))

    def _install(self, command, cwd, env):
        assert {"--no-deps", "--no-build-isolation"} <= set(command)
        plain = Path(command[-1])
        assert sorted(p.name for p in plain.iterdir()) == ["LICENSE", "openfold", "setup.py"]
        assert not list(plain.rglob("*.cpp"))
        self.version = script.declared_version(plain)


@pytest.fixture
def environment(tmp_path, monkeypatch):
    fake = Environment(tmp_path)
    monkeypatch.setattr(script.subprocess, "run", fake)
    return fake


def test_examples_run():
    result = doctest.testmod(script)
    assert result.attempted >= 5
    assert result.failed == 0


# --- what is done ------------------------------------------------------------------------------


def test_the_archive_is_installed_and_one_line_says_so(environment, capsys):
    environment.upstream.joinpath("setup.py").write_text("setup(\n    version='0.0.1',\n)\n")
    assert run("--python", "/env/bin/python") == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert re.fullmatch(r"openfold 0\.0\.1 installed from the package index in \d+ s\n", out)
    assert {command[0] for command in environment.commands} == {"/env/bin/python"}


@pytest.mark.parametrize("version", ["0.0.1", "2.2.0"])
def test_an_installed_openfold_is_left_alone(environment, capsys, version):
    environment.version = version
    assert run() == 0
    assert capsys.readouterr().out == f"openfold {version} is already installed; left alone\n"
    assert len(environment.commands) == 1


def test_force_replaces_it(environment, capsys):
    environment.version = "0.0.1"
    assert run("--force") == 0
    assert capsys.readouterr().out.startswith("openfold 2.2.0 installed from the package index")


def test_a_checkout_is_installed_without_git(environment, tmp_path, capsys):
    tree = make_tree(tmp_path / "checkout")
    before = sorted(tree.rglob("*"))
    assert run("--from", str(tree)) == 0
    assert capsys.readouterr().out.startswith(f"openfold 2.2.0 installed from {tree} in ")
    assert sorted(tree.rglob("*")) == before
    assert not any(command[0] == "git" for command in environment.commands)


def test_a_url_is_cloned_at_its_tag(environment):
    assert run("--from", "git+https://example.org/openfold.git@v2.2.0") == 0
    clone = next(command for command in environment.commands if command[0] == "git")
    assert clone[clone.index("--branch") + 1] == "v2.2.0"
    assert clone[-3:-1] == ["--", "https://example.org/openfold.git"]


def test_nothing_is_left_behind(environment, tmp_path, monkeypatch):
    monkeypatch.setattr(script.tempfile, "tempdir", str(tmp_path / "work"))
    (tmp_path / "work").mkdir()
    assert run() == 0
    assert list((tmp_path / "work").iterdir()) == []


# --- what is refused ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("step", "output", "expected"),
    [
        (
            "download",
            "Looking for it\nERROR: No matching distribution found for openfold==0.0.1\n",
            "Error: Download of openfold 0.0.1 failed (No matching distribution found for "
            "openfold==0.0.1). Check pip, its index and setuptools, or pass --from a checkout of "
            "openfold.\n",
        ),
        (
            "install",
            "error: could not write: Permission denied\n",
            "Error: Installing openfold failed (could not write: Permission denied). Check that "
            "/env/bin/python may write to its environment and has setuptools>=77.\n",
        ),
    ],
)
def test_a_failure_is_one_line_with_reason_and_remedy(environment, capsys, step, output, expected):
    environment.failure = (step, output)
    assert run("--python", "/env/bin/python") == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", expected)


def test_a_missing_interpreter_is_one_line(capsys):
    assert run("--python", "/nowhere/python") == 1
    assert capsys.readouterr().err == (
        "Error: Asking /nowhere/python for its packages failed (/nowhere/python: No such file or "
        "directory). Pass a working interpreter with --python.\n"
    )


def test_an_interruption_is_one_line(monkeypatch, capsys):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(script, "provide", interrupted)
    assert run() == 130
    assert capsys.readouterr().err == "Stopped.\n"


@pytest.mark.parametrize("name", ["../outside.py", "openfold-0.0.1/../../outside.py"])
def test_members_that_leave_the_folder_are_refused(tmp_path, name):
    archive = archive_of(tmp_path / "bad.tar.gz", (name, b"x"))
    target = tmp_path / "inner" / "target"
    target.mkdir(parents=True)
    with pytest.raises(script.InstallError, match=r"bad\.tar\.gz was refused .*outside"):
        script.unpack(archive, target)
    assert not list(tmp_path.rglob("outside*"))


def test_an_absolute_name_stays_inside_the_folder(tmp_path):
    target = tmp_path / "target"
    target.mkdir()
    outside = tmp_path / "outside.py"
    archive = archive_of(tmp_path / "bad.tar.gz", (str(outside), b"x"))
    script.unpack(archive, target)
    assert not outside.exists()


def test_links_out_of_the_folder_are_refused(tmp_path):
    with tarfile.open(tmp_path / "bad.tar.gz", "w:gz") as tar:
        link = tarfile.TarInfo("openfold-0.0.1/link")
        link.type, link.linkname = tarfile.SYMTYPE, "../../../secret"
        tar.addfile(link)
    (tmp_path / "target").mkdir()
    with pytest.raises(script.InstallError, match="was refused"):
        script.unpack(tmp_path / "bad.tar.gz", tmp_path / "target")


def test_a_damaged_archive_is_refused(tmp_path):
    (tmp_path / "cut.tar.gz").write_bytes(b"\x1f\x8b\x08 not a tar")
    with pytest.raises(script.InstallError, match=r"cut\.tar\.gz was refused"):
        script.unpack(tmp_path / "cut.tar.gz", tmp_path)


def test_a_tree_without_openfold_or_version_is_refused(tmp_path):
    (tmp_path / "empty").mkdir()
    with pytest.raises(script.InstallError, match="holds no package openfold"):
        script.strip_build(tmp_path / "empty", tmp_path)
    tree = make_tree(tmp_path / "nameless", setup="setup()\n")
    with pytest.raises(script.InstallError, match="declares no version"):
        script.declared_version(tree)


# --- what is written ---------------------------------------------------------------------------


def test_the_written_setup_compiles_nothing(tmp_path):
    plain = script.strip_build(make_tree(tmp_path / "tree"), tmp_path)
    text = (plain / "setup.py").read_text()
    arguments = {
        k.arg for n in ast.walk(ast.parse(text)) if isinstance(n, ast.Call) for k in n.keywords
    }
    assert "ext_modules" not in arguments
    assert "cmdclass" not in arguments
    assert 'version="2.2.0"' in text
    assert script.declared_version(plain) == "2.2.0"


def test_the_version_may_stand_in_pyproject(tmp_path):
    tree = make_tree(tmp_path / "tree", setup="from setuptools import setup\nsetup()\n")
    (tree / "pyproject.toml").write_text('[project]\nname = "openfold"\nversion = "2.3.0"\n')
    assert script.declared_version(tree) == "2.3.0"


def test_the_build_helpers_give_what_upstream_imports(tmp_path):
    for name, text in script._BUILD_HELPERS.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(script.textwrap.dedent(text))
    code = (
        "from torch.utils.cpp_extension import BuildExtension, CppExtension, CUDAExtension, "
        "CUDA_HOME; from scripts.utils import get_nvidia_cc; "
        "assert CUDA_HOME is None; assert get_nvidia_cc()[0] is None; "
        "CppExtension(name='x', sources=['x.cpp'], extra_compile_args={'cxx': ['-O3']})"
    )
    subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(tmp_path)}, cwd=tmp_path, check=True
    )


def test_the_pinned_hash_is_a_sha256():
    assert len(bytes.fromhex(script.SHA256)) == hashlib.sha256().digest_size
