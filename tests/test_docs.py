"""What the READMEs show works: code blocks keep the contract, commands and flags exist."""

import re
import shlex
import sys
import types
from pathlib import Path

import pytest

from harness.cli import main
from harness.testing import check_model, check_task

ROOT = Path(__file__).parent.parent
SCALING = ROOT / "harness" / "SCALING.md"
READMES = [
    p for p in sorted(ROOT.rglob("README.md")) if not {".venv", "runs"} & set(p.relative_to(ROOT).parts)
]
PAGES = [*READMES, SCALING]


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


COMMANDS = sorted(
    {
        line.split("#")[0].strip()
        for page in PAGES
        for block in blocks(page, "sh")
        for line in block.splitlines()
        if line.startswith("harness ")
    }
)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_commands_of_the_readmes_exist_with_their_flags(command, monkeypatch, capsys):
    words = shlex.split(command)
    verbs = [w for w in words[1:3] if not w.startswith("-")]
    verbs = verbs[: 2 if words[1] in ("list", "data", "cache") else 1]
    monkeypatch.setattr(sys, "argv", ["harness", *verbs, "--help"])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as stop:
        main()
    assert not stop.value.code
    shown = capsys.readouterr().out
    for flag in (w.split("=")[0] for w in words if w.startswith("-")):
        assert re.search(rf"(?<![\w-]){re.escape(flag)}(?![\w-])", shown), f"{command}: no {flag}"


@pytest.mark.parametrize("title", ["How to read the numbers", "Time and the cache"])
def test_the_commands_of_these_sections_run_one_after_another(cli, title):
    page = (ROOT / "results" / "README.md").read_text(encoding="utf-8")
    section = page.partition(f"## {title}\n")[2].partition("\n## ")[0]
    (block,) = re.findall(r"^```sh\n(.*?)^```", section, re.DOTALL | re.MULTILINE)
    for line in block.splitlines():
        words = shlex.split(line, comments=True)[1:]
        code, out, err = cli(*words, *(["--workers", "0", "-q"] if words[0] == "eval" else []))
        assert code == 0, f"{line}: {err}"
        assert out, line


def test_the_commands_that_look_at_results_work(cli):
    for model in ("conse", "random"):
        assert cli("eval", "-q", "-m", model, "-t", "demo/composed")[0] == 0
    for page, title in ((ROOT / "README.md", "Looking at results"), (ROOT / "results/README.md", "Pages")):
        section = page.read_text(encoding="utf-8").split(f"## {title}\n")[1].split("\n## ")[0]
        for line in re.findall(r"^harness .*", section, re.MULTILINE):
            code, out, err = cli(*shlex.split(line.split("#")[0])[1:])
            assert (code, out) == (0, ""), f"{line}: {err}"
    made = {"board.html", "board.tex", "gallery.html", "gallery-conse-random-demo-composed.html", "report"}
    assert made <= {path.name for path in Path().iterdir()}
    assert Path("report/index.html").is_file()


def test_the_commands_on_scaling_plan_the_work(cli, tmp_path):
    """On a miniature and with a model that needs no weights; what starts a cluster is in test_cluster."""
    code, _, err = cli("data", "make-mini", "mbeir", tmp_path / "mini")
    assert code == 0, err
    lines = [line for block in blocks(SCALING, "sh") for line in block.splitlines()]
    commands = [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("harness ")]
    assert len(commands) == 3
    for words in commands:
        words[words.index("-m") + 1] = "random"
        words[words.index("--data") + 1] = str(tmp_path / "mini")
        if "--cache-dir" in words:
            words[words.index("--cache-dir") + 1] = str(tmp_path / "cache")
        code, out, err = cli(*words, *(["--dry-run"] if words[0] == "eval" else []))
        assert code == 0, err
        assert "mbeir-global/mscoco_task0" in out


def test_the_times_on_scaling_follow_from_its_figures():
    page = SCALING.read_text(encoding="utf-8")
    assert f"{5_609_079 * 2.66e12:.2e}" == "1.49e+19"
    for rate in (790, 450, 150):
        row = re.search(
            rf"^\| {rate} .*?\| (\d+) \| ([\d.]+) h \| ([\d.]+) (h|min) \| (\d+) min \|$", page, re.M
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
