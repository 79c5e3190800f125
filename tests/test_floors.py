"""Imports go down only: what each folder may know, read from every import of every module, lazy ones included.

Counted are imports anywhere in a file, names of modules in strings (`importlib.import_module("...")`, `python -m`), and those
in yaml (`pkg://...`, `_target_`).
"""

import ast
import graphlib
import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
# Floor -> the floors below it that it may know. A floor that is not named here (cli, main) stands on all of them.
BELOW = {
    "verl_ext": set(),
    "data": {"verl_ext"},
    "config": {"verl_ext"},
    "core": set(),
    "presets": {"core"},
    "checkpoint": {"core", "verl_ext"},
    "runs": {"presets", "checkpoint", "verl_ext"},
    "report": {"core", "runs", "presets", "verl_ext"},
    "experience": {"core", "checkpoint", "verl_ext"},
    "lab": {"core", "presets", "report", "verl_ext"},
    "checks": {"core", "presets", "checkpoint", "experience", "runs", "verl_ext"},
    "browse": {"core", "checkpoint", "runs", "verl_ext"},
    "doctor": {"core", "presets", "checks", "runs", "verl_ext"},
    "trainer": {"core", "checkpoint", "experience", "runs", "verl_ext"},
}
TOP = {"cli", "main"}
CORE_MAY_IMPORT = {"numpy", "torch"}  # besides the standard library and itself
NAME = re.compile(r"(?:pkg://)?((?:recipe|verl_ext)(?:[./]\w+)+)(?::\w+)?")  # a module of ours in a string


@dataclass(frozen=True)
class Arrow:
    """`file` (relative to the root) knows the module `target`, by its dotted name."""

    file: str
    target: str

    def __str__(self) -> str:
        return f"{self.file} -> {self.target}"


def arrows(root: Path) -> list[Arrow]:
    """Every arrow of the tree below `root`, those to other packages included."""
    found = set()
    for top in ("recipe", "verl_ext", "data"):
        for path in (root / top).rglob("*"):
            if path.suffix == ".py":
                names = _imported(path, root)
            elif path.suffix in (".yaml", ".yml"):
                names = _named(_scalars(yaml.safe_load(path.read_text(encoding="utf-8"))))
            else:
                continue
            found |= {Arrow(str(path.relative_to(root)), name) for name in names}
    return sorted(found, key=str)


def _imported(path: Path, root: Path) -> Iterator[str]:
    package = path.parent.relative_to(root).parts
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])])
            yield from (_module(f"{module}.{alias.name}", root) for alias in node.names)
        elif isinstance(node, ast.Call) and _called(node) in ("import_module", "__import__", "find_spec"):
            yield from (a.value for a in node.args[:1] if isinstance(a, ast.Constant) and isinstance(a.value, str))
        elif isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield from _named([node.value])


def _called(node: ast.Call) -> str:
    return node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")


def _named(texts) -> Iterator[str]:
    yield from (match[1].replace("/", ".") for match in map(NAME.fullmatch, texts) if match)


def _scalars(node) -> Iterator[str]:
    if isinstance(node, dict):
        for key, value in node.items():
            yield from (*_scalars(key), *_scalars(value))
    elif isinstance(node, list):
        for value in node:
            yield from _scalars(value)
    elif isinstance(node, str):
        yield node


def _module(name: str, root: Path) -> str:
    """`name` if it is a module of ours, else the module that it is a name in: `from a.b import c` may mean either."""
    path = root.joinpath(*name.split("."))
    return name if path.is_dir() or path.with_suffix(".py").is_file() else name.rpartition(".")[0]


def floor(parts: tuple[str, ...]) -> str | None:
    """The floor of a file's or module's path; None outside ours, and for the packages `recipe` and `recipe.exgrpo` alone."""
    if parts[0] in ("verl_ext", "data"):
        return parts[0]
    return parts[2].removesuffix(".py") if parts[:2] == ("recipe", "exgrpo") and len(parts) > 2 else None


def upward(found: list[Arrow]) -> list[str]:
    """The arrows that go up, or sideways."""
    wrong = []
    for arrow in found:
        here, there = floor(Path(arrow.file).parts), floor(tuple(arrow.target.split(".")))
        if here not in TOP and there not in (None, here) and there not in BELOW.get(here, set()):
            wrong.append(str(arrow))
    return wrong


def strangers(found: list[Arrow]) -> list[str]:
    """What `core` imports besides numpy, torch, the standard library and itself."""
    known = CORE_MAY_IMPORT | sys.stdlib_module_names | {"recipe"}
    return [
        str(arrow)
        for arrow in found
        if floor(Path(arrow.file).parts) == "core" and arrow.target.partition(".")[0] not in known
    ]


def circle(found: list[Arrow], root: Path) -> list[str]:
    """Folders that know each other in a circle; empty when there is none."""
    graph: dict[str, set[str]] = {}
    for arrow in found:
        path = root.joinpath(*arrow.target.split("."))
        here = str(Path(arrow.file).parent)
        there = path if path.is_dir() else path.parent
        if there.is_dir() and str(there.relative_to(root)) not in (here, "."):
            graph.setdefault(here, set()).add(str(there.relative_to(root)))
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return error.args[1]
    return []


# ---- this tree


@pytest.fixture(scope="module")
def here() -> list[Arrow]:
    return arrows(ROOT)


def test_every_folder_has_its_floor():
    wings = {
        path.name for path in (ROOT / "recipe" / "exgrpo").iterdir() if path.is_dir() and path.name != "__pycache__"
    }
    assert wings == set(BELOW) - {"verl_ext", "data"} | {"cli"}


def test_no_arrow_goes_up(here):
    assert upward(here) == []


def test_core_needs_numpy_and_torch_alone(here):
    assert strangers(here) == []


def test_no_folders_know_each_other_in_a_circle(here):
    assert circle(here, ROOT) == []


def test_the_arrows_that_are_known_to_be_there_are_seen(here):
    """Of every kind: at the top of a file, in a function, in yaml, and as a module to be run."""
    assert {
        Arrow("recipe/exgrpo/checks/memory.py", "recipe.exgrpo.core.policies"),
        Arrow("recipe/exgrpo/main.py", "recipe.exgrpo.trainer.task_runner"),
        Arrow("recipe/exgrpo/config/exgrpo_trainer.yaml", "verl_ext.rewards"),
        Arrow("verl_ext/agent_loops.yaml", "verl_ext.agent_loop.SeededSingleTurnAgentLoop"),
        Arrow("verl_ext/evaluation/shards.py", "verl_ext.evaluation.worker"),
    } <= set(here)


# ---- trees in which something is wrong


@pytest.fixture
def tree(tmp_path):
    """tree({path: content}) -> the arrows of a tree with these files."""

    def make(files: dict[str, str]) -> list[Arrow]:
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).write_text(content)
        return arrows(tmp_path)

    return make


@pytest.mark.parametrize(
    ("file", "content", "target"),
    [
        ("recipe/exgrpo/core/a.py", "def f():\n    from recipe.exgrpo.trainer.b import g\n", "recipe.exgrpo.trainer"),
        ("recipe/exgrpo/core/buffer/a.py", "import verl_ext.files\n", "verl_ext.files"),
        ("recipe/exgrpo/presets/a.py", "from ..checks import findings\n", "recipe.exgrpo.checks"),
        ("recipe/exgrpo/presets/a.py", "from recipe.exgrpo import lab\n", "recipe.exgrpo"),
        ("recipe/exgrpo/runs/a.py", "class A:\n    def f(self):\n        import recipe.exgrpo.report.parts as p\n",
         "recipe.exgrpo.report.parts"),
        ("recipe/exgrpo/report/a.py", "if TYPE_CHECKING:\n    from recipe.exgrpo.lab.grid import Axes\n", "recipe.exgrpo.lab"),
        ("verl_ext/a.py", 'import importlib\nimportlib.import_module("recipe.exgrpo.lab.grid")\n', "recipe.exgrpo.lab.grid"),
        ("verl_ext/b/a.py", 'command = ["python", "-m", "recipe.exgrpo.main"]\n', "recipe.exgrpo.main"),
        ("verl_ext/a.yaml", "- name: x\n  _target_: recipe.exgrpo.trainer.x.Loop\n", "recipe.exgrpo.trainer.x.Loop"),
        ("recipe/exgrpo/config/a.yaml", "path: pkg://recipe.exgrpo.lab.reward\n", "recipe.exgrpo.lab.reward"),
        ("recipe/exgrpo/core/a.py", 'POLICY = "recipe.exgrpo.lab.mine:Policy"\n', "recipe.exgrpo.lab.mine"),
        ("data/a.py", "from recipe.exgrpo.core import config\n", "recipe.exgrpo.core"),
    ],
)  # fmt: skip
def test_an_arrow_that_goes_up_is_found(tree, file, content, target):
    wrong = upward(tree({file: content, "recipe/exgrpo/lab/__init__.py": "", "recipe/exgrpo/checks/__init__.py": ""}))
    assert len(wrong) == 1
    assert wrong[0].startswith(f"{file} -> {target}")


@pytest.mark.parametrize(
    "content",
    ["import ray\n", "def f():\n    from verl.utils import x\n", "import pandas as pd\n", "__import__('vllm')\n"],
)
def test_a_stranger_in_core_is_found(tree, content):
    found = tree({"recipe/exgrpo/core/policies/a.py": content, "verl_ext/a.py": content})
    assert [text.partition(" -> ")[0] for text in strangers(found)] == ["recipe/exgrpo/core/policies/a.py"]


def test_a_circle_of_folders_is_found(tree, tmp_path):
    """None of these arrows goes up: all are within one floor."""
    found = tree({
        "verl_ext/a/x.py": "from verl_ext.b.y import f\n",
        "verl_ext/b/y.py": "def f():\n    import verl_ext.c.z\n",
        "verl_ext/c/z.py": "from verl_ext import a\n",
        "verl_ext/files.py": "",
        "verl_ext/a/own.py": "from verl_ext.a import x\nfrom verl_ext import files\n",
    })  # fmt: skip
    assert upward(found) == []
    assert set(circle(found, tmp_path)) == {"verl_ext/a", "verl_ext/b", "verl_ext/c"}


def test_a_tree_whose_arrows_go_down_passes(tree, tmp_path):
    found = tree({
        "recipe/exgrpo/core/a.py": '"""As recipe.exgrpo.lab.grid does."""\nimport math\nimport numpy as np\nimport torch.nn\n',
        "recipe/exgrpo/trainer/a.py": "import ray\nfrom recipe.exgrpo.core import a\nfrom verl_ext.files import x\n",
        "recipe/exgrpo/cli/main.py": "from recipe.exgrpo.trainer.a import f\n",
        "recipe/exgrpo/config/a.yaml": "path: pkg://verl_ext.rewards   # not pkg://recipe.exgrpo.lab\n",
        "verl_ext/files.py": "x = 'recipe.exgrpo is not a floor'\n",
    })  # fmt: skip
    assert (upward(found), strangers(found), circle(found, tmp_path)) == ([], [], [])
