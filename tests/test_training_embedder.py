"""What is trained of a model, what is merged into the checkpoint that a stage makes, and what it says of itself."""  # noqa: E501

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from harness.content import Image, Item, Text
from harness.errors import CheckpointMissing
from harness.models.input_spec import InputSpec
from harness.models.qwen_vl import open_qwen
from harness.models.training.embedder import Trained, embedding, inner, learned, open_frontend, save
from harness.registry import load_catalog

SETTINGS = {"dtype": "float32", "max_pixels": 3136, "text_tokens": 480, "generation_prompt": False}
LORA = Trained(rank=4, alpha=8, dropout=0.0, vision=False, projector=False, seed=1)


@pytest.fixture(scope="module")
def items(qwen_media):
    return [
        Item("query", (Text("a red square"),), "Find it."),
        Item("query", (Image(qwen_media / "p.png"), Text("in blue")), "Change it."),
        Item("candidate", (Image(qwen_media / "q.png"),)),
    ]


def opened(folder, **more):
    return open_frontend(str(folder), {**SETTINGS, **more}, InputSpec())


def stirred(module):
    """With something learned: adapters start at nothing."""
    generator = torch.Generator().manual_seed(5)
    for name, weight in module.named_parameters():
        if weight.requires_grad and "temperature" not in name:
            weight.data += 0.05 * torch.randn(weight.shape, generator=generator)
    return module.eval()


def unit(rows):
    return torch.nn.functional.normalize(rows.detach().float(), dim=-1).numpy()


@pytest.mark.parametrize(
    ("trained", "wanted"),
    [
        (LORA, {"model.language_model": "lora"}),
        (replace(LORA, vision=True), {"model.language_model": "lora", "model.visual": "lora"}),
        (replace(LORA, projector=True), {"model.language_model": "lora", "model.visual.merger": "weights"}),
        (replace(LORA, rank=None), {"model.language_model": "weights"}),
        (
            replace(LORA, rank=None, vision=True),
            {"model.language_model": "weights", "model.visual": "weights"},
        ),
    ],
    ids=["adapters", "with vision", "with projector", "weights", "weights of both"],
)
def test_only_what_is_named_wants_a_gradient_and_that_in_float32(trained, wanted, tiny_qwen):
    module = embedding(opened(tiny_qwen["qwen2_vl"], dtype="bfloat16"), trained, 0.05)
    found = {n: p for n, p in module.named_parameters() if p.requires_grad and n != "temperature.raw"}
    assert all(p.dtype == torch.float32 for p in found.values())
    for name in found:
        place = name.removeprefix("whole.").removeprefix("base_model.model.")
        kinds = [kind for part, kind in wanted.items() if place.startswith(part)]
        assert kinds, name
        assert ("lora" in kinds and ".lora_" in name) or ("weights" in kinds and ".lora_" not in name)
    for part, kind in wanted.items():
        assert any(part in n and ((".lora_" in n) == (kind == "lora")) for n in found), part
    assert not any("lm_head" in name or "embed_tokens" in name for name in found if ".lora_" in name)


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl", "qwen3_vl"])
def test_the_merged_checkpoint_gives_the_vectors_of_the_adapters(architecture, tiny_qwen, items, tmp_path):
    frontend = opened(tiny_qwen[architecture])
    module = stirred(embedding(frontend, LORA, 0.05))
    batch = frontend.prepare(items)
    expected = unit(module(batch))
    before = frontend.load("cpu").embed(batch).numpy()
    assert np.abs(expected - before).max() > 1e-2
    save(module, frontend, tmp_path / "model")
    again = open_qwen("umarvel", "", None, InputSpec(), {"path": str(tmp_path / "model")})
    assert again.spec == frontend.spec  # what it was trained with, without an option
    np.testing.assert_allclose(again.load("cpu").embed(batch).numpy(), expected, atol=1e-5)


def test_a_merge_is_rounded_once(tiny_qwen, items, tmp_path):
    """In bfloat16: W + ΔW is added up in float32, and every weight is the nearest to it."""
    from safetensors.torch import load_file

    frontend = opened(tiny_qwen["qwen2_vl"], dtype="bfloat16")
    module = stirred(embedding(frontend, LORA, None))
    name = "model.language_model.layers.0.self_attn.q_proj"
    layer = module.whole.get_submodule(f"base_model.model.{name}")
    exact = layer.base_layer.weight.float() + layer.get_delta_weight("default").float()
    save(module, frontend, tmp_path / "model")
    merged = load_file(tmp_path / "model" / "model.safetensors")
    found = next(t for key, t in merged.items() if key.endswith("layers.0.self_attn.q_proj.weight"))
    assert found.dtype == torch.bfloat16
    assert torch.equal(found, exact.bfloat16())


def test_the_temperature_goes_from_stage_to_stage(tiny_qwen, tmp_path):
    frontend = opened(tiny_qwen["qwen2_vl"])
    module = embedding(frontend, LORA, 0.05)
    module.temperature.raw.data.fill_(0.0213)
    save(module, frontend, tmp_path / "model")
    assert learned(str(tmp_path / "model"), 0.05) == pytest.approx(0.0213)
    assert learned(str(tiny_qwen["qwen2_vl"]), 0.05) == 0.05
    (tmp_path / "model" / "temperature.json").write_text(json.dumps({"tau": 1}))
    with pytest.raises(CheckpointMissing, match="holds no temperature"):
        learned(str(tmp_path / "model"), 0.05)


def test_adapters_are_the_same_for_a_seed_and_others_for_another(tiny_qwen):
    def first(seed):
        torch.manual_seed(torch.randint(1000, (1,)).item())
        module = embedding(opened(tiny_qwen["qwen2_vl"]), replace(LORA, seed=seed), None)
        return next(p for n, p in module.named_parameters() if "lora_A" in n)

    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))


def a_stage(recipe, name, base, **settings):
    return load_catalog().recipes[recipe].stage(name).having({"base": str(base), **settings})


@pytest.mark.parametrize(
    ("recipe", "name"), [("umarvel", "nli"), ("umarvel", "reranker"), ("lamra-rank", "reranker")]
)
def test_the_checkpoint_that_a_stage_starts_from_counts(recipe, name, tiny_qwen):
    found = {base: a_stage(recipe, name, tiny_qwen[base]) for base in ("qwen2_vl", "qwen3_vl")}
    prints = {base: stage.base(stage) for base, stage in found.items()}
    assert len(set(prints.values())) == 2
    assert prints["qwen2_vl"] == opened(tiny_qwen["qwen2_vl"]).checkpoint.fingerprint


def test_what_stages_make_is_no_base(tiny_qwen):
    made = [
        a_stage("umarvel", "nli", "scratch:toy"),
        a_stage("umarvel", "mbeir", "/gone"),
        a_stage("umarvel", "reranker", "/gone", init="retriever"),
    ]
    assert [stage.base(stage) for stage in made] == [None] * 3


def test_a_taught_base_counts_by_what_it_is_taught_by():
    one, same, other = (a_stage("umarvel", "nli", "taught:tiny", seed=seed) for seed in (1, 1, 2))
    assert one.base(one) == same.base(same) != other.base(other)


def _adapter_of(folder, base):
    folder.mkdir()
    (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": str(base)}))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(1, 1)}, folder / "adapter_model.safetensors")
    return folder


def test_a_wrong_base_is_one_line_before_any_stage_runs(tiny_qwen, tmp_path):
    other = shutil.copytree(tiny_qwen["qwen2_vl"], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps({**config, "model_type": "clip"}))
    wrong = {
        tmp_path / "gone": r"there is no checkpoint at .*gone: .* with --set reranker\.base=PATH$",
        other: "other holds a model of type 'clip', which is none of qwen2_vl",
        _adapter_of(tmp_path / "a", other): "other holds a model of type 'clip'",
        _adapter_of(tmp_path / "b", tmp_path / "a"): "the base of .*b, .*a, is an adapter itself: merge",
    }
    for base, message in wrong.items():
        stage = a_stage("umarvel", "reranker", base)
        with pytest.raises(CheckpointMissing, match=message) as caught:
            stage.base(stage)
        assert "\n" not in str(caught.value)


def test_an_adapter_of_another_base_is_one_line(tiny_qwen, tmp_path):
    frontend = opened(_adapter_of(tmp_path / "adapter", tiny_qwen["qwen2_vl"]))
    with pytest.raises(CheckpointMissing, match=r"adapter_model\.safetensors does not fit its base"):
        embedding(frontend, LORA, None)


def test_the_head_is_no_part_of_the_forward(tiny_qwen, items):
    frontend = opened(tiny_qwen["qwen2_vl"])
    module = embedding(frontend, LORA, None)
    module.whole.get_output_embeddings().weight.data.fill_(float("nan"))
    assert torch.isfinite(module(frontend.prepare(items[:1]))).all()
    assert inner(module.whole).language_model is not None
