import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from harness import __version__


def test_the_dtype_of_the_store_is_another_identity_with_nearly_the_same_scores(cli, tmp_path):
    found = {}
    for dtype in ("float16", "bfloat16", "float32"):
        assert eval_random(cli, "--store-dtype", dtype)[0] == 0
        code, out, _ = cli(
            "plan", "-m", "random", "-t", "demo/text-to-image", "--store-dtype", dtype, "--json"
        )
        assert code == 0
        assert json.loads(out)[0]["to_encode"] == 0
    for path in (tmp_path / "results" / "runs" / "random").glob("*/demo__text-to-image/*.json"):
        result = json.loads(path.read_text())
        found[result["identity"]["store_dtype"]] = result["metrics"]["hit_at_10"]["value"]
    assert [*found.values()] == pytest.approx([found["float32"]] * 3, abs=0.02)
    code, _, err = cli("eval", "-m", "random", "-t", "demo/text-to-image", "--store-dtype", "int8")
    assert code == 2
    assert "int8" in err


def eval_random(cli, *more):
    return cli("eval", "-m", "random", "-t", "demo/text-to-image", "--workers", 0, *more)


def test_eval_ends_in_a_leaderboard_and_result_files(cli, tmp_path):
    code, out, err = eval_random(cli)
    assert code == 0
    assert "| random" in out
    assert "R@1" in out
    (result,) = (tmp_path / "results" / "runs" / "random").glob("*/demo__text-to-image/*.json")
    data = json.loads(result.read_text())
    assert data["provenance"]["command"].startswith("harness eval -m random")
    assert data["status"] == "complete"
    assert "1 results made" in err


def test_progress_in_a_pipe_is_plain_lines_and_quiet_is_quiet(cli):
    _, _, err = eval_random(cli)
    assert "demo/text-to-image candidates: 21/21" in err
    assert "items/s" in err
    assert "\x1b" not in err
    assert "\r" not in err
    _, _, err = eval_random(cli, "-q", "--seed", 1, "--cache-dir", "other")
    assert "items/s" not in err


def test_the_second_run_keeps_results_and_says_so(cli):
    eval_random(cli)
    _, first, _ = eval_random(cli)
    _, out, err = eval_random(cli)
    assert out == first
    assert "0 results made, 1 already there" in err


def test_timings_and_verbose_say_more(cli):
    code, _, err = eval_random(cli, "--timings", "-v")
    assert code == 0
    for word in (
        "look_up",
        "wait",
        "decode",
        "prepare",
        "embed",
        "store",
        "search",
        "score",
        "padding",
        " %",
    ):
        assert word in err


def test_underscores_are_accepted_for_dashes(cli):
    code, out, _ = eval_random(
        cli, "--model_arg", "dim=8", "--output_dir", "out", "--overwrite_strategy", "always"
    )
    assert code == 0
    assert Path("out/random").is_dir()
    assert "| random" in out


def test_several_model_options_may_follow_one_flag(cli):
    code, _, _ = eval_random(cli, "--model-arg", "dim=8", "seed=3", "-o", "out")
    (result,) = Path("out").rglob("*.json")
    identity = json.loads(result.read_text())["identity"]
    assert (code, identity["dim"], identity["seed"]) == (0, "8", "3")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-m", "cnose", "-s", "demo"], "unknown model 'cnose': did you mean conse?"),
        (["-m", "random", "-s", "dmeo"], "unknown suite 'dmeo': did you mean demo?"),
        (["-m", "random", "-t", "demo/text-to-imgae"], "did you mean demo/text-to-image"),
        (["-m", "random"], "nothing to evaluate"),
        (
            ["-m", "random", "-s", "demo", "--searcher", "fais"],
            "unknown searcher 'fais': did you mean faiss?",
        ),
        (
            ["-m", "random", "-s", "demo", "--model-arg", "dim"],
            "--model-arg 'dim' is not of the form KEY=VALUE",
        ),
        (["-m", "random", "-s", "demo", "--model-arg", "dmi=3"], "unknown option of model 'random' 'dmi'"),
        (["-m", "random", "-s", "demo", "--search-memory", "lots"], "--search-memory 'lots' is not a size"),
        (["-m", "random", "-s", "demo", "--instructions", "5"], "unknown instruction policy '5'"),
        (["-m", "random", "-s", "demo", "--device", "cuda:99"], "device 'cuda:99' cannot be used"),
        (["-m", "random", "-s", "demo", "--device", "tpuu"], "device 'tpuu' cannot be used"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli, arguments, message):
    code, out, err = cli("eval", "-q", *arguments)
    assert code == 2
    assert message in err
    assert err.startswith("harness: ")
    assert len(err.splitlines()) == 1
    assert out == ""


def test_a_split_that_a_task_does_not_have_fails_that_task(cli):
    code, _, err = cli("eval", "-q", "-m", "random", "-t", "demo/composed", "--split", "trian")
    assert code == 1
    assert err.startswith("demo/composed has no split 'trian': use --split test\n")


NEEDY = """
import sys
sys.path.insert(0, {tests!r})
import toys
from pathlib import Path
from harness.hookspecs import hookimpl
from harness.task import Need

@hookimpl
def harness_tasks():
    needs = [Need(Path("set/a.json"), "get it at A"), Need(Path("set/b.json"), "get it at A")]
    return [toys.task(toys.collection, "needy/a", needs=needs)]
"""


def test_missing_data_lists_every_file_with_how_to_get_it(cli, tmp_path, monkeypatch):
    write_plugin(tmp_path / "site", "needy-plugin", NEEDY.format(tests=str(Path(__file__).parent)))
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    code, _, err = cli("eval", "-m", "random", "-t", "needy/a", "--data", "here")
    assert code == 2
    assert err == "harness: 2 files or folders are missing: here/set/a.json, here/set/b.json (get it at A)\n"
    assert "missing: here/set/a.json, here/set/b.json" in cli("list", "tasks", "--data", "here")[1]


def test_a_failing_task_gives_exit_1_and_keeps_the_others(cli, tmp_path):
    stamps = tmp_path / "data" / "stamps" / "animals"
    stamps.mkdir(parents=True)
    (stamps / "cat.png").write_bytes(b"not a picture")
    (stamps / "cat.txt").write_text("A cat.\n")
    code, out, err = cli(
        "eval",
        "-q",
        "-m",
        "conse",
        "-t",
        "stamps/text-to-image-en,demo/text-to-image",
        "--limit",
        2,
        "--workers",
        0,
    )
    assert code == 1
    assert "cat.png cannot be read" in err
    assert "1 of 2 tasks failed: stamps/text-to-image-en" in err
    assert "–" in out
    assert "PARTIAL" in out


def test_plan_counts_and_writes_nothing(cli, tmp_path):
    code, out, _ = cli("plan", "-m", "random", "-s", "demo", "--json")
    assert code == 0
    rows = json.loads(out)
    assert {row["state"] for row in rows} == {"to do"}
    assert all(row["to_encode"] > 0 for row in rows if row["task"].startswith("demo/"))
    assert all(row["to_encode"] == 0 for row in rows if row["task"].startswith("demo-global/"))
    assert not (tmp_path / "results").exists()
    _, dry, _ = cli("eval", "-m", "random", "-s", "demo", "--dry-run", "--json")
    assert json.loads(dry) == rows
    code, out, _ = cli("plan", "-m", "random", "-t", "demo/composed")
    assert out.split()[:2] == ["task", "queries"]
    assert "1 device (assumed, nothing measured yet, within a factor of 10)" in out
    assert "price" not in out


def test_a_plan_for_several_devices_has_a_price(cli):
    asked = ("plan", "-m", "random", "-t", "demo/composed", "--devices", 4, "--gpu-hour-price", 3600)
    code, out, _ = cli(*asked)
    assert code == 0
    assert re.search(r"to encode: \d+ image, \d+ image,text; [\d,]+ tokens", out)
    (row,) = json.loads(cli(*asked, "--json")[1])
    one, four = row["devices"]["1"], row["devices"]["4"]
    seconds = row["seconds"]
    assert one["seconds"] == pytest.approx(sum(seconds.values()), abs=1e-3)
    assert four["seconds"] == pytest.approx(sum(seconds.values()) - 0.75 * seconds["encode"], abs=1e-3)
    assert (one["price"], four["price"]) == pytest.approx((one["seconds"], 4 * four["seconds"]), abs=0.01)


def test_a_probe_measures_what_is_left_and_keeps_nothing(cli, tmp_path):
    code, out, _ = cli("plan", "-m", "random", "-t", "demo/composed", "--probe", "--cache-dir", "c")
    assert code == 0
    assert "a probe of this device, within a factor of 1.5" in out
    assert not list(tmp_path.rglob("*.npy"))


def test_leaderboard_in_every_format_and_into_a_file(cli, tmp_path):
    cli("eval", "-q", "-m", "random", "-s", "demo")
    cli("eval", "-q", "-m", "constant", "-s", "demo")
    code, out, _ = cli("leaderboard", "demo")
    assert code == 0
    assert "| random" in out
    assert "constant *check*" in out
    assert json.loads(cli("leaderboard", "demo", "--format", "json")[1])["rows"][0]["model"] == "random"
    assert cli("leaderboard", "demo", "--format", "csv")[1].startswith("model,identity_id,check,")
    assert cli("leaderboard", "demo", "--out", "board.md")[1] == ""
    assert (tmp_path / "board.md").read_text() == out
    code, _, err = cli("leaderboard", "demo", "--runs", "nowhere")
    assert (code, err) == (
        2,
        "harness: there is no results folder nowhere: run 'harness eval', or name one with --runs\n",
    )


def test_list_json_is_an_array_of_objects_with_the_name_first(cli):
    keys = {
        "models": {"title", "source", "parent", "change", "paper_ref", "licence"},
        "tasks": {"title", "suites", "needs", "present", "metrics"},
        "suites": {"title", "tasks"},
        "plugins": {"module", "version", "offers", "error"},
    }
    for what, wanted in keys.items():
        code, out, _ = cli("list", what, "--json")
        rows = json.loads(out)
        assert code == 0
        assert rows
        for row in rows:
            assert next(iter(row)) == "name"
            assert wanted <= set(row)


def test_list_shows_needs_and_licences(cli):
    _, out, _ = cli("list", "tasks")
    assert "there" in out
    _, out, _ = cli("list", "tasks", "-v")
    assert "needs" in out
    assert "skimage" in out
    _, out, _ = cli("list", "models")
    assert "licence" in out
    assert "conse" in out
    _, out, _ = cli("list", "models", "-v")
    assert "input_spec" in out


def test_a_broken_plugin_is_a_warning_and_its_traceback_is_listed(cli, tmp_path, monkeypatch):
    write_plugin(tmp_path, "bad-plugin", "import not_there_at_all")
    monkeypatch.syspath_prepend(str(tmp_path))
    code, out, err = cli("list", "suites")
    assert code == 0
    assert "demo" in out
    assert "warning: plugin bad-plugin:main could not be loaded (ModuleNotFoundError" in err
    _, out, err = cli("list", "plugins")
    assert "Traceback" in out
    assert err == ""


def test_version_and_help(cli):
    assert cli("--version")[1] == f"umr-harness {__version__}\n"
    code, out, _ = cli("eval", "--help")
    assert code == 0
    for flag in ("--model", "--model-arg", "--tasks", "--suite", "--data", "--output-dir", "--cache-dir",
                 "--device", "--batch-tokens", "--workers", "--searcher", "--search-memory", "--split",
                 "--prompt-profile", "--instructions", "--seed", "--limit", "--skip-broken",
                 "--overwrite-strategy", "--timings", "--dry-run", "--shared-cache"):  # fmt: skip
        assert flag in out


def test_help_and_lists_never_import_torch():
    script = textwrap.dedent(
        """
        import contextlib, io, sys
        from harness.cli import main
        for line in ("--help", "eval --help", "list models", "list tasks", "list suites", "list plugins",
                     "list recipes -v", "train --help", "list models --json", "list tasks --json",
                     "list models -v", "list tasks -v"):
            sys.argv = ["harness", *line.split()]
            with contextlib.redirect_stdout(io.StringIO()):
                try:
                    main()
                except SystemExit as exit_:
                    assert not exit_.code, line
            for heavy in ("torch", "transformers", "PIL", "faiss", "decord", "av", "open_clip", "pyarrow"):
                assert heavy not in sys.modules, f"harness {line} imported {heavy}"
        """
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def write_plugin(folder, name, body):
    module = name.replace("-", "_")
    info = folder / f"{module}-1.0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    (info / "entry_points.txt").write_text(f"[harness]\nmain = {module}\n")
    (folder / f"{module}.py").write_text(body)


SLOW = """
import dataclasses, sys
sys.path.insert(0, {tests!r})
import toys, harness.encode
from pathlib import Path
from harness.hookspecs import hookimpl

harness.encode.WINDOW_ITEMS = 8

@hookimpl
def harness_models():
    return [dataclasses.replace(toys.spec(toys.Toy(sleep=0.2, log=Path({log!r}))), name="slow")]

@hookimpl
def harness_tasks():
    return [toys.task(lambda n=n: toys.collection(n), "slow/" + str(n)) for n in (30, 60)]
"""


def test_ctrl_c_is_130_keeps_what_is_finished_and_the_next_run_resumes(tmp_path):
    log = tmp_path / "log"
    log.write_text("")
    write_plugin(
        tmp_path / "site", "slow-plugin", SLOW.format(tests=str(Path(__file__).parent), log=str(log))
    )
    environment = os.environ | {
        "PYTHONPATH": str(tmp_path / "site"),
        "HARNESS_CACHE": str(tmp_path / "cache"),
    }
    command = [
        Path(sys.executable).parent / "harness",
        "eval",
        "-m",
        "slow",
        "-t",
        "slow/*",
        "--batch-tokens",
        "80",
    ]
    process = subprocess.Popen(
        [*command, "-o", tmp_path / "runs"], env=environment, cwd=tmp_path, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 60
    while len(log.read_text().splitlines()) < 40 and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted: finished results and embeddings are kept" in err
    assert "Traceback" not in err
    before = len(log.read_text().splitlines())
    done = subprocess.run(
        [*command, "-o", tmp_path / "runs"],
        env=environment,
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "| slow" in done.stdout
    again = len(log.read_text().splitlines()) - before
    assert again <= 120 - before + 8  # 120 distinct items in all; at most the open window is repeated


def test_a_budget_is_a_number_or_auto(cli):
    for wrong in ("0", "-3", "many", "1e4"):
        code, _, err = eval_random(cli, f"--batch-tokens={wrong}")
        assert code == 2
        assert f"--batch-tokens '{wrong}' is neither a number of tokens, 1 or more, nor auto" in err
    assert eval_random(cli, "--batch-tokens", "auto")[0] == 0


def test_deepspeed_keeps_off_stdout(cli, caplog):
    assert cli("list", "suites")[0] == 0
    logger = logging.getLogger("DeepSpeed")
    logger.warning("Setting accelerator to CPU.")
    logger.error("No such accelerator.")
    assert caplog.messages == ["No such accelerator."]
