"""The structure of the source in figures: `python -m tests.house [ROOT]` prints them for any checkout.

`tests/test_house.py` holds the limits. Everything is read from syntax trees; nothing is imported.
"""

import ast
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

PACKAGES = ("blip3o", "jobs", "serve", "cluster", "benchmarks")
Edges = dict[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Dotted name → file, for every module of the source. Packages appear as their `__init__`."""
    files = [path for name in PACKAGES for path in (root / name).rglob("*.py")]
    return {_dotted(path.relative_to(root)): path for path in sorted(files)}


def _dotted(path: Path) -> str:
    return ".".join(path.with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[str, bool]]:
    """Every name that a file imports, and whether inside a function. `TYPE_CHECKING` blocks are left out."""
    yield from _imports(ast.parse(path.read_text(encoding="utf-8")), inside=False)


def _imports(node: ast.AST, *, inside: bool) -> Iterator[tuple[str, bool]]:
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test):
            continue
        if isinstance(child, ast.Import):
            yield from ((alias.name, inside) for alias in child.names)
        elif isinstance(child, ast.ImportFrom):
            yield from ((f"{child.module}.{alias.name}", inside) for alias in child.names)
        else:
            function = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
            yield from _imports(child, inside=inside or function)


def edges(root: Path) -> Edges:
    """Which modules of ours each module imports, at any place."""
    known = modules(root)

    def ours(name: str) -> str:
        return name if name in known else name.rpartition(".")[0]

    return {
        module: {ours(name) for name, _ in imports(path)} & known.keys() - {module} for module, path in known.items()
    }


def circles(graph: Edges) -> list[list[str]]:
    """Groups of modules that import each other, directly or through others."""
    reached = {module: _reached(graph, module) for module in graph}
    groups = {frozenset(other for other in reached[m] if m in reached[other]) for m in graph if m in reached[m]}
    return sorted(sorted(group) for group in groups)


def _reached(graph: Edges, start: str) -> set[str]:
    found: set[str] = set()
    pending = list(graph[start])
    while pending:
        module = pending.pop()
        if module not in found:
            found.add(module)
            pending += graph[module]
    return found


def siblings(root: Path) -> Counter[str]:
    """Python files in each folder of the source, without its `__init__`."""
    files = [path for path in modules(root).values() if path.name != "__init__.py"]
    return Counter(str(path.parent.relative_to(root)) for path in files)


def function_level_imports(root: Path) -> Counter[str]:
    """How many imports inside functions name our own modules, and how many others: keys `own`, `other`."""
    inside = [name for path in modules(root).values() for name, within in imports(path) if within]
    return Counter("own" if name.split(".")[0] in PACKAGES else "other" for name in inside)


def without_ray(root: Path) -> list[str]:
    """Files of `jobs/` that never import Ray, neither at module level nor in a function."""
    return [
        str(path.relative_to(root))
        for module, path in modules(root).items()
        if module.startswith("jobs") and not any(name.split(".")[0] == "ray" for name, _ in imports(path))
    ]


_DECIDING = ("stage.name", "objective", "decoder.kind", "kind(recipe)", "self._kind", "stage_name")


def name_comparisons(root: Path) -> Counter[str]:
    """By file: comparisons with the name of a stage, an objective or a kind of decoder, and calls of `hasattr`."""
    found: Counter[str] = Counter()
    for path in modules(root).values():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            sides = [node.left, *node.comparators] if isinstance(node, ast.Compare) else []
            named = any(ast.unparse(side).endswith(_DECIDING) for side in sides)
            asked = isinstance(node, ast.Call) and ast.unparse(node.func) == "hasattr"
            found[str(path.relative_to(root))] += named or asked
    return +found


def main() -> None:
    """Prints the figures of the checkout that the first argument names, or of this one."""
    root = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent.parent
    folders, graph, lazy = siblings(root), edges(root), function_level_imports(root)
    compared, driverless = name_comparisons(root), without_ray(root)
    recipes = list((root / "jobs" / "recipes").rglob("*.yaml"))
    print(f"folders of source: {len(folders)}, most files in one: {folders.most_common(5)}")
    print(f"circles of files: {len(circles(graph))} {circles(graph)}")
    print(f"imports inside functions: {lazy.total()}, of our own modules {lazy['own']}")
    print(f"files directly in jobs/: {folders['jobs']}; files below jobs/ that never import Ray: {len(driverless)}")
    print(f"comparisons with names of stages, objectives, decoders, and hasattr: {compared.total()} in {len(compared)}")
    print(f"recipe files: {len(recipes)}")


if __name__ == "__main__":
    main()
