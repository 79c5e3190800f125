"""Packaging: the lock, the GPU requirements and the installed package agree, and `make setup` does what it says."""

import importlib.metadata
import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parents[2]
VERSION = importlib.metadata.version("exgrpo")


@pytest.fixture(scope="module")
def make_lock():
    import importlib.util

    spec = importlib.util.spec_from_file_location("make_lock", ROOT / "scripts" / "make_lock.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def lines(name: str) -> list[str]:
    return [line for line in (ROOT / name).read_text().splitlines() if line and not line.startswith("#")]


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def lock() -> dict[str, str]:
    return dict(line.split("==") for line in lines("requirements-cpu.lock"))


# The lock.


def test_the_lock_pins_names_and_versions_only():
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines("requirements-cpu.lock"))


def test_the_lock_meets_every_direct_requirement():
    for line in lines("requirements-cpu.in"):
        requirement = Requirement(line)
        assert requirement.specifier.contains(lock()[normal(requirement.name)], prereleases=True), line


def test_the_lock_leaves_out_what_does_not_work_without_a_gpu(make_lock):
    assert not make_lock.DROPPED.keys() & lock().keys()


def test_the_lock_is_what_is_installed():
    skip = {"torch"}  # installed with a local version
    wrong = {name: v for name, v in lock().items() if name not in skip and importlib.metadata.version(name) != v}
    assert not wrong
    assert importlib.metadata.version("torch").partition("+")[0] == lock()["torch"]


def test_a_report_becomes_sorted_pins_without_local_versions(make_lock):
    found = [("zipp", "4.1"), ("Torch", "2.13.0+cpu"), ("Outlines_Core", "0.2"), ("triton", "3.9")]
    report = {"install": [{"metadata": {"name": name, "version": version}} for name, version in found]}
    pins = make_lock.pins(report)
    assert pins == ["outlines-core==0.2", "torch==2.13.0", "zipp==4.1"]
    text = make_lock.render(pins)
    assert text.endswith("torch==2.13.0\nzipp==4.1\n")
    assert "#   triton: " in text


def gpu_lock() -> dict[str, str]:
    return dict(line.split("==") for line in lines("requirements-gpu.lock"))


def test_the_gpu_lock_pins_names_and_versions_and_meets_every_direct_requirement(make_lock):
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9a-z.]+", line) for line in lines("requirements-gpu.lock"))
    for line in lines("requirements-gpu.txt"):
        requirement = Requirement(line)
        assert requirement.specifier.contains(gpu_lock()[normal(requirement.name)], prereleases=True), line
    assert not make_lock.DROPPED_GPU.keys() & gpu_lock().keys()


def test_both_locks_test_with_the_same_tools():
    tools = ("pytest", "pytest-timeout", "hypothesis", "verl", "transferqueue")
    assert {name: gpu_lock()[name] for name in tools} == {name: lock()[name] for name in tools}


# Which environment a script takes.


@pytest.mark.parametrize(
    ("overrides", "device"),
    [
        ("backbone=luffy", "cuda"),
        ("backbone=luffy hardware=tiny", "cpu"),
        ("hardware=cpu exgrpo.rho=0.3", "cpu"),
        ("hardware=gpu trainer.device=cpu", "cpu"),
        ("hardware=cpu hardware=gpu_4", "cuda"),
    ],
)
def test_the_environment_is_the_one_the_run_needs_and_is_said(tmp_path, overrides, device):
    """After `make demo` there is a .venv for CPU, which a GPU run must not take; and the other way round."""
    for name in (".venv", ".venv-gpu"):
        (tmp_path / name / "bin").mkdir(parents=True)
        (tmp_path / name / "bin" / "python").write_text("#!/bin/sh\n")
        (tmp_path / name / "bin" / "python").chmod(0o755)
    script = f'source {ROOT}/scripts/environment.sh; choose_python "$(device_of {overrides})"; echo "$PYTHON"'
    run = {"cwd": tmp_path, "capture_output": True, "text": True, "check": True}
    environment = {key: value for key, value in os.environ.items() if key != "PYTHON"}
    done = subprocess.run(["bash", "-euc", script], env=environment, **run)
    wanted = ".venv-gpu/bin/python" if device == "cuda" else ".venv/bin/python"
    assert (done.stdout, done.stderr) == (f"{wanted}\n", f"environment for {device}: {wanted}\n")
    shutil.rmtree(tmp_path / Path(wanted).parts[0])
    assert subprocess.run(["bash", "-euc", script], env=environment, **run).stdout == "python\n"
    assert subprocess.run(["bash", "-euc", script], env=environment | {"PYTHON": "p"}, **run).stdout == "p\n"


def test_setup_gpu_installs_its_lock_and_refuses_another_python(tree):
    shutil.copy(ROOT / "scripts" / "setup_gpu.sh", tree / "scripts" / "setup_gpu.sh")
    shutil.copy(ROOT / "requirements-gpu.lock", tree / "requirements-gpu.lock")
    python = tree / "python3.12"
    python.write_text("#!/bin/sh\nexit 0\n")
    python.chmod(0o755)
    command = ["bash", tree / "scripts" / "setup_gpu.sh"]
    run = {"capture_output": True, "text": True, "check": False}
    environment = os.environ | {"VENV": ".venv", "PYTHON": str(python)}
    done = subprocess.run(command, env=environment, **run)
    assert done.returncode == 0, done.stderr
    assert any(call.endswith("--no-deps -r requirements-gpu.lock") for call in calls(tree))
    assert "up to date" in subprocess.run(command, env=environment, **run).stdout
    built = subprocess.run(command, env=environment | {"FLASH_ATTN": "/w/flash.whl"}, **run)
    assert built.returncode == 0
    assert any(call.endswith("--no-deps /w/flash.whl") for call in calls(tree))
    python.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.13.1"\nexit 1\n')
    refused = subprocess.run(command, env=environment | {"FLASH_ATTN": "build"}, **run)
    assert (refused.returncode, "needs Python 3.12 (found: Python 3.13.1)" in refused.stderr) == (1, True)


# verl's version, everywhere.


def test_every_file_names_one_verl():
    required = dict(line.split("=", 1) for line in lines("recipe/exgrpo/REQUIRED_VERL.txt"))
    assert required["VERSION"] == lock()["verl"] == importlib.metadata.version("verl")
    assert f"verl=={required['VERSION']}" in lines("requirements-gpu.txt")
    assert required["PIP_INSTALL"] == f"pip install verl=={required['VERSION']}"


def test_the_gpu_versions_are_the_ones_verl_pins():
    ours = {normal(r.name): r for r in map(Requirement, lines("requirements-gpu.txt"))}
    pinned = {"torch", "torchvision", "torchaudio", "vllm", "transformers"}
    seen = set()
    for line in importlib.metadata.requires("verl"):
        verls = Requirement(line)
        extras = [e for e in ("vllm", "fsdp") if verls.marker and f'"{e}"' in str(verls.marker)]
        if extras and normal(verls.name) in pinned and str(verls.specifier):
            assert ours[normal(verls.name)].specifier == verls.specifier, line
            seen.add(normal(verls.name))
    assert seen == pinned


def test_every_file_names_one_version_of_ours():
    """A tag is made of it."""
    assert f'    version="{VERSION}",' in lines("setup.py")
    assert re.search(r"^## ([0-9.]+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)[1] == VERSION
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert {citation["version"], citation["preferred-citation"]["version"]} == {VERSION}
    assert f"version = {{{VERSION}}}" in (ROOT / "README.md").read_text()


# The installed package.


def test_the_package_is_this_tree_from_any_folder():
    code = "import recipe.exgrpo, verl_ext; print(recipe.__file__, verl_ext.__file__)"
    done = subprocess.run([sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(ROOT / "recipe/__init__.py"), str(ROOT / "verl_ext/__init__.py")]


def test_the_distribution_has_its_extras_and_its_command():
    distribution = importlib.metadata.distribution("exgrpo")
    assert {"gpu", "dev"} <= set(distribution.metadata.get_all("Provides-Extra"))
    assert {e.name: e.value for e in distribution.entry_points} == {"exgrpo": "recipe.exgrpo.cli.main:main"}


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    """The wheel that pip builds of this tree."""
    folder = tmp_path_factory.mktemp("wheel")
    shutil.copytree(ROOT, folder / "t", ignore=shutil.ignore_patterns(".*", "outputs", "build", "*.egg-info", "docs"))
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "-q",
        "--no-deps",
        "--no-build-isolation",
        "-w",
        folder,
        folder / "t",
    ]
    subprocess.run(command, check=True, capture_output=True)
    with zipfile.ZipFile(next(folder.glob("exgrpo-*.whl"))) as file:
        yield file


def test_yaml_and_text_files_are_package_data(wheel):
    """A wheel holds every data file of the packages, and none of the other folders."""
    names = set(wheel.namelist())
    data = [
        p for top in ("recipe", "verl_ext") for p in (ROOT / top).rglob("*") if p.suffix in {".yaml", ".txt", ".py"}
    ]
    assert {str(path.relative_to(ROOT)) for path in data} <= names
    assert {name.split("/")[0] for name in names} == {"recipe", "verl_ext", f"exgrpo-{VERSION}.dist-info"}


def test_the_oldest_python_is_the_one_the_code_is_written_for(wheel):
    """The code uses datetime.UTC, hashlib.file_digest and contextlib.chdir, which 3.10 does not have."""
    metadata = wheel.read(f"exgrpo-{VERSION}.dist-info/METADATA").decode().splitlines()
    assert {"Requires-Python: <3.13,>=3.11", "Requires-Python: >=3.11,<3.13"} & set(metadata)
    assert "Classifier: Programming Language :: Python :: 3.11" in metadata
    assert 'target-version = "py311"' in lines("pyproject.toml")


# `make setup`, with a stub for the environment's Python that writes down its calls.

STUB = """#!/bin/sh
echo "$@" >>"{calls}"
case "$*" in *torch.version.cuda*) exit {cuda} ;; esac
"""


@pytest.fixture
def tree(tmp_path):
    """A copy of what `make setup` reads, with an environment that is a stub."""
    for name in ("requirements-cpu.lock", "setup.py", "scripts/setup_cpu.sh", "scripts/setup_common.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    stub(tmp_path)
    return tmp_path


def stub(tree: Path, cuda: int = 0) -> None:
    python = tree / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(STUB.format(calls=tree / "calls", cuda=cuda))
    python.chmod(0o755)


def setup(tree: Path, **env: str) -> subprocess.CompletedProcess:
    environment = {key: value for key, value in os.environ.items() if key not in {"VENV", "PYTHON"}} | env
    command = ["bash", tree / "scripts" / "setup_cpu.sh"]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def calls(tree: Path) -> list[str]:
    path = tree / "calls"
    found = path.read_text().splitlines() if path.exists() else []
    path.unlink(missing_ok=True)
    return found


def test_setup_installs_the_lock_without_dependencies_then_this_tree(tree):
    done = setup(tree)
    assert done.returncode == 0, done.stderr
    assert f"installing {len(lock())} pinned packages" in done.stdout
    install, _, editable, _ = calls(tree)
    assert install.endswith("--no-deps -r requirements-cpu.lock")
    assert "--no-deps --no-build-isolation --config-settings editable_mode=compat -e ." in editable


def test_a_second_setup_does_nothing_until_the_lock_changes(tree):
    setup(tree)
    calls(tree)
    again = setup(tree)
    assert (again.returncode, again.stdout, calls(tree)) == (0, "setup: .venv is up to date\n", [])
    with (tree / "requirements-cpu.lock").open("a") as file:
        file.write("new==1.0\n")
    setup(tree)
    assert len(calls(tree)) == 4


def test_a_failed_setup_is_not_taken_for_a_finished_one(tree):
    stub(tree, cuda=1)
    done = setup(tree)
    assert done.returncode == 1
    assert "PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu make setup" in done.stderr
    assert any("uninstall" in call and call.endswith("torch") for call in calls(tree))
    stub(tree)
    assert setup(tree).returncode == 0
    assert len(calls(tree)) == 4


def test_another_python_is_refused_by_name(tree):
    old = tree / "python3.9"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo "Python 3.9.1"\nexit 1\n')
    old.chmod(0o755)
    done = setup(tree, PYTHON=str(old))
    assert done.returncode == 1
    assert "needs Python 3.11 (found: Python 3.9.1)" in done.stderr
    assert calls(tree) == []


def test_make_names_its_targets():
    done = subprocess.run(["make", "-s"], cwd=ROOT, capture_output=True, text=True, check=True)
    targets = {"setup-gpu", "lock-gpu", "test-gpu-env", "gpu-smoke"}
    targets |= {
        "help",
        "setup",
        "demo",
        "test",
        "test-fast",
        "test-long",
        "test-scripts",
        "mutants",
        "lint",
        "lock",
        "clean",
    }
    assert {line.split()[1] for line in done.stdout.splitlines()} == targets
