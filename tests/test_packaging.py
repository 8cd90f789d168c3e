"""What users install: the wheel, an editable checkout, and a third party's plugin."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
COPIED = ("harness", "models", "tasks", "plugins", "results", "pyproject.toml", "README.md", "LICENSE")


def call(*command, cwd, check=True, **environment):
    done = subprocess.run(
        [*map(str, command)],
        cwd=cwd,
        capture_output=True,
        text=True,
        check=False,
        env={k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | environment,
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done


def pip(python, *arguments, cwd):
    """Install offline with the tools at hand, into the environment of `python`."""
    return call(
        sys.executable, "-m", "pip", "--python", python, "install", "-q", "--no-deps", "--no-build-isolation",
        "--no-index", *arguments, cwd=cwd,
    )  # fmt: skip


def environment(folder):
    """An environment that holds nothing of the harness but can import its dependencies."""
    venv.create(folder, with_pip=False)
    python = folder / "bin" / "python"
    site = Path(
        call(python, "-c", "import site; print(site.getsitepackages()[0])", cwd=folder).stdout.strip()
    )
    (site / "zz-dependencies.pth").write_text(sysconfig.get_paths()["purelib"] + "\n")
    return python, site


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the tree without what is generated."""
    folder = tmp_path_factory.mktemp("checkout")
    ignore = shutil.ignore_patterns("__pycache__", "*.egg-info", "runs", "build")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, ignore=ignore)
        else:
            shutil.copy(source, folder / name)
    return folder


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    out = tmp_path_factory.mktemp("wheel")
    quietly = ("-q", "--no-deps", "--no-build-isolation")
    call(sys.executable, "-m", "pip", "wheel", *quietly, "-w", out, checkout, cwd=out)
    (built,) = out.glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory):
    """(folder of scripts, site-packages) of an environment with the wheel and the example."""
    folder = tmp_path_factory.mktemp("installed") / "env"
    python, site = environment(folder)
    example = tmp_path_factory.mktemp("example") / "example"
    shutil.copytree(ROOT / "plugins" / "example", example, ignore=shutil.ignore_patterns("__pycache__"))
    pip(python, wheel, cwd=folder)
    pip(python, example, cwd=folder)
    return python.parent, site


def test_the_wheel_holds_every_module_and_data_file(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    mapped = {"harness": "harness", "models": "harness/models", "tasks": "harness/tasks"}
    mapped |= {"plugins": "harness/plugins", "results/reported": "harness/reported"}
    for folder, package in mapped.items():
        for path in (ROOT / folder).rglob("*"):
            inside = path.relative_to(ROOT / folder)
            wanted = (
                path.suffix in (".py", ".json", ".tsv", ".typed", ".html", ".css", ".js")
                and inside.parts[0] != "example"
            )
            if wanted and "__pycache__" not in inside.parts:
                assert f"{package}/{inside.as_posix()}" in names, f"the wheel lacks {folder}/{inside}"
    assert not [n for n in names if n.startswith(("models/", "tasks/", "plugins/", "results/", "tests/"))]
    assert not [n for n in names if "example" in n]


@pytest.mark.parametrize("inside", ["empty", "checkout"])
def test_the_console_script_works_from_anywhere(installed, checkout, tmp_path, inside):
    scripts, site = installed
    cwd = checkout if inside == "checkout" else tmp_path
    done = call(scripts / "harness", "list", "plugins", "--json", cwd=cwd)
    plugins = json.loads(done.stdout)
    assert [p["name"] for p in plugins] == [
        "umr-harness:models", "umr-harness:plugins", "umr-harness:tasks", "harness-colours:colours",
    ]  # fmt: skip
    assert not [p for p in plugins if p["error"]], plugins
    names = {
        m["name"] for m in json.loads(call(scripts / "harness", "list", "models", "--json", cwd=cwd).stdout)
    }
    assert {"conse", "clip", "colours"} <= names
    script = "import harness.models, harness.reported; print(harness.models.__file__)"
    where = call(scripts / "python", "-c", script, cwd=tmp_path).stdout.strip()
    assert Path(where).is_relative_to(site)


def test_the_example_is_used_through_the_command_line(installed, tmp_path):
    scripts, _ = installed
    call(scripts / "python", "-m", "harness_colours.task", tmp_path / "data", cwd=tmp_path)
    arguments = ("eval", "-m", "colours", "-s", "colours", "--cache-dir", tmp_path / "cache", "-q")
    done = call(scripts / "harness", *arguments, "--searcher", "numpy", "-o", "numpy", cwd=tmp_path)
    assert "100.0" in done.stdout
    call(scripts / "harness", *arguments, "-o", "torch", cwd=tmp_path)
    runs = [next((tmp_path / o).rglob("*.run.gz")).read_bytes() for o in ("numpy", "torch")]
    assert runs[0] == runs[1]
    done = call(scripts / "harness", "eval", "-m", "minilm", "-s", "colours", "-q", cwd=tmp_path, check=False)
    assert done.returncode == 0
    assert "–" in done.stdout


def test_the_example_passes_its_own_tests(installed, tmp_path):
    scripts, _ = installed
    tests = ROOT / "plugins" / "example" / "tests"
    call(scripts / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", tests, cwd=tmp_path)


def test_an_editable_install_picks_up_a_new_file(checkout, tmp_path):
    tree = tmp_path / "tree"
    shutil.copytree(checkout, tree, ignore=shutil.ignore_patterns("build", "*.egg-info"))
    python, _ = environment(tmp_path / "env")
    pip(python, "--editable", tree, cwd=tmp_path)
    (tree / "models" / "brand_new.py").write_text("HERE = 1\n")
    (tree / "results" / "reported" / "new.json").write_text("{}\n")
    script = (
        "import harness.models.brand_new, importlib.resources as r;"
        "print(harness.models.brand_new.HERE, r.files('harness.reported').joinpath('new.json').read_text())"
    )
    assert call(python, "-c", script, cwd=tmp_path).stdout.split() == ["1", "{}"]
