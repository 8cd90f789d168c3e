"""What the pages show works: code blocks keep the contract, every command runs."""

import re
import shlex
import sys
import types
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import main
from harness.testing import check_model, check_task

ROOT = Path(__file__).parent.parent
ELSEWHERE = {".venv", "runs", "golden", ".pytest_cache", "build"}
SCALING = ROOT / "harness" / "SCALING.md"
PAGES = [p for p in sorted(ROOT.rglob("*.md")) if not ELSEWHERE & set(p.relative_to(ROOT).parts)]
EXAMPLE = ROOT / "plugins" / "example" / "README.md"


def blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )


def module(code: str, tmp_path: Path) -> types.ModuleType:
    """The block as an imported module with a source file."""
    path = tmp_path / "shown_in_readme.py"
    path.write_text(code)
    made = types.ModuleType("shown_in_readme")
    made.__file__ = str(path)
    sys.modules["shown_in_readme"] = made
    exec(compile(code, str(path), "exec"), made.__dict__)
    return made


def test_the_models_of_the_readmes_keep_the_contract(tmp_path):
    shown = module(next(b for b in blocks(ROOT / "README.md", "python") if "harness_models" in b), tmp_path)
    (spec,) = shown.harness_models()
    check_model(spec, tmp_path / "a")
    other = module(blocks(ROOT / "models" / "README.md", "python")[0], tmp_path)
    check_model(other.LETTERS, tmp_path / "b")


def test_the_task_of_the_readme_keeps_the_contract(tmp_path):
    shown = module(next(b for b in blocks(ROOT / "README.md", "python") if "harness_tasks" in b), tmp_path)
    (task,) = shown.harness_tasks()
    check_task(task, tmp_path)


def test_the_task_of_the_tasks_readme_loads(tmp_path):
    from harness.task import Protocol

    shown = module(blocks(ROOT / "tasks" / "README.md", "python")[0], tmp_path)
    shown.TASK.mini(tmp_path)
    collection = shown.TASK.load(tmp_path, Protocol())
    assert [c.id for c in collection.pool] == ["tit.png"]


def commands(page: Path) -> list[str]:
    """The lines of the page's shell blocks without their comments."""
    lines = (line.partition("#")[0].strip() for block in blocks(page, "sh") for line in block.splitlines())
    return [line for line in lines if line]


SHOWN = {command: page for page in PAGES for command in commands(page)}
HARNESS = [command for command in SHOWN if command.startswith("harness ") and SHOWN[command] != EXAMPLE]
MINE = ("conse", "random")
"""Models whose weights are installed, so that what they are shown doing on the demo is done."""
LACKING = re.compile(
    r"from the model hub|cannot be fetched|(is|are) missing|no checkpoint"
    r"|no (complete )?result|'cuda' cannot be used"
)
"""What a command may say after its names, flags and values were found right: weights, data, network."""


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    """A folder with the demo's results of two models, and miniatures for data."""
    folder = tmp_path_factory.mktemp("docs")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("HARNESS_CACHE", str(folder / "cache"))
        for model in MINE:
            assert run(["eval", "-q", "-m", model, "-s", "demo"], patch) == 0
        for name in ("mbeir", "zeroshot-all"):
            assert run(["data", "make-mini", name, "mini"], patch) == 0
        Path("data").symlink_to("mini")
    return folder


def run(words, patch):
    patch.setattr(sys, "argv", ["harness", *words])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code or 0


def shortened(command: str) -> list[str]:
    """The words after `harness`; what takes long is made small or only planned, buckets are in memory."""
    words = shlex.split(command.replace("s3://", "memory://"))[1:]
    named = {model for flag, model in pairwise(words) if flag in ("-m", "--model")}
    ours = named <= set(MINE) and "demo" in words and "--rerank" not in words
    if "make-mini" in words:  # the fixture made it
        return [*words[:-1], f"again-{words[2]}"]
    if words[0] == "audit":  # as a model that takes no time
        return ["random" if word == "conse" else word for word in words]
    if words[:2] == ["cache", "push"]:  # the fixture's
        return words[:3]
    if words[0] == "report":
        return [*words, "--worst", "0"]
    long = words[0] == "train" or (words[0] == "eval" and not ours)
    return words + ["--dry-run"] * (long and "--dry-run" not in words)


@pytest.mark.parametrize("command", HARNESS)
def test_every_command_shown_runs(command, shared, monkeypatch, capsys):
    monkeypatch.chdir(shared)
    monkeypatch.setenv("HARNESS_CACHE", str(shared / "cache"))
    words = shortened(command)
    code = run(words, monkeypatch)
    out, err = capsys.readouterr()
    assert code in (0, 1) or LACKING.search(err), f"{SHOWN[command]}: {command}: {err}"
    assert code != 1 or words[0] in ("data", "doctor", "reproduce", "audit"), err
    for flag, path in pairwise(words):
        assert code or flag != "--out" or Path(path).exists()
    assert out or err or "--out" in words


def test_the_targets_of_make_that_are_shown_exist():
    targets = {line.split()[1] for line in SHOWN if line.startswith("make ")}
    assert targets
    known = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert targets <= set(known[1].split())


def test_every_other_line_of_a_shell_block_is_known():
    """The example's page is run by tests/test_packaging.py, Ray's commands by tests/test_cluster.py; what
    installs or sets something is not run."""
    known = ("harness ", "make ", "pip install ", "export ", "ray ", "aws ")
    assert [c for c in SHOWN if not c.startswith(known) and SHOWN[c] != EXAMPLE] == []


def test_the_leaderboard_of_the_readme_is_what_the_command_prints(shared, monkeypatch, capsys):
    monkeypatch.chdir(shared)
    run(["leaderboard", "demo"], monkeypatch)
    printed = [line.strip() for line in capsys.readouterr().out.splitlines()[1:] if line.strip()]
    page = (ROOT / "README.md").read_text(encoding="utf-8").partition("<!-- demo leaderboard -->")[2]
    assert printed == [line.strip() for line in page.splitlines() if line.strip()][: len(printed)]


def test_the_exporter_of_the_plugins_readme_writes_its_file(tmp_path):
    shown = module(blocks(ROOT / "plugins" / "README.md", "python")[0], tmp_path)
    run_ = SimpleNamespace(query_ids=["a", "b"], ranking=lambda at: [(f"c{at}", 1.0), ("d", 0.5)])
    shown.harness_evaluated(SimpleNamespace(protocol_id="p"), run_, tmp_path)
    assert (tmp_path / "p.first.tsv").read_text() == "a\tc0\nb\tc1\n"


def test_the_commands_on_scaling_plan_the_work_of_a_model_that_needs_no_weights(shared, monkeypatch, capsys):
    monkeypatch.chdir(shared)
    monkeypatch.setenv("HARNESS_CACHE", str(shared / "cache"))
    (push,) = (c for c in commands(SCALING) if c.startswith("harness cache push"))
    assert run(shortened(push), monkeypatch) == 0
    shown = [c for c in commands(SCALING) if c.startswith(("harness plan", "harness eval"))]
    assert len(shown) == 4
    for command in shown:
        words = shortened(command)
        words[words.index("-m") + 1] = "random"
        words[words.index("--data") + 1] = "mini"
        if "--cache-dir" in words:
            words[words.index("--cache-dir") + 1] = "scaling-cache"
        assert run(words, monkeypatch) == 0
        assert "mbeir-global/mscoco_task0" in capsys.readouterr().out


def test_the_times_on_scaling_follow_from_its_figures():
    page = SCALING.read_text(encoding="utf-8")
    assert f"{5_609_079 * 2.66e12:.2e}" == "1.49e+19"
    for rate in (790, 450, 150):
        row = re.search(
            rf"^\| {rate} .*?\| (\d+) \| ([\d.]+) h \| ([\d.]+) (h|min) \| (\d+) min \|$", page, re.MULTILINE
        )
        per_second, one, eight, unit, many = row.groups()
        assert abs(int(per_second) - rate / 2.66) < 1
        hours = 5_609_079 * 2.66 / rate / 3600
        assert abs(float(one) - hours) < 0.06
        assert abs(float(eight) - hours / 8 * (60 if unit == "min" else 1)) < (0.6 if unit == "min" else 0.06)
        assert abs(int(many) - hours / 32 * 60) < 0.6


def test_links_lead_somewhere():
    for page in PAGES:
        for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page}: {target}"
