"""The rules of the architecture: who imports whom, what ships, what is exported."""

import ast
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = [
    {"errors", "__init__"},
    {"compiled", "content", "files", "progress", "compat", "ranks", "page"},
    {"digest", "dtypes", "media", "records", "remote", "unpickle"},
    {"metrics", "likeness", "statistics", "outcomes"},
    {"collection"},
    {"model", "run"},
    {"task", "table", "published", "hub", "recipe", "scaled"},
    {"exposure"},
    {"result"},
    {"hookspecs"},
    {"registry", "store", "search"},
    {"workers", "tripwires"},
    {"device"},
    {"probe"},
    {"encode"},
    {"passes", "rerank", "speed", "cluster"},
    {"evaluate", "leaderboard", "data"},
    {"selection", "reproduce", "train", "plan"},
    {"comparison", "bisect", "exports", "cache", "milestones"},
    {"ablations", "failures", "standing"},
    {"boards", "gallery", "plots"},
    {"figures"},
    {"report"},
    {"testing"},
    {"audit", "bench", "doctor"},
    {"cli"},
]
HEAVY = {
    "torch",
    "torchvision",
    "transformers",
    "PIL",
    "decord",
    "av",
    "faiss",
    "open_clip",
    "pyarrow",
    "tokenizers",
    "huggingface_hub",
    "sentence_transformers",
    "sentencepiece",
    "jinja2",
    "matplotlib",
    "ray",
    "fsspec",
}
FOLDERS = {"models": "harness.models", "tasks": "harness.tasks", "plugins": "harness.plugins"}


def level(module: str) -> int:
    return next(i for i, names in enumerate(LAYERS) if module in names)


def core_module(path: Path) -> str:
    """evaluate of harness/evaluate.py, cli of harness/cli/data.py."""
    return path.relative_to(ROOT / "harness").with_suffix("").parts[0]


def imports(path: Path) -> list[tuple[str, bool]]:
    """(module, whether it is imported when this module is) for every import outside
    `if TYPE_CHECKING:`."""
    found: list[tuple[str, bool]] = []

    def visit(node: ast.AST, at_top: bool) -> None:
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test):
            return
        if isinstance(node, ast.Import):
            found.extend((alias.name, at_top) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = "." * node.level + (node.module or "")
            found.append((module, at_top))
            found.extend((f"{module}.{alias.name}", at_top) for alias in node.names if module == "harness")
        inner = at_top and not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for child in ast.iter_child_nodes(node):
            visit(child, inner)

    visit(ast.parse(path.read_text()), True)
    return found


CORE = sorted((ROOT / "harness").rglob("*.py"))
BUILT_INS = sorted(p for folder in FOLDERS for p in (ROOT / folder).rglob("*.py") if "example" not in p.parts)


@pytest.mark.parametrize("path", CORE, ids=lambda p: p.stem)
def test_core_imports_downwards_only_and_never_names_a_built_in(path):
    mine = level(core_module(path))
    for module, _ in imports(path):
        parts = module.split(".")
        if parts[0] != "harness" or len(parts) < 2:
            continue
        assert module not in FOLDERS.values(), f"{path.name} names a built-in: {module}"
        if any((ROOT / "harness" / name).exists() for name in (parts[1], f"{parts[1]}.py")):
            assert level(parts[1]) < mine or parts[1] == core_module(path), (
                f"{path.name} imports {module}, which is not below it"
            )


@pytest.mark.parametrize("path", BUILT_INS, ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_built_ins_use_the_public_core_and_never_another_kind(path):
    folder = path.relative_to(ROOT).parts[0]
    for module, _ in imports(path):
        assert module not in ("harness.cli", "harness.registry"), f"{path.name} imports {module}"
        for other, package in FOLDERS.items():
            if other != folder:
                assert not module.startswith(package), f"{path.name} imports {module}"


@pytest.mark.parametrize("path", [*CORE, *BUILT_INS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_heavy_libraries_are_imported_inside_functions(path):
    for module, at_top in imports(path):
        assert not (at_top and module.split(".")[0] in HEAVY), f"{path.name} imports {module} at import"


@pytest.mark.parametrize("path", [*CORE, *BUILT_INS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_nothing_unpickles_or_loads_code_from_a_checkpoint(path):
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            call = ast.unparse(node.func)
            keywords = {k.arg: ast.unparse(k.value) for k in node.keywords}
            assert call != "torch.load" or keywords.get("weights_only") == "True", (
                f"{path}: {ast.unparse(node)}"
            )
            assert "trust_remote_code" not in keywords, f"{path}: {ast.unparse(node)}"
            if path.stem != "testing":
                assert not call.startswith("pickle.load"), f"{path}: {ast.unparse(node)}"


@pytest.mark.parametrize("path", [*CORE, *BUILT_INS], ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_only_the_safe_reader_and_the_check_of_models_import_pickle(path):
    """unpickle overrides the Unpickler's find_class; testing sends a frontend through pickle and back, as
    a worker does."""
    modules = {module.split(".")[0] for module, _ in imports(path)}
    if path not in (ROOT / "harness/unpickle.py", ROOT / "harness/testing.py"):
        assert modules.isdisjoint({"pickle", "_pickle", "shelve", "dill", "cloudpickle", "joblib"})


def test_the_reader_of_pickles_runs_on_the_standard_library_and_never_on_the_plain_unpickler():
    path = ROOT / "harness/unpickle.py"
    assert {module.split(".")[0] for module, at_top in imports(path) if at_top} <= sys.stdlib_module_names
    used = {ast.unparse(n) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Attribute)}
    assert {name for name in used if name.startswith("pickle.")} == {"pickle.Unpickler"}
    called = {ast.unparse(n.func) for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)}
    assert "pickle.Unpickler" not in called  # only derived from


def test_every_package_and_data_file_on_disk_is_in_the_package_list():
    """A sub-package missing from the list is silently missing from the wheel."""
    config = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    mapped = {name: ROOT / place for name, place in config["package-dir"].items()}
    on_disk = set()
    for name, folder in mapped.items():
        for init in folder.rglob("__init__.py"):
            inside = init.parent.relative_to(folder)
            if "example" not in inside.parts:
                on_disk.add(".".join([name, *inside.parts]))
    assert set(config["packages"]) == on_disk
    for name, folder in mapped.items():
        patterns = config["package-data"].get(name, [])
        covered = {p for pattern in patterns for p in folder.glob(pattern)}
        loose = {
            p
            for p in folder.iterdir()
            if p.is_file() and p.suffix not in (".py", ".pyc", ".md") and not p.name.startswith(".")
        }
        assert loose <= covered, f"package-data of {name} lacks {loose - covered}"


def test_the_fixed_folders_are_there():
    for name in ("harness", "plugins", "models", "tasks", "results", "tests", "pyproject.toml", "README.md"):
        assert (ROOT / name).exists()


def test_every_hook_is_documented_and_implementations_use_its_arguments():
    from harness import hookspecs
    from harness.registry import load_catalog

    for name in [n for n in vars(hookspecs) if n.startswith("harness_")]:
        assert getattr(hookspecs, name).__doc__
    load_catalog().manager.check_pending()


def test_errors_are_one_tree_and_the_docstring_draws_it():
    from harness import errors

    classes = [c for c in vars(errors).values() if isinstance(c, type) and issubclass(c, errors.HarnessError)]
    for cls in classes:
        assert cls.__name__ in (errors.__doc__ or "")
        assert cls is errors.HarnessError or cls.__mro__[1] is errors.HarnessError
    assert sys.version_info >= (3, 11)
