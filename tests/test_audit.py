import dataclasses
import json
from dataclasses import dataclass

import pytest
import torch

from harness.audit import audit, render
from harness.collection import Collection, Pool
from harness.content import Candidate, Image, Query, Text
from harness.errors import DataMissing, HarnessError
from harness.models.umarvel import UMARVEL
from harness.registry import load_catalog
from harness.task import Need
from harness.testing import constant, write_picture
from toys import Toy, ToyEmbedder, spec, task


@dataclass(frozen=True, slots=True)
class Frail(Toy):
    """A toy with a fault that an audit is there to find."""

    def prepare(self, items):
        if self.fault == "blind":
            items = [
                dataclasses.replace(i, parts=tuple(p for p in i.parts if isinstance(p, Text))) for i in items
            ]
        made = super(Frail, self).prepare(items)
        return {"made": made, "cut": [int(self.fault == "short") for _ in items]}

    def load(self, device):
        return FrailEmbedder(self)


class FrailEmbedder(ToyEmbedder):
    def embed(self, batch):
        made = batch["made"]
        rows = super().embed(made)
        if self.toy.fault == "neighbours":
            rows = rows + 0.1 * rows.mean(0)
        if self.toy.fault == "position":
            rows = rows + 0.1 * torch.arange(len(made))[:, None]
        if self.toy.fault == "drifts":
            rows = rows + 1e-3 * len(self.calls) ** 2
        if self.toy.fault == "collapsed":
            rows = 1 + 0.01 * rows
        return rows


def scored(tmp_path):
    """A caption and its picture, 12 times."""
    files = [write_picture(tmp_path / f"{i}.png", seed=i) for i in range(12)]
    pool = [Candidate(f"c{i}", (Image(f),)) for i, f in enumerate(files)]
    queries = [Query(f"q{i}", (Text(f"caption {i}"),), "Find it.") for i in range(12)]
    return Collection(queries, Pool("p", pool), {q.id: {c.id: 1} for q, c in zip(queries, pool, strict=True)})


def audited(tmp_path, toy, **more):
    tasks = [task(lambda: scored(tmp_path), **more)]
    done = audit(spec(toy), {}, tasks, data=tmp_path, scratch=tmp_path / "scratch")
    return done, {check.name: check for check in done.checks}


def test_a_sound_model_passes_and_every_check_has_figure_limit_and_reason(tmp_path):
    done, checks = audited(tmp_path, Frail())
    assert not done.failed
    assert [name for name, check in checks.items() if check.bad] == []
    for name in ("batch invariance", "order invariance", "padding invariance", "use: picture", "use: text"):
        assert (checks[name].verdict, checks[name].figure) == ("pass", pytest.approx(0, abs=1e-6))
    for check in checks.values():
        assert (check.figure is None) == (check.threshold is None) == (check.verdict == "not applicable")
        assert check.detail
    assert "the model has no option dtype" not in checks["precision: float16"].detail  # a toy takes any


@pytest.mark.parametrize(
    ("fault", "failing"),
    [
        ("neighbours", {"batch invariance", "padding invariance"}),
        ("position", {"batch invariance", "order invariance"}),
        ("blind", {"use: picture", "candidates: pictures", "candidates: collapse"}),
        ("collapsed", {"queries: collapse", "candidates: collapse"}),
        ("short", {"queries: truncation", "candidates: truncation"}),
        ("drifts", {"determinism, same weights"}),
    ],
)
def test_each_fault_fails_its_checks(tmp_path, fault, failing):
    done, checks = audited(tmp_path, Frail(fault=fault))
    failed = {name for name, check in checks.items() if check.verdict == "FAIL"}
    assert done.failed
    assert failing <= failed
    if fault != "drifts":  # which nothing is safe from
        assert failed == failing


def test_the_wording_is_judged_by_the_headline_under_four_wordings(tmp_path):
    @dataclass(frozen=True, slots=True)
    class Polite(Toy):
        """Finds the right picture unless it is asked politely."""

        def prepare(self, items):
            return [self._shown(i) for i in items]

        def _shown(self, one):
            polite = "Please" in (one.instruction or "")
            text = "".join(p.text for p in one.parts if isinstance(p, Text))
            files = [p.path.stem for p in one.parts if isinstance(p, Image)]
            return "polite" + text if polite else text.removeprefix("caption ") + "".join(files)

    _, checks = audited(tmp_path, Polite())
    check = checks["instruction sensitivity"]
    assert check.verdict == "warn"
    assert check.figure == pytest.approx(1.0, abs=0.3)  # 12 of 12 under three wordings, chance under one
    assert "Hit@1 of toys/a on 12 queries under 4 wordings" in check.detail


def test_without_scores_the_wording_is_judged_by_the_vectors(tmp_path):
    hidden = dataclasses.replace(scored(tmp_path), qrels=None)
    done = audit(spec(Toy()), {}, [task(lambda: hidden)], data=tmp_path, scratch=tmp_path / "scratch")
    check = next(c for c in done.checks if c.name == "instruction sensitivity")
    assert check.verdict == "warn"
    assert check.figure == pytest.approx(1.0, abs=0.1)  # a hash: another wording, any other vector
    assert check.detail.startswith("mean cosine distance of 12 queries")


def test_instructions_that_are_not_read_and_dtypes_that_do_not_exist_are_not_judged(tmp_path):
    model = load_catalog().model("random")
    tasks = [task(lambda: scored(tmp_path))]
    done = audit(model, {}, tasks, data=tmp_path, scratch=tmp_path / "scratch")
    verdicts = {check.name: check.verdict for check in done.checks}
    for name in ("use: instruction", "instruction sensitivity", "precision: float16", "precision: bfloat16"):
        assert verdicts[name] == "not applicable"


def test_rows_that_are_not_finite_end_the_audit_with_a_failure(tmp_path):
    done, checks = audited(tmp_path, Toy(fault="nan"))
    assert done.failed
    assert checks["rows"].detail == "toy: a row is not finite"


def test_the_released_attention_of_umarvel_fails_batch_invariance_and_the_default_passes(tmp_path):
    given = UMARVEL.tiny(tmp_path / "tiny")
    for attention, verdict in (("bidirectional", "pass"), ("bidir_legacy", "FAIL")):
        done = audit(
            UMARVEL,
            {**given, "attention": attention},
            [task(lambda: scored(tmp_path))],
            data=tmp_path,
            scratch=tmp_path / "scratch",
        )
        checks = {check.name: check for check in done.checks}
        assert checks["batch invariance"].verdict == verdict
        assert checks["precision: bfloat16"].figure > checks["precision: float16"].figure > 0


def test_what_cannot_be_audited_is_one_line(tmp_path):
    check = dataclasses.replace(spec(Toy()), check=lambda collection: constant())
    with pytest.raises(HarnessError, match="is a check of tasks"):
        audit(check, {}, [], data=tmp_path, scratch=tmp_path)
    with pytest.raises(DataMissing, match=r"gone.json.*get it there"):
        audited(tmp_path, Toy(), needs=[Need(tmp_path / "gone.json", "get it there")])
    with pytest.raises(HarnessError, match="takes none of the items of toys/a"):
        audited(tmp_path, Toy(modalities=frozenset({"video"})))


def test_the_report_has_a_line_for_each_check(tmp_path):
    done, checks = audited(tmp_path, Toy())
    lines = render(done).splitlines()
    assert lines[0].startswith("toy (")
    assert [line.split("|")[1].strip() for line in lines[4:-2]] == list(checks)


def test_the_command_exits_with_1_where_a_check_fails(cli):
    code, out, err = cli("audit", "-m", "random", "-t", "demo/right-caption", "--device", "cpu")
    assert (code, err) == (0, "")
    assert "| batch invariance " in out
    code, out, _ = cli("audit", "-m", "random", "-t", "demo/right-caption", "--model-arg", "dim=1", "--json")
    checks = {check["name"]: check for check in json.loads(out)["checks"]}
    assert code == 1  # one dimension: all vectors are 1 or -1
    assert checks["use: text"]["verdict"] == "FAIL"
    assert cli("audit", "-m", "constant")[0] == 2
