import dataclasses

import pytest

from harness.collection import Collection, Pool, checked
from harness.content import Candidate, Image, Query, Text, Video, modality
from harness.errors import DataInvalid
from toys import collection, texts


def changed(**fields):
    return dataclasses.replace(collection(4), **fields)


def test_a_union_iterates_over_all_its_pools_in_order():
    a, b, c = texts(2), texts(3, prefix="b"), texts(1, prefix="c")
    union = Pool("u", (Pool("x", (Pool("a", a), Pool("b", b))), Pool("c", c)))
    assert list(union) == [*a, *b, *c]
    assert len(union) == 6
    assert len(Pool("empty", [])) == 0


def test_repeats_with_equal_content_are_dropped_and_counted():
    pool = Pool("u", (Pool("a", texts(4)), Pool("b", texts(2))))
    got, counts = checked(changed(pool=pool))
    assert [c.id for c in got.pool] == ["c0", "c1", "c2", "c3"]
    assert counts["repeats_dropped"] == 2
    assert counts["candidates"] == 4


def test_one_id_with_two_contents_is_an_error():
    pool = Pool("u", [*texts(4), Candidate("c1", (Text("something else"),))])
    with pytest.raises(DataInvalid, match=r"candidate id 'c1' has two contents in pool 'u'"):
        checked(changed(pool=pool))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"queries": [*collection(4).queries, Query("q1", (Text("x"),))]}, "query id 'q1' occurs twice"),
        ({"queries": []}, "no queries"),
        ({"pool": Pool("toys", [])}, "'toys' has no candidates"),
        ({"queries": [Query("q0", ())], "qrels": {}}, "query 'q0' has no part"),
        ({"pool": Pool("toys", [*texts(4), Candidate("c9", ())])}, "candidate 'c9' has no part"),
        ({"qrels": {"nobody": {"c1": 1}}}, "qrels names query 'nobody'"),
        ({"qrels": {"q1": {"x7": 1}, "q2": {"x8": 2}}}, "none of the 2 positives in the qrels"),
        ({"scope": {"q1": ["c0", "zz"]}}, "scope of query 'q1' names candidate 'zz'"),
        ({"scope": {"nobody": ["c0"]}}, "scope names query 'nobody'"),
        ({"exclude": {"q1": ["zz"]}}, "exclude of query 'q1' names candidate 'zz'"),
        ({"groups": {"g": ["q0", "nobody"]}}, "group 'g' names query 'nobody'"),
    ],
)
def test_what_cannot_be_scored_is_named_in_one_line(fields, message):
    with pytest.raises(DataInvalid, match=message) as error:
        checked(changed(**fields))
    assert "\n" not in str(error.value)


def test_positives_outside_the_pool_and_queries_without_qrels_are_counted_not_fatal():
    qrels = {"q0": {"c0": 1, "elsewhere": 1}, "q1": {"c1": 1}, "q2": {"c2": 0}}
    got, counts = checked(changed(qrels=qrels))
    assert got.qrels == qrels
    assert counts["positives_outside_pool"] == 1
    assert counts["queries_without_qrels"] == 2  # q2 has only a grade of 0, q3 nothing
    assert counts["qrels"] == 3


def test_without_is_the_collection_as_if_they_had_never_been_there():
    full = changed(
        qrels={"q0": {"c0": 1, "c1": 1}, "q1": {"c1": 1}, "q2": {"c2": 1}, "q3": {}},
        scope={"q0": ["c0", "c1"], "q1": ["c1", "c2"]},
        groups={"all": ["q0", "q1", "q2", "q3"]},
    )
    left = full.without(["q2"], ["c1"])
    assert [q.id for q in left.queries] == ["q0", "q3"]  # q1 lost its only positive; q3 never had one
    assert [c.id for c in left.pool] == ["c0", "c2", "c3"]
    assert left.qrels == {"q0": {"c0": 1}, "q3": {}}
    assert left.scope == {"q0": ["c0"]}
    assert left.groups == {"all": ["q0", "q3"]}
    checked(left)


def test_limited_keeps_all_that_its_queries_need():
    full = changed(qrels={"q0": {"c3": 1}, "q1": {"c1": 1}}, exclude={"q0": ["c2"], "q3": ["c1"]})
    small = full.limited(1)
    assert [q.id for q in small.queries] == ["q0"]
    assert [c.id for c in small.pool] == ["c0", "c2", "c3"]
    checked(small)


def test_hidden_truth_stays_hidden():
    got, counts = checked(changed(qrels=None))
    assert got.qrels is None
    assert "qrels" not in counts


@pytest.mark.parametrize(
    ("parts", "name"),
    [
        ((Text("a"),), "text"),
        ((Text("a"), Text("b")), "text"),
        ((Image("a"),), "image"),
        ((Image("a"), Text("")), "image,text"),
        ((Text("a"), Image("b")), "image,text"),
        ((Image("a"), Image("b")), "interleaved"),
        ((Text("a"), Image("b"), Text("c")), "interleaved"),
        ((Video("v"),), "video"),
        ((Video("v"), Text("a")), "interleaved"),
    ],
)
def test_modality_of_parts(parts, name):
    assert modality(parts) == name


def test_a_collection_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        collection().qrels = {}  # type: ignore[misc]
    assert isinstance(collection(), Collection)
