"""Training runs what is not finished, in order, and an artefact is never taken for another."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import pytest
from test_recipe import TOY, stage, write

from harness import files, train
from harness.encode import EngineOptions
from harness.errors import (
    CheckpointMissing,
    DataInvalid,
    DataMissing,
    HarnessError,
    PluginError,
    StorageError,
)
from harness.recipe import MODEL, Recipe, configured, vary, without
from harness.registry import load_catalog
from harness.task import Need
from harness.train import TrainOptions, chosen, plan

NAMES = [s.name for s in TOY.stages]


@pytest.fixture
def options(tmp_path):
    (tmp_path / "data").mkdir()
    for name in ("nli", "mbeir"):
        (tmp_path / "data" / f"{name}.txt").write_text(name)
    return TrainOptions(tmp_path / "data", tmp_path / "out", tmp_path / "cache", EngineOptions(quiet=True))


def run(recipe, options, *, tell=lambda line: None, **selection):
    """Train, and give the names of the stages that ran."""
    log = options.output_dir / "log"
    log.unlink(missing_ok=True)
    planned = plan(recipe, chosen(recipe, **selection), options)
    train.train(recipe, planned, options, tell=tell)
    return log.read_text().split() if log.exists() else []


def states(recipe, options, **selection):
    return {each.stage.name: each.state for each in plan(recipe, chosen(recipe, **selection), options)}


def folder(options, name):
    (found,) = options.output_dir.glob(f"{name}-????????????????")
    return found


def instead(recipe, name, **fields):
    """The recipe with other fields of one stage."""
    stages = tuple(replace(s, **fields) if s.name == name else s for s in recipe.stages)
    return replace(recipe, stages=stages)


def test_stages_run_in_order_each_on_what_it_needs_and_then_never_again(options):
    said = []
    loud = replace(options, engine=EngineOptions())
    assert set(states(TOY, options).values()) == {"to do"}
    assert not options.output_dir.exists()
    assert run(TOY, loud, tell=said.append) == NAMES
    text = "mbeir model=(cc3m model=(nli))"
    assert (
        folder(options, "hard-negatives") / "out.txt"
    ).read_text() == f"hard-negatives model=({text}) negatives=(mine model=({text}))"
    assert said[0] == f"nli: the nli stage, 20 steps, in {folder(options, 'nli')}"
    assert re.fullmatch(r"hard-negatives \(5 of 5\): done in \d+ s", said[-1])
    assert run(TOY, loud, tell=said.append) == []
    assert said[-1] == f"hard-negatives (5 of 5): finished before, in {folder(options, 'hard-negatives')}"
    assert run(TOY, options, tell=said.append) == []
    assert len(said) == 15


def test_a_manifest_says_what_an_artefact_was_made_of_and_by_whom(options, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["harness", "train", "toy"])
    run(TOY, options)
    manifest = json.loads((folder(options, "mbeir") / "manifest.json").read_text())
    assert manifest["made_of"] == {
        "stage": "mbeir",
        "code": "test_recipe:write:1",
        "settings": dict(TOY.stage("mbeir").settings),
        "needs": {MODEL: folder(options, "cc3m").name},
        "tasks": {},
        "files": {"mbeir.txt": manifest["made_of"]["files"]["mbeir.txt"]},
    }
    assert set(manifest["outputs"]) == {"out.txt"}
    assert manifest["command"] == "harness train toy"
    assert manifest["recipe"] == "toy"
    assert {"harness", "python", "torch"} <= set(manifest["versions"])
    assert {"git", "device", "started", "seconds"} <= set(manifest)


def test_a_part_of_a_recipe_runs_on_what_is_finished(options):
    assert run(TOY, options, last="cc3m") == ["nli", "cc3m"]
    assert run(TOY, options, stage="mbeir") == ["mbeir"]
    assert run(TOY, options, first="cc3m", last="mine") == ["mine"]
    assert run(TOY, options, first="hard-negatives") == ["hard-negatives"]


def test_a_stage_that_raised_goes_on_in_its_folder(options):
    def breaks(run):
        saved = run.folder / "checkpoint"
        if not saved.exists():
            saved.write_text("step 7")
            raise RuntimeError("the power went")
        assert saved.read_text() == "step 7"
        write(run)

    recipe = instead(TOY, "mbeir", run=breaks)
    with pytest.raises(RuntimeError, match="the power went"):
        run(recipe, options)
    assert states(recipe, options) == dict(zip(NAMES, ["done"] * 2 + ["to do"] * 3, strict=True))
    assert run(recipe, options) == ["mbeir", "mine", "hard-negatives"]


def test_a_change_makes_anew_exactly_what_hangs_on_it_and_a_change_back_nothing(options):
    run(TOY, options)
    data = options.data / "mbeir.txt"
    data.write_text("other")
    assert run(TOY, options) == ["mbeir", "mine", "hard-negatives"]
    data.write_text("mbeir")
    assert run(TOY, options) == []
    assert run(configured(TOY, None, {"mine": {"filter": None}}), options) == ["mine", "hard-negatives"]
    assert run(instead(TOY, "hard-negatives", version=2), options) == ["hard-negatives"]
    assert run(instead(TOY, "cc3m", title="said otherwise", expected={}), options) == []
    (options.data / "nli.txt").write_text("other")
    assert run(TOY, options) == NAMES


def test_recipes_share_their_equal_stages(options):
    run(TOY, options)
    assert run(vary(TOY, "toy-random", change="random", hard_negatives={"policy": "random"}), options) == [
        "hard-negatives"
    ]
    no_cc3m = without(TOY, "toy-no-cc3m", "cc3m", change="without CC3M")
    assert run(no_cc3m, options) == ["mbeir", "mine", "hard-negatives"]
    assert len(list(options.output_dir.glob("mbeir-*"))) == 2
    assert run(vary(no_cc3m, "toy-x", change="x", mine={"limit": 5}), options) == ["mine", "hard-negatives"]


def test_media_are_looked_for_and_not_read(options):
    needs = [Need(Path("pictures"), "get it there", media=True), Need(Path("nli.txt"), "there")]
    recipe = Recipe("r", "R", (replace(stage("nli"), data=lambda settings: needs),))
    assert states(recipe, options) == {"nli": "blocked"}
    (options.data / "Pictures").mkdir()
    (options.data / "Pictures" / "a.png").write_text("a")
    run(recipe, options)
    (options.data / "Pictures" / "a.png").write_text("b")
    shutil.rmtree(options.data / "Pictures")
    assert states(recipe, options) == {"nli": "done"}


def test_data_of_a_finished_stage_may_be_put_away(options):
    run(TOY, options, last="cc3m")
    (options.data / "nli.txt").unlink()
    assert list(states(TOY, options).values()) == ["done", "done", "to do", "to do", "to do"]
    assert run(TOY, options) == ["mbeir", "mine", "hard-negatives"]
    assert set(states(configured(TOY, "tiny"), options).values()) == {"blocked"}


def test_where_data_are_gone_and_two_artefacts_could_be_meant_neither_is_taken(options):
    run(TOY, options, last="nli")
    (options.data / "nli.txt").write_text("other")
    run(TOY, options, last="nli")
    assert states(TOY, options, stage="nli") == {"nli": "done"}
    (options.data / "nli.txt").unlink()
    assert states(TOY, options, stage="nli") == {"nli": "blocked"}


def on_base(folder):
    """The recipe whose first stage starts from a file of weights."""

    def fingerprint(stage):
        try:
            return (folder / "weights").read_text()
        except OSError as error:
            raise CheckpointMissing(f"{stage.name}: no weights") from error

    return instead(TOY, "nli", base=fingerprint)


def test_another_base_makes_other_artefacts(options, tmp_path):
    recipe = on_base(tmp_path)
    (tmp_path / "weights").write_text("one")
    run(recipe, options)
    assert (
        json.loads((folder(options, "nli") / "manifest.json").read_text())["made_of"]["files"]["base"]
        == "one"
    )
    (tmp_path / "weights").write_text("two")
    assert set(states(recipe, options).values()) == {"to do"}
    (tmp_path / "weights").write_text("one")
    assert set(states(recipe, options).values()) == {"done"}
    (tmp_path / "weights").unlink()
    assert set(states(recipe, options).values()) == {"done"}, "as data that were put away"


def test_without_its_base_nothing_runs(options, tmp_path):
    (options.data / "mbeir.txt").unlink()
    planned = plan(on_base(tmp_path), NAMES, options)
    assert planned[0].inputs["base"] == "missing"
    assert {each.state for each in planned} == {"blocked"}
    with pytest.raises(DataMissing) as raised:
        run(on_base(tmp_path), options)
    assert (
        str(raised.value)
        == f"1 file or folder is missing: {options.data / 'mbeir.txt'} (get it there); nli: no weights"
    )


def test_a_base_that_changes_while_its_stage_runs_is_noticed(options, tmp_path):
    def changing(run):
        (tmp_path / "weights").write_text("two")
        write(run)

    (tmp_path / "weights").write_text("one")
    with pytest.raises(DataInvalid, match=r"^the base of nli changed after stage nli was planned: run"):
        run(instead(on_base(tmp_path), "nli", run=changing), options)


def test_all_that_is_missing_is_listed_before_anything_runs(options):
    for file in options.data.iterdir():
        file.unlink()
    with pytest.raises(DataMissing) as raised:
        run(TOY, options)
    data = options.data
    assert str(raised.value) == (
        f"2 files or folders are missing: {data / 'nli.txt'}, {data / 'mbeir.txt'} (get it there)"
    )
    with pytest.raises(DataMissing) as raised:
        run(TOY, options, first="mbeir", last="mine")
    assert str(raised.value) == (
        f"1 file or folder is missing: {data / 'mbeir.txt'} (get it there); stage mbeir needs cc3m, which is"
        " not finished (harness train toy --until cc3m, with the same settings)"
    )
    assert not options.output_dir.exists()


def test_a_file_that_cannot_be_read_is_named(options):
    (options.data / "nli.txt").unlink()
    (options.data / "nli.txt").symlink_to("/proc/self/mem")
    with pytest.raises(DataInvalid, match=r"nli\.txt cannot be read"):
        plan(TOY, NAMES, options)


@pytest.mark.parametrize(
    ("selection", "message"),
    [
        ({"stage": "nil"}, "unknown stage of recipe 'toy' 'nil': did you mean nli"),
        ({"first": "nil"}, "did you mean nli"),
        ({"last": "nil"}, "did you mean nli"),
        ({"first": "mine", "last": "nli"}, "--from mine comes after --until nli in toy"),
        ({"stage": "nli", "last": "mine"}, "--stage runs one stage: use it without --from and --until"),
    ],
)
def test_a_selection_that_makes_no_sense_is_refused(selection, message):
    with pytest.raises(HarnessError, match=re.escape(message)):
        chosen(TOY, **selection)


def put(text):
    return lambda folder: (folder / "out.txt").write_text(text)


def rename(folder):
    (folder / "manifest.json").write_text(
        (folder / "manifest.json").read_text().replace('"policy": "top"', '"policy": "low"')
    )


@pytest.mark.parametrize(
    ("tamper", "message"),
    [
        (put("the table of another model"), r"mine-\w{16}/out\.txt is not what stage mine made: delete"),
        (
            lambda folder: (folder / "out.txt").unlink(),
            r"out\.txt is gone: delete .*/mine-\w{16}, to make it",
        ),
        (rename, r"manifest\.json is that of another artefact of stage mine \(mine-\w{16}\)"),
        (lambda folder: (folder / "manifest.json").write_text("{"), r"manifest\.json is not JSON .*delete"),
        (lambda folder: (folder / "manifest.json").write_text("{}"), r"no field 'made_of': delete"),
    ],
)
def test_what_a_stage_did_not_make_is_not_read(options, tamper, message):
    run(TOY, options, last="mine")
    tamper(folder(options, "mine"))
    with pytest.raises(DataInvalid, match=message) as raised:
        run(TOY, options)
    assert "\n" not in str(raised.value)
    shutil.rmtree(folder(options, "mine"))
    assert run(TOY, options) == ["mine", "hard-negatives"]


def test_an_artefact_of_another_recipe_under_this_one_s_name_is_refused(options):
    other = configured(TOY, None, {"mine": {"policy": "random"}})
    run(other, options, last="mine")
    theirs = folder(options, "mine")
    (ours,) = (each.folder for each in plan(TOY, ["mine"], options))
    shutil.copytree(theirs, ours)
    with pytest.raises(
        DataInvalid, match=rf"of stage mine \({theirs.name}\): .*{ours.name} was copied, renamed or edited"
    ):
        run(TOY, options)


def test_what_no_stage_to_run_reads_may_be_deleted_to_free_space(options):
    run(TOY, options, last="mbeir")
    (folder(options, "nli") / "out.txt").unlink()
    assert run(TOY, options) == ["mine", "hard-negatives"]


def full(*arguments):
    raise OSError(28, "No space left on device")


def test_a_disk_that_is_full_for_the_manifest_leaves_the_stage_to_do_and_the_others_intact(
    options, monkeypatch
):
    run(TOY, options, last="mbeir")
    before = {path: path.read_bytes() for path in options.output_dir.rglob("*") if path.is_file()}
    with monkeypatch.context() as patch:
        patch.setattr(files.os, "fsync", full)
        with pytest.raises(StorageError, match=r"cannot write .*mine-\w+/manifest\.json \(no space left"):
            run(TOY, options)
    log = options.output_dir / "log"
    assert {path: path.read_bytes() for path in before if path != log} | {log: before[log]} == before
    assert [p.name for p in folder(options, "mine").iterdir() if p.name != ".lock"] == ["out.txt"]
    assert run(TOY, options) == ["mine", "hard-negatives"]


def test_a_disk_that_is_full_for_a_stage_is_one_line_and_another_fault_a_bug(options):
    with pytest.raises(StorageError, match=r"cannot write .*nli-\w+ \(no space left on device\): free some"):
        run(instead(TOY, "nli", run=full), options)

    def bug(run):
        raise OSError(2, "No such file")

    with pytest.raises(OSError, match="No such file"):
        run(instead(TOY, "nli", run=bug), options)


def test_a_folder_that_cannot_be_written_is_named_before_anything_runs(options):
    with pytest.raises(StorageError, match=r"the output folder .*nli\.txt cannot be written"):
        train.train(
            TOY, plan(TOY, NAMES, options), replace(options, output_dir=options.data / "nli.txt"), tell=print
        )


def test_a_stage_that_makes_less_than_it_says_is_not_finished(options):
    recipe = instead(TOY, "nli", makes=("out.txt", "model"))
    with pytest.raises(PluginError, match=r"recipe 'toy': stage nli ended without model in .*nli-\w{16}"):
        run(recipe, options)
    assert states(recipe, options, stage="nli") == {"nli": "to do"}


def test_data_that_change_while_a_stage_runs_leave_it_unfinished(options):
    def slow(run):
        write(run)
        (run.data / "nli.txt").write_text("other")

    with pytest.raises(DataInvalid, match=r"data/nli\.txt changed after stage nli was planned"):
        run(instead(TOY, "nli", run=slow), options)
    assert not list(options.output_dir.rglob("manifest.json"))


def test_two_runs_do_not_make_one_stage_at_once(options):
    (ours,) = (each.folder for each in plan(TOY, ["nli"], options))
    ours.mkdir(parents=True)
    with (ours / ".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(HarnessError, match=r"nli-\w{16} is being made by another run: wait for it"):
            run(TOY, options)
    planned = plan(TOY, NAMES, options)
    run(TOY, options)
    log = (options.output_dir / "log").read_text()
    train.train(TOY, planned, options, tell=print)  # planned before the other run finished everything
    assert (options.output_dir / "log").read_text() == log


def stuck(run):
    """Save, and hang; when run again, go on."""
    if not (run.folder / "checkpoint").exists():
        (run.folder / "checkpoint").write_text("step 7")
        print("saved", flush=True)
        time.sleep(60)
    write(run)


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from test_train import NAMES, TOY, EngineOptions, TrainOptions, instead, plan, stuck, train

options = TrainOptions(*map(Path, sys.argv[1:]), EngineOptions(quiet=True))
recipe = instead(TOY, "mbeir", run=stuck)
train.train(recipe, plan(recipe, NAMES, options), options, tell=print)
"""


def test_after_kill_9_finished_stages_stay_and_the_one_that_ran_has_its_folder_again(options):
    script = KILLED.format(tests=str(Path(__file__).parent))
    places = [options.data, options.output_dir, options.cache_dir]
    process = subprocess.Popen([sys.executable, "-c", script, *places], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "saved\n"
    process.kill()
    assert process.wait(timeout=30) == -signal.SIGKILL
    assert run(instead(TOY, "mbeir", run=stuck), options) == ["mbeir", "mine", "hard-negatives"]


@pytest.fixture
def command(cli, monkeypatch, tmp_path, options):
    """`harness train` in a folder with data and the toy recipes."""
    variant = vary(TOY, "toy-1", change="one epoch of NLI", nli={"epochs": 1})
    recipes = {r.name: r for r in (TOY, variant)}
    catalog = replace(load_catalog(), recipes=recipes)
    monkeypatch.setattr("harness.registry.load_catalog", lambda: catalog)
    monkeypatch.chdir(tmp_path)
    return lambda *arguments: cli("train", *arguments)


def test_the_command_trains_and_prints_the_last_folder(command):
    code, out, err = command("toy", "--device", "cpu", "--until", "cc3m")
    assert code == 0
    assert re.fullmatch(r"results/training/cc3m-\w{16}\n", out)
    assert err.splitlines()[-1].startswith("cc3m (2 of 2): done in")
    code, again, err = command("toy", "--device", "cpu", "--stage", "cc3m", "-q")
    assert (code, again, err) == (0, out, "")


def test_a_dry_run_shows_how_the_stages_stand_and_writes_nothing(command, tmp_path):
    command("toy", "--until", "nli", "--device", "cpu")
    (tmp_path / "data" / "mbeir.txt").unlink()
    code, out, err = command("toy", "--until", "mine", "--dry-run", "--set", "mbeir.epochs=1200")
    assert (code, err) == (0, "")
    assert out == textwrap.dedent(
        """\
        stage    state    inputs                     steps    sequences    GPU hours    memory
        -------  -------  -----------------------  -------  -----------  -----------  --------
        nli      done     nli.txt: there                20        2,000          1.0    60 GiB
        cc3m     to do    model of nli: done            20        2,000          1.0    60 GiB
        mbeir    blocked  model of cc3m: to do      12,000    1,200,000        600.0    60 GiB
                          mbeir.txt: missing
        mine     blocked  model of mbeir: blocked       20        2,000          1.0    60 GiB
        3 of 4 stages to run, about 602.0 GPU hours
        1 file or folder is missing: data/mbeir.txt (get it there)
        """
    )
    assert [p.name[:3] for p in (tmp_path / "results/training").glob("*-*")] == ["nli"]


def test_settings_come_from_the_preset_and_from_set(command, tmp_path):
    command("toy", "--preset", "tiny", "--until", "nli", "--device", "cpu", "--set", "nli.rate=2e-4",
            "nli.policy=none", "--set", "nli.filter=none")  # fmt: skip
    (manifest,) = tmp_path.glob("results/training/nli-*/manifest.json")
    made = json.loads(manifest.read_text())["made_of"]["settings"]
    assert made == {**TOY.stages[0].settings, "epochs": 1, "rate": 2e-4, "policy": "none", "filter": None}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["toi"], "unknown recipe 'toi': did you mean toy"),
        (["toy", "--stage", "nil"], "unknown stage of recipe 'toy' 'nil': did you mean nli"),
        (["toy", "--from", "mine", "--until", "nli"], "--from mine comes after --until nli"),
        (["toy", "--preset", "tinny"], "unknown preset of recipe 'toy' 'tinny': did you mean tiny?"),
        (["toy", "--set", "epochs=3"], "--set 'epochs=3' is not of the form STAGE.KEY=VALUE"),
        (["toy", "--set", "nil.epochs=3"], "unknown stage of recipe 'toy' 'nil': did you mean nli"),
        (["toy", "--set", "nli.epoch=3"], "unknown setting of stage 'nli' 'epoch': did you mean epochs"),
        (["toy", "--set", "nli.epochs=many"], "setting 'epochs' of stage 'nli' must be a whole number"),
        (["toy", "--set", "nli.rate=nan"], "must be a finite number, not nan"),
        (["toy-1", "--preset", "tiny"], "with these settings toy-1 trains what toy does: they undo what it"
         " changes (one epoch of NLI)"),
        (["toy-1", "--set", "nli.epochs=2"], "with these settings toy-1 trains what toy does"),
        (["toy", "--data", "nowhere"], "2 files or folders are missing: nowhere/nli.txt, nowhere/mbeir.txt"),
        (["toy", "--from", "mine"], "stage mine needs mbeir, which is not finished"),
        (["toy", "--device", "tpuu"], "device 'tpuu' cannot be used"),
    ],
)  # fmt: skip
def test_bad_input_is_one_line_and_exit_2(command, arguments, message):
    code, out, err = command(*arguments)
    assert code == 2
    assert message in err
    assert err.startswith("harness: ")
    assert len(err.splitlines()) == 1
    assert out == ""


def test_ctrl_c_is_130_and_says_what_is_kept(command, monkeypatch, tmp_path):
    def interrupted(run):
        (run.folder / "checkpoint").write_text("step 7")
        raise KeyboardInterrupt

    catalog = replace(load_catalog(), recipes={"toy": instead(TOY, "cc3m", run=interrupted)})
    monkeypatch.setattr("harness.registry.load_catalog", lambda: catalog)
    code, out, err = command("toy", "--device", "cpu", "-q")
    assert (code, out) == (130, "")
    assert re.fullmatch(
        r"interrupted in cc3m: finished stages are kept, and what it saved in results/training/cc3m-\w{16};"
        r" the same command goes on from there\n",
        err,
    )
    assert len(list(tmp_path.glob("results/training/nli-*/manifest.json"))) == 1
    assert len(list(tmp_path.glob("results/training/cc3m-*/checkpoint"))) == 1
