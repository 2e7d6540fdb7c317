"""The house's order: a file imports only from lower floors (see the table), and nothing imports in a circle."""

import ast
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import clipvid

ROOT = Path(clipvid.__file__).parent
TOP = 7

# Floor of each module; a folder stands for all files in it that are not named themselves.
FLOORS = {
    "choices": 0,
    "attention": 0,
    "state_dicts": 0,
    "adapters": 0,
    "prompts": 0,
    "metrics": 0,
    "cost": 0,
    "data.sampling": 0,
    "backbone": 1,
    "data": 1,
    "encoder": 2,
    "heads": 2,
    "tuning": 2,
    "model": 3,
    "saving": 3,
    "builder": 4,
    "objectives": 4,
    "optim": 4,
    "engine": 4,
    "checkpoint": 4,
    "batch_size": 4,
    "divergence": 4,
    "loop": 4,
    "options": 4,
    "overhead": 4,
    "prediction": 4,
    "preemption": 4,
    "ensembling": 4,
    "protocols": 4,
    "evaluation_report": 4,
    "ladder": 4,
    "ladder_report": 4,
    "results": 4,
    "pretext": 3,
    "pretraining": 4,
    "record": 4,
    "sharding": 4,
    "trained": 4,
    "hub": 4,
    "push": 4,
    "bank": 4,
    "predictor": 4,
    "auto": 4,
    "card": 4,
    "convert": 4,
    "report": 4,
    "evaluation": 4,
    "progress": 4,
    "videos": 5,
    "config": 5,
    "runs": 5,
    "commands": 6,
    "__init__": TOP,
    "__main__": TOP,
}


def module_name(path: Path) -> str:
    """`clipvid/adapters/ila.py` -> `adapters.ila`; a package's own file goes by the package's name."""
    name = ".".join(path.relative_to(ROOT).with_suffix("").parts)
    return name.removesuffix(".__init__")


MODULES = {module_name(path): path for path in sorted(ROOT.rglob("*.py"))}


def floor_of(module: str) -> int | None:
    return FLOORS.get(module, FLOORS.get(module.split(".")[0]))


def imported_names(path: Path) -> set[str]:
    """Absolute dotted names of everything that a file imports, wherever in it."""
    names = set()
    package = ["clipvid", *path.relative_to(ROOT).parts[:-1]]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            above = package[: len(package) - node.level + 1] if node.level else []
            start = ".".join([*above, *([node.module] if node.module else [])])
            names |= {f"{start}.{alias.name}" for alias in node.names}
    return names


def imported_modules(path: Path) -> set[str]:
    """Modules of this package that a file imports; `__init__` for the package's own names."""
    found = set()
    for name in imported_names(path):
        if name.split(".")[0] != "clipvid":
            continue
        parts = name.split(".")[1:]
        candidates = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
        found.add(next((candidate for candidate in candidates if candidate in MODULES), "__init__"))
    return found


IMPORTS = {module: imported_modules(path) for module, path in MODULES.items()}


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_from_lower_floors_or_its_own(module):
    floor = floor_of(module)
    assert floor is not None, f"clipvid.{module} stands on no floor: add it to FLOORS"
    higher = {other: floor_of(other) for other in IMPORTS[module] if (floor_of(other) or 0) > floor}
    assert not higher, f"clipvid.{module} (floor {floor}) imports from higher floors: {higher}"


def test_nothing_imports_in_a_circle():
    order = list(TopologicalSorter(IMPORTS).static_order())  # raises CycleError, which names the circle
    assert set(order) == set(MODULES)


def test_the_walk_sees_the_imports_that_are_there():
    assert {"adapters", "backbone", "adapters.norm"} <= IMPORTS["encoder"]
    assert {"adapters.base", "choices"} <= IMPORTS["adapters.ila"]
    assert {"convert", "model"} <= IMPORTS["__init__"]


def test_only_the_backbone_imports_open_clip():
    importers = {
        module.split(".")[0]
        for module, path in MODULES.items()
        if any(name.split(".")[0] == "open_clip" for name in imported_names(path))
    }
    assert importers == {"backbone"}
