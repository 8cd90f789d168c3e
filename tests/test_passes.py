"""Tasks in a row that ask one pool are searched in one pass, and their results are those of one by one."""

import dataclasses
from functools import partial

import numpy as np
import pytest

from harness.collection import Pool
from harness.errors import HarnessError, StorageError
from harness.evaluate import evaluate
from harness.passes import Loaded, in_passes
from harness.run import Ragged, Searcher, SearchRequest
from harness.search import ArrayRows, search
from toys import Toy, catalog, collection, places, spec, task, texts

POOL = ArrayRows(np.eye(4, dtype=np.float16))


def wanted(first, last, *, pool=POOL, scope=None):
    return SearchRequest(ArrayRows(POOL.array[first:last]), pool, 1, Ragged.of([[0]] * (last - first)), scope)


def job(said, name, *asked, pool="p"):
    """Announces and wants each of `asked`, and ends with the best row of the last one's first query."""
    best = None
    for each in asked:
        said.append(f"{name} loaded")
        yield Loaded(pool, 4)
        said.append(f"{name} encoded")
        try:
            found, seconds = yield each
        except ValueError as error:
            return f"{name}: {error}"
        assert seconds >= 0
        best = found.rows[0, 0]
        said.append(f"{name} answered")
    return f"{name}: {best}"


def counted(said, request):
    said.append(f"search {len(request.queries)}")
    return search(request)


def test_one_search_answers_all_in_a_row_that_ask_one_pool():
    said = []
    jobs = [job(said, "a", wanted(0, 1)), job(said, "b"), job(said, "c", wanted(2, 4))]
    assert in_passes(jobs, partial(counted, said)) == ["a: 0", "b: None", "c: 2"]
    assert said == [
        *("a loaded", "a encoded", "c loaded", "c encoded", "search 3", "a answered", "c answered"),
    ]


def test_another_pool_is_not_encoded_before_those_that_wait_are_answered():
    said = []
    jobs = [job(said, "a", wanted(0, 1)), job(said, "b", wanted(1, 2), pool="q")]
    assert in_passes(jobs, partial(counted, said)) == ["a: 0", "b: 1"]
    assert said == [
        *("a loaded", "a encoded", "b loaded", "search 1", "a answered"),
        *("b encoded", "search 1", "b answered"),
    ]


@pytest.mark.parametrize("other", [{"pool": ArrayRows(POOL.array)}, {"scope": Ragged.of([[1, 2]])}])
def test_other_rows_or_scopes_are_searched_by_themselves(other):
    said = []
    jobs = [job(said, "a", wanted(0, 1)), job(said, "b", wanted(1, 2, **other)), job(said, "c", wanted(2, 3))]
    assert in_passes(jobs, partial(counted, said)) == ["a: 0", "b: 1", "c: 2"]
    assert [line for line in said if "search" in line] == ["search 2", "search 1"]


def test_what_is_wanted_later_is_searched_by_itself():
    said = []
    jobs = [job(said, "a", wanted(0, 1), wanted(3, 4)), job(said, "b", wanted(1, 2))]
    assert in_passes(jobs, partial(counted, said)) == ["a: 3", "b: 1"]
    assert [line for line in said if "search" in line] == ["search 2", "search 1"]


def test_what_a_search_raises_is_raised_where_it_was_wanted():
    def broken(request):
        raise ValueError("no")

    assert in_passes([job([], n, wanted(0, 1)) for n in "ab"], broken) == ["a: no", "b: no"]


def searched(tmp_path, tasks, *, broken=None):
    """Outcomes of tasks, and the numbers of queries of each search."""
    said = []

    def counting(request):
        said.append(len(request.queries))
        if broken:
            raise broken
        return search(request)

    model = spec(Toy())
    known = dataclasses.replace(
        catalog([model], tasks), searchers={"torch": Searcher("torch", "counts", counting)}
    )
    return evaluate(known, model, {}, tasks, places(tmp_path)), said


def few(n):
    whole = collection(12)
    asked = [q.id for q in whole.queries[:n]]
    return dataclasses.replace(whole, queries=whole.queries[:n], qrels={q: whole.qrels[q] for q in asked})


def test_results_of_one_pass_are_those_of_tasks_by_themselves(tmp_path):
    other = partial(collection, 12, candidates=texts(12, prefix="other"))  # of the same name and size
    tasks = [
        *(task(partial(few, n), f"toys/{n}") for n in (3, 12, 5)),
        task(lambda: dataclasses.replace(collection(), pool=Pool("toys", [])), "toys/empty"),
        task(other, "toys/other"),
        task(collection, "toys/last"),
    ]
    together, said = searched(tmp_path / "together", tasks)
    assert said == [3 + 12 + 5, 12, 12]
    assert [o.error is None for o in together] == [True, True, True, False, True, True]
    for each, outcome in zip(tasks, together, strict=True):
        (alone,), _ = searched(tmp_path / "alone", [each])
        if alone.result is None:
            assert outcome.error == alone.error
            continue
        assert dataclasses.replace(outcome.result, provenance={}) == dataclasses.replace(
            alone.result, provenance={}
        )
        assert outcome.result.provenance["written"] == alone.result.provenance["written"]
    times = [o.result.provenance["seconds"]["search"] for o in together if o.result]
    assert min(times) > 0


def test_a_search_that_fails_fails_the_tasks_that_wanted_it(tmp_path):
    tasks = [task(partial(few, n), f"toys/{n}") for n in (3, 5)]
    outcomes, said = searched(tmp_path, tasks, broken=HarnessError("too little memory"))
    assert [o.error for o in outcomes] == ["too little memory"] * 2
    assert said == [8]
    with pytest.raises(StorageError, match="full"):
        searched(tmp_path, tasks, broken=StorageError("full"))
