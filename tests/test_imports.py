"""The architecture as a test: imports are read with `ast` and held against the one-way arrow.

commands -> training, evaluation -> report, text -> models, losses, metrics, optim, prompts, data
-> config, geometry, errors. CONTRIBUTING.md draws it and says why.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGE = REPOSITORY / "rtsam_jax"

# What every part may use. These three themselves import nothing of the project but `errors`.
BASE = frozenset({"errors", "config", "config_ranges", "geometry"})
PARTS = frozenset(
    {"compilation", "models", "weights", "losses", "metrics", "optim", "prompts", "data"}
)
SERVICES = frozenset(
    {"report", "text", "evaluation", "training", "planning", "benchmark", "rivals", "ablation"}
    | {"prediction", "flags"}
)
COMMANDS = frozenset(
    {"train", "evaluate", "prepare", "bench", "plan", "baselines", "interact", "ablate"}
    | {"predict", "export"}
)

# Part -> what it may import of rtsam_jax besides itself; a dotted entry allows that one module.
ALLOWED: dict[str, frozenset[str]] = {
    "errors": frozenset(),
    "geometry": frozenset({"errors"}),
    "config": frozenset({"errors", "config_ranges"}),
    "config_ranges": frozenset({"errors", "config"}),  # the latter for type checkers alone
    "models": BASE,
    "weights": BASE,
    "compilation": frozenset({"data.user_cache"}),
    "losses": BASE,
    "metrics": BASE,
    "optim": BASE,
    "prompts": BASE,
    "data": BASE | {"prompts.dose", "prompts.record"},
    "report": BASE | PARTS,
    "text": BASE | PARTS,
    "evaluation": BASE | PARTS | {"report", "text"},
    "training": BASE | PARTS | {"report", "flags"},
    "prediction": BASE | PARTS | {"training", "evaluation", "report", "text", "flags"},
    "planning": BASE | PARTS | {"report", "training"},
    "benchmark": BASE | PARTS | {"training", "evaluation", "report", "prediction"},
    "rivals": BASE | PARTS | {"training", "evaluation", "report", "text"},
    "ablation": BASE | PARTS | {"training", "evaluation", "report", "flags"},
    "flags": BASE,
    **{name: BASE | PARTS | SERVICES for name in COMMANDS},
}

# A run's checkpoints, and plain weights on disk: the only files that know the storage library.
ORBAX = frozenset({"training/checkpoint.py", "training/stored.py", "weights.py"})

# Installed by extras only. `benchmark` times PyTorch's side in the same process: it imports it
# inside a function, so that the module itself loads without torch.
FOREIGN = frozenset({"torch", "transformers", "monai", "medim", "SimpleITK"})
FOREIGN_IN_FUNCTIONS = {
    "benchmark": frozenset({"torch", "medim", "monai"}),
    "data": frozenset({"SimpleITK"}),  # NRRD and MetaImage
    "rivals": frozenset({"torch", "monai"}),
    "text": frozenset({"transformers"}),  # the tokenizer, where features are not cached yet
}


def imported(source: str, module: str, is_package: bool) -> Iterator[tuple[str, bool]]:
    """Yields (absolute dotted name, whether at module level) for each import in `source`.

    `from a import b` yields both `a` and `a.b`, since `b` may be a module.
    """
    tree = ast.parse(source)
    inner = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef)
        for node in ast.walk(function)
    }
    for node in ast.walk(tree):
        top = id(node) not in inner
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield alias.name, top
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parents = module.split(".")[: None if is_package else -1]
                parents = parents[: len(parents) - (node.level - 1)]
                base = ".".join([*parents, base] if base else parents)
            yield base, top
            for alias in node.names:
                yield f"{base}.{alias.name}", top


def permits(allowed: frozenset[str], target: str) -> bool:
    """Whether `target` (dotted, without `rtsam_jax.`) lies in an allowed part or module."""
    return any(target == name or target.startswith(name + ".") for name in allowed)


def violations(source: str, path: str) -> list[str]:
    """Names what `source` at `path` inside rtsam_jax (`data/nifti.py`) must not import."""
    parts = Path(path).with_suffix("").parts
    is_package = parts[-1] == "__init__"
    module = ".".join(["rtsam_jax", *(parts[:-1] if is_package else parts)])
    part = parts[0]
    if part == "__init__":
        allowed: frozenset[str] = frozenset()
    elif part in ALLOWED:
        allowed = ALLOWED[part] | {part}
    else:
        return [f"rtsam_jax/{path}: a new part; give it a row in ALLOWED"]

    found = []
    for name, top in imported(source, module, is_package):
        root, _, rest = name.partition(".")
        if root in ("converters", "configs", "tests"):
            found.append(f"rtsam_jax/{path} imports {name}: nothing in the package uses {root}")
        elif root in FOREIGN and (top or root not in FOREIGN_IN_FUNCTIONS.get(part, ())):
            found.append(f"rtsam_jax/{path} imports {name}: an extra, not there at run time")
        elif root == "orbax" and path not in ORBAX:
            found.append(f"rtsam_jax/{path} imports {name}: only {sorted(ORBAX)} may")
        elif root == "rtsam_jax" and rest and not permits(allowed, rest):
            # `from rtsam_jax.prompts import dose` yields `prompts` first: the rest decides.
            if not any(entry.startswith(rest + ".") for entry in allowed):
                found.append(f"rtsam_jax/{path} imports {name}: against the arrow")
    return sorted(set(found))


@pytest.mark.parametrize(
    "path", sorted(PACKAGE.rglob("*.py")), ids=lambda path: str(path.relative_to(PACKAGE))
)
def test_imports_follow_the_arrow(path: Path) -> None:
    assert violations(path.read_text(), path.relative_to(PACKAGE).as_posix()) == []


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("models/sam3d.py", "from rtsam_jax.data import cases"),
        ("models/sam3d.py", "import rtsam_jax.prompts.dose"),
        ("models/sam3d.py", "from ..data.nifti import Volume"),
        ("models/__init__.py", "from ..prompts import dose"),
        ("data/pipeline.py", "from rtsam_jax.models.sam3d import SAM3D"),
        ("data/pipeline.py", "from rtsam_jax.prompts.clicks import refine"),
        ("data/phantom/head.py", "from ...models import presets"),
        ("prompts/clicks.py", "def f():\n    from rtsam_jax import models"),
        ("losses.py", "from rtsam_jax.models import layers"),
        ("metrics/overlap.py", "import rtsam_jax.report"),
        ("report/tables.py", "from rtsam_jax.training import loop"),
        ("training/loop.py", "from rtsam_jax import train"),
        ("training/loop.py", "from rtsam_jax.evaluation import scoring"),
        ("errors.py", "from rtsam_jax.config import ModelConfig"),
        ("config.py", "from rtsam_jax.models.presets import PRESETS"),
        ("models/sam3d.py", "from rtsam_jax.weights import flatten"),
        ("training/state.py", "from orbax.checkpoint import v1 as ocp"),
        ("training/state.py", "from converters import sam_med3d"),
        ("models/sam3d.py", "def f():\n    import torch"),
        ("benchmark/rival.py", "import torch"),
        ("bench.py", "def f():\n    import torch"),
        ("helpers.py", "import os"),
    ],
)
def test_a_forbidden_import_is_found(path: str, source: str) -> None:
    assert violations(source, path)


@pytest.mark.parametrize(
    ("path", "source"),
    [
        ("data/preprocess.py", "from rtsam_jax.prompts import dose"),
        ("data/preprocess.py", "from rtsam_jax.prompts.dose import dmax"),
        ("models/sam3d.py", "from . import layers\nfrom .attention import attend"),
        ("training/checkpoint.py", "from orbax.checkpoint import v1 as ocp"),
        ("training/state.py", "from rtsam_jax.weights import load_weights"),
        ("benchmark/rival.py", "def f():\n    import torch"),
        ("benchmark/augmentation.py", "def f():\n    from monai import transforms"),
        ("train.py", "from rtsam_jax.training.loop import run"),
    ],
)
def test_an_allowed_import_is_not(path: str, source: str) -> None:
    assert violations(source, path) == []


def test_configs_and_converters_stay_outside() -> None:
    """Config files use rtsam_jax.config alone; converters use rtsam_jax.weights, not Orbax."""
    for path in sorted((REPOSITORY / "configs").glob("*.py")):
        names = [name for name, _ in imported(path.read_text(), f"configs.{path.stem}", False)]
        ours = {name for name in names if name.startswith("rtsam_jax.")}
        assert all(permits(frozenset({"config"}), n.removeprefix("rtsam_jax.")) for n in ours), path
    for path in sorted((REPOSITORY / "converters").rglob("*.py")):
        names = [name for name, _ in imported(path.read_text(), f"converters.{path.stem}", False)]
        assert not [name for name in names if name.split(".")[0] == "orbax"], path


def test_no_module_is_a_drawer() -> None:
    """A file called utils gathers what nobody placed."""
    drawers = {"utils", "util", "helpers", "misc", "common"}
    assert [path for path in PACKAGE.rglob("*.py") if path.stem in drawers] == []


def test_importing_everything_loads_no_foreign_framework() -> None:
    """What `ast` cannot see: torch arriving through a library that imports it where it can."""
    program = """
import importlib, pkgutil, sys
import rtsam_jax
for info in pkgutil.walk_packages(rtsam_jax.__path__, "rtsam_jax."):
    if not info.name.endswith("__main__"):
        importlib.import_module(info.name)
print(sorted({"torch", "transformers", "monai", "medim", "SimpleITK"} & set(sys.modules)))
"""
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=REPOSITORY, capture_output=True, text=True
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == "[]"
