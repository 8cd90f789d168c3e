import sys
import textwrap

import pytest

from harness.errors import PluginError, UnknownName
from harness.registry import load_catalog


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Put a distribution with entry points and a module on the path, as an installer would."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def make(name, body, *, point="main", module=None):
        module = module or name.replace("-", "_")
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (info / "entry_points.txt").write_text(f"[harness]\n{point} = {module}\n")
        (tmp_path / f"{module}.py").write_text(textwrap.dedent(body))
        made.append(module)

    yield make
    for module in made:
        sys.modules.pop(module, None)


def model_plugin(*names):
    return f"""
    from harness.hookspecs import hookimpl
    from harness.model import ModelSpec

    @hookimpl
    def harness_models():
        return [ModelSpec(n, n, lambda o: None, lambda f: {{}}, "-", "-") for n in {names!r}]
    """


def test_built_ins_are_plugins_like_any_other():
    catalog = load_catalog()
    assert {"conse", "clip", "minilm", "random", "constant", "oracle"} <= set(catalog.models)
    assert {"demo", "stamps"} <= set(catalog.suites)
    assert set(catalog.searchers) == {"torch", "faiss"}
    assert [p.name for p in catalog.plugins[:3]] == [
        "umr-harness:models",
        "umr-harness:plugins",
        "umr-harness:tasks",
    ]


def test_a_third_party_model_is_found(install):
    install("other-pkg", model_plugin("theirs"))
    catalog = load_catalog()
    assert "theirs" in catalog.models
    (plugin,) = [p for p in catalog.plugins if p.name == "other-pkg:main"]
    assert (plugin.version, plugin.offers["models"], plugin.error) == ("1.0", ("theirs",), None)


def test_two_distributions_may_use_the_same_entry_point_name(install):
    install("one", model_plugin("a"))
    install("two", model_plugin("b"))
    assert {"a", "b"} <= set(load_catalog().models)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("import a_module_that_is_not_there", "ModuleNotFoundError"),
        ("raise SystemError('at import')", "at import"),
        (
            "from harness.hookspecs import hookimpl\n@hookimpl\ndef harness_models():\n    return 1 / 0",
            "ZeroDivision",
        ),
        (
            "from harness.hookspecs import hookimpl\n@hookimpl\ndef harness_models():\n    return ['x']",
            "not a ModelSpec",
        ),
        (
            "from harness.hookspecs import hookimpl\n@hookimpl\ndef harness_modles():\n    return []",
            "harness_modles",
        ),
        ("def harness_models():\n    return []", "not marked"),
        (model_plugin("twice", "twice"), "one name twice"),
    ],
)
def test_a_broken_plugin_is_kept_with_its_traceback_and_the_others_go_on(install, body, reason):
    install("broken", body)
    install("sound", model_plugin("sound-model"))
    catalog = load_catalog()
    (plugin,) = [p for p in catalog.plugins if p.name == "broken:main"]
    assert reason in plugin.error
    assert "Traceback" in plugin.error
    assert "sound-model" in catalog.models
    assert "conse" in catalog.models


def test_two_plugins_that_offer_one_name_are_an_error_naming_both(install):
    install("one", model_plugin("clash"))
    install("two", model_plugin("clash"))
    with pytest.raises(PluginError, match=r"model 'clash' is offered by both one:main and two:main"):
        load_catalog()


def test_a_built_in_name_cannot_be_taken(install):
    install("greedy", model_plugin("conse"))
    with pytest.raises(PluginError, match=r"'conse' is offered by both umr-harness:models and greedy:main"):
        load_catalog()


def test_unknown_names_show_the_near_misses_and_broken_plugins(install):
    install("broken", "import a_module_that_is_not_there")
    catalog = load_catalog()
    with pytest.raises(
        UnknownName, match=r"unknown model 'cnose': did you mean conse\?.*failed to load: broken:main"
    ):
        catalog.model("cnose")
    with pytest.raises(UnknownName, match="unknown suite 'dmeo': did you mean demo"):
        catalog.suite("dmeo")
    with pytest.raises(
        UnknownName, match="unknown task 'demo/text-to-imgae': did you mean demo/text-to-image"
    ):
        catalog.select(["demo/text-to-imgae"], [])


def test_tasks_are_chosen_by_name_glob_and_suite_each_once():
    catalog = load_catalog()
    by_suite = [t.name for t in catalog.select([], ["demo"])]
    assert by_suite == list(catalog.suite("demo").tasks)
    assert [t.name for t in catalog.select(["demo/*"], ["demo"])] == by_suite
    assert all(t.name.startswith("demo/") for t in catalog.select(["demo/*"], []))


def test_every_column_names_tasks_that_exist_and_every_task_has_a_title():
    catalog = load_catalog()
    for suite in catalog.suites.values():
        for column in suite.columns:
            for name in column.tasks:
                task = catalog.tasks[name]
                assert column.metric is None or column.metric in task.metrics
    for task in catalog.tasks.values():
        assert task.title
        assert task.metrics
        assert task.licence
