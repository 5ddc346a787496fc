"""Do imports go one way? Read from the source, so that an import inside a function counts too.

    cli > api > session, estimates, spread > stream > codec > chains > state > surprise > rows
    > posterior, entropy, profiles > priors > transform, quantize, container, exact
"""

import ast
import sys
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import dcodec

PACKAGE = Path(str(dcodec.__file__)).parent
LAYERS = [  # a module imports from layers above its own line only, or from its own line if the module-level graph allows
    ["exact", "exact.functions", "exact.linear", "exact.noise", "exact.pca", "exact.conv", "exact.machine"],
    ["exact.elementwise"],
    ["exact.operations"],
    ["container", "transform", "quantize", "cells", "parts"],
    ["prior", "prior.folder", "prior.timesteps", "prior.latent", "prior.adapter"],
    ["prior.catalog", "prior.counted", "prior.gaussian", "prior.network", "prior.photo", "positions"],
    ["entropy", "profiles", "posterior", "pictures", "shell"],
    ["rows"],
    ["surprise"],
    ["state"],
    ["chains"],
    ["codec"],
    ["stream"],
    ["domain"],
    ["estimates", "spread", "session"],
    ["api"],
    ["pipeline"],
    ["train", "train.data", "train.model"],
    ["train.balance", "train.learner"],
    ["train.quantize"],
    ["train.fit"],
    ["train.command", "prior.command"],
    ["", "cli"],
]
RANK = {name: rank for rank, names in enumerate(LAYERS) for name in names}


def modules() -> dict[str, Path]:
    """Names within the package, "" for the package itself."""
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


MODULES = modules()


def imported(node: ast.AST) -> list[str]:
    """Full names of the modules that one statement imports; of a name from a package, the module if it is one."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if isinstance(node, ast.ImportFrom):
        assert node.level == 0, "relative import"
        module = node.module or ""
        inner = [f"{module}.{alias.name}" for alias in node.names]
        named = [name for name in inner if name.partition(".")[2] in MODULES and name.startswith("dcodec.")]
        return [*named, *([module] if len(named) < len(inner) else [])]
    return []


def for_types_only(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, *, inside_functions: bool) -> list[ast.AST]:
    """All statements that run: at import, or ever."""
    out = []
    for node in ast.iter_child_nodes(tree):
        if for_types_only(node) or (isinstance(node, (ast.FunctionDef, ast.Lambda)) and not inside_functions):
            continue
        out += [node, *statements(node, inside_functions=inside_functions)]
    return out


def imports(name: str, *, inside_functions: bool) -> set[str]:
    tree = ast.parse(MODULES[name].read_text())
    return {
        target for node in statements(tree, inside_functions=inside_functions) for target in imported(node)
    }


def own(targets: set[str]) -> set[str]:
    """Of imported modules, those of the package, by their names within it."""
    return {target.partition(".")[2] for target in targets if target.partition(".")[0] == "dcodec"}


def foreign(targets: set[str]) -> set[str]:
    """Of imported modules, the packages that are neither ours nor Python's."""
    roots = {target.partition(".")[0] for target in targets}
    return roots - {"dcodec", *sys.stdlib_module_names}


def at_import(name: str) -> set[str]:
    """All foreign packages that importing a module brings with it, by way of others of ours and of their packages."""
    waiting, seen, brought = [name], set(), set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        targets = imports(current, inside_functions=False)
        brought |= foreign(targets)
        waiting += [*own(targets), current.rpartition(".")[0]]
    return brought


@pytest.mark.parametrize("name", MODULES)
def test_imports_go_down(name: str) -> None:
    assert name in RANK, f"say in LAYERS where {name} belongs"
    for target in own(imports(name, inside_functions=True)):
        assert RANK[target] <= RANK[name], f"{name} imports {target}"


def test_the_module_graph_has_no_cycles() -> None:
    graph = {name: own(imports(name, inside_functions=False)) - {name} for name in MODULES}
    assert len(list(TopologicalSorter(graph).static_order())) == len(MODULES)
    assert sum(map(len, graph.values())) > len(MODULES)  # imports are seen at all
    assert graph["codec"] >= {"rows", "chains", "state"}
    assert graph["chains"] >= {"posterior", "state"}
    assert graph["state"] >= {"posterior", "container"}
    assert graph["stream"] >= {"codec", "entropy"}


@pytest.mark.parametrize("name", [name for name in MODULES if name.startswith("exact")])
def test_exact_stands_alone(name: str) -> None:
    targets = imports(name, inside_functions=True)
    assert all(target.startswith("exact") for target in own(targets))
    assert foreign(targets) <= {"numpy", "torch"}


def test_container_needs_python_alone() -> None:
    targets = imports("container", inside_functions=True)
    assert not own(targets)
    assert not foreign(targets)


def test_what_may_be_imported() -> None:
    """torch waits until something is coded; nothing depends on packages that are only for tests or for training."""
    for name in ("", "cli", "api", "container", "pictures", "prior", "prior.catalog"):
        assert "torch" not in at_import(name), name
    assert at_import("container") == set()
    everything = {package for name in MODULES for package in foreign(imports(name, inside_functions=True))}
    assert everything == {"click", "constriction", "diffusers", "huggingface_hub", "numpy", "PIL", "safetensors", "torch"}
    assert [name for name in MODULES if "diffusers" in foreign(imports(name, inside_functions=True))] == ["pipeline"]
    for name in MODULES:
        if not name.startswith("train"):
            training = {target for target in own(imports(name, inside_functions=True)) if target.startswith("train")}
            assert training == ({"train.command"} if name == "cli" else set()), name
    assert at_import("train.command") <= {"click"}


@pytest.mark.parametrize("module", ["constriction"])
def test_only_entropy_knows_the_range_coder(module: str) -> None:
    assert [name for name in MODULES if module in foreign(imports(name, inside_functions=True))] == ["entropy"]
