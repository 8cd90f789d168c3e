"""Checkpoints are found, pinned and loaded, or refused in one line that says what is wrong."""

from __future__ import annotations

import json
import pickle
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from harness.content import Video
from harness.errors import CheckpointMissing, HarnessError, UnknownName
from harness.models.checkpoint import Checkpoint, quietly
from harness.models.input_spec import FILE
from harness.models.qwen_pictures import look
from hub import Hub
from qwen_plain import transformers
from qwen_toys import MODELS, PLAIN, cosine, items_of, open_at, opened, rows


def copied(folder: Path, to: Path, **settings: Any) -> Path:
    """A copy with other values in config.json."""
    shutil.copytree(folder, to)
    config = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps(config | settings))
    return to


def test_a_checkpoint_is_found_without_being_loaded(tiny_qwen):
    found = Checkpoint.at(str(tiny_qwen["qwen3_vl"]), "main", "", architecture="qwen3_vl")
    assert found.whole == found.place
    assert pickle.loads(pickle.dumps(found)) == found


def test_the_spec_saved_with_a_checkpoint_is_used_and_options_override_it(tiny_qwen, tmp_path):
    folder = copied(tiny_qwen["qwen2_vl"], tmp_path / "c")
    saved = replace(PLAIN, attention="causal", max_pixels=50_176)
    (folder / FILE).write_text(saved.to_json())
    assert open_at(folder).spec == saved
    assert open_at(folder, **{"max-pixels": "784000"}).spec == replace(saved, max_pixels=784_000)
    assert open_at(folder, max_pixels="784000").spec.max_pixels == 784_000
    (folder / FILE).write_text('{"pool": "max"}')
    with pytest.raises(CheckpointMissing, match=r"input_spec.json is no input spec of this version: pool"):
        open_at(folder)


def test_the_fingerprint_is_of_the_content(tiny_qwen, tmp_path):
    one, same = (copied(tiny_qwen["qwen2_vl"], tmp_path / name) for name in "ab")
    other = copied(tiny_qwen["qwen2_vl"], tmp_path / "c", rope_theta=5)
    assert open_at(one).identity == open_at(same).identity
    assert open_at(one).identity["weights"] != open_at(other).identity["weights"]


def with_tensors(folder: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Path:
    from safetensors.torch import load_file, save_file

    tensors = change(load_file(folder / "model.safetensors"))
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def _newer(name: str) -> str:
    if name.startswith("visual."):
        return f"model.{name}"
    return name.replace("model.", "model.language_model.") if name.startswith("model.") else name


@pytest.mark.parametrize("architecture", ["qwen2_vl", "qwen2_5_vl"])
def test_weights_under_the_names_of_other_transformers_load(tiny_qwen, tmp_path, qwen_media, architecture):
    """4.47 wrote model.layers.… and visual.…, 4.57 model.language_model.… and model.visual.…"""
    expected = rows(opened(tiny_qwen, architecture), items_of(qwen_media))
    for version, renamed in {"4.47": str, "4.57": _newer}.items():
        folder = copied(tiny_qwen[architecture], tmp_path / version)

        def as_saved(tensors: dict[str, Any], renamed: Callable[[str], str] = renamed) -> dict[str, Any]:
            assert {"model.norm.weight", "visual.patch_embed.proj.weight"} <= set(tensors)
            return {renamed(name): t for name, t in tensors.items()} | {"sim": torch.tensor(0.05)}

        with_tensors(folder, as_saved)
        assert torch.allclose(rows(open_at(folder, architecture), items_of(qwen_media)), expected, atol=1e-6)


def sharded(folder: Path) -> Path:
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder)
    (folder / "model.safetensors").unlink()
    model.save_pretrained(folder, max_shard_size="200KB")
    assert len(list(folder.glob("model-*.safetensors"))) > 1
    return folder


def test_shards_and_pickled_tensors_load(tiny_qwen, tmp_path, qwen_media):
    from safetensors.torch import load_file

    expected = rows(opened(tiny_qwen, "qwen2_vl"), items_of(qwen_media))
    shards = sharded(copied(tiny_qwen["qwen2_vl"], tmp_path / "shards"))
    pickled = copied(tiny_qwen["qwen2_vl"], tmp_path / "pickled")
    torch.save(load_file(pickled / "model.safetensors"), pickled / "pytorch_model.bin")
    (pickled / "model.safetensors").unlink()
    for folder in (shards, pickled):
        assert torch.allclose(rows(open_at(folder), items_of(qwen_media)), expected, atol=1e-6)


class Evil:
    def __reduce__(self) -> Any:
        return print, ("unpickled",)


def _pickled(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    torch.save({"a": Evil()}, folder / "pytorch_model.bin")


def _cut(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _without_shard(folder: Path) -> None:
    sharded(folder)
    next(folder.glob("model-00002*")).unlink()


def _without_layer(folder: Path) -> None:
    with_tensors(folder, lambda t: {k: v for k, v in t.items() if "layers.1.self_attn.q_proj" not in k})


def _without_token(folder: Path) -> None:
    saved = json.loads((folder / "tokenizer.json").read_text())
    saved["added_tokens"] = [t for t in saved["added_tokens"] if t["content"] != "<|image_pad|>"]
    (folder / "tokenizer.json").write_text(json.dumps(saved))


def _settings(**values: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **values}))

    return change


def _small_table(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["text_config"]["vocab_size"] -= 6
    (folder / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (lambda f: (f / "config.json").unlink(), "is no checkpoint: config.json is missing"),
        (lambda f: (f / "config.json").write_text("{"), "config.json is no JSON"),
        (_settings(model_type="llama"), "holds a model of type 'llama', not 'qwen2_vl'"),
        (
            lambda f: (f / "model.safetensors").unlink(),
            "holds no weights: model.safetensors or pytorch_model.bin",
        ),
        (_cut, r"model.safetensors has [\d,]+ bytes, not [\d,]+: download it again"),
        (lambda f: (f / "model.safetensors").write_bytes(b"<html>"), "broken off or no safetensors file"),
        (lambda f: (f / "model.safetensors").write_bytes(b"\2" + bytes(7) + b"[]"), "is no safetensors file"),
        (_without_shard, r"model-00002.*safetensors is missing: download the checkpoint again"),
        (
            _without_layer,
            r"lacks 2 of the weights of qwen2_vl: model.language_model.layers.1.self_attn.q_proj.bias",
        ),
        (
            _pickled,
            "does not hold weights of qwen2_vl: a pickle of more than tensors, save it as safetensors",
        ),
        (lambda f: (f / "tokenizer.json").unlink(), "lacks tokenizer.json: copy it from the model"),
        (_without_token, r"is no tokenizer of Qwen-VL: it lacks <\|image_pad\|>"),
        (_settings(image_token_id=5), r"has <\|image_pad\|> at \d+, the model's image_token_id is 5"),
        (_small_table, r"has embeddings for \d+ tokens, its tokenizer with <emb>, .* needs \d+: resize them"),
        (lambda f: (f / "preprocessor_config.json").unlink(), "lacks preprocessor_config.json: copy it"),
        (lambda f: (f / "preprocessor_config.json").write_text("{}"), "settings are not Qwen-VL's: KeyError"),
    ],
)
def test_a_broken_checkpoint_is_one_line(tiny_qwen, tmp_path, capsys, harm, message):
    folder = copied(tiny_qwen["qwen2_vl"], tmp_path / "broken")
    harm(folder)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        open_at(folder).load("cpu")
    assert "\n" not in str(caught.value)
    assert "unpickled" not in capsys.readouterr().out


@pytest.mark.parametrize("spec", MODELS, ids=lambda s: s.name)
@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        (
            {"path": "/nowhere"},
            CheckpointMissing,
            "there is no checkpoint at /nowhere: give its folder or its name",
        ),
        ({"colour": "red"}, UnknownName, "unknown option of model .* 'colour'"),
        ({}, CheckpointMissing, r"cannot get \S+/\S+ from the model hub .* --model-arg path=PATH"),
    ],
)
def test_what_cannot_be_opened_is_one_line(spec, given, error, message):
    with pytest.raises(error, match=message) as caught:
        spec.open(given)
    assert "\n" not in str(caught.value)


def test_deepstack_needs_qwen3(tiny_qwen):
    with pytest.raises(HarnessError, match="deepstack of model 'tested' needs Qwen3-VL, this is qwen2_vl"):
        open_at(tiny_qwen["qwen2_vl"], deepstack="true")


@pytest.fixture(params=[False, True], ids=["lora", "dora"])
def adapter(request: Any, tiny_qwen: Mapping[str, Path], tmp_path: Path) -> tuple[Path, torch.nn.Module]:
    """An adapter as U-MARVEL's code of transformers 4.47 saved it (VLM2Vec's: with magnitudes), and the
    merged model."""
    peft = pytest.importorskip("peft")
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "adapter"
    model = transformers.AutoModelForImageTextToText.from_pretrained(
        tiny_qwen["qwen2_vl"], dtype=torch.float32
    )
    linear = [n for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) and "language_model" in n]
    with quietly():
        config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=linear, use_dora=request.param)
        adapted = peft.get_peft_model(model, config)
    torch.manual_seed(0)
    for name, weight in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, mean="magnitude" in name, std=0.2)
    adapted.save_pretrained(folder)

    def old(name: str) -> str:
        return name.replace("model.language_model.", "model.")

    tensors = load_file(folder / "adapter_model.safetensors")
    assert all(".language_model." in name for name in tensors)
    renamed = {old(name): tensor for name, tensor in tensors.items()} | {
        "base_model.model.sim": torch.tensor(0.1)
    }
    save_file(renamed, folder / "adapter_model.safetensors")
    saved = json.loads((folder / "adapter_config.json").read_text())
    saved |= {"target_modules": list(map(old, linear)), "modules_to_save": ["sim"], "task_type": "TOKEN_CLS"}
    saved["base_model_name_or_path"] = str(tiny_qwen["qwen2_vl"])
    (folder / "adapter_config.json").write_text(json.dumps(saved))
    return folder, adapted.merge_and_unload()


def test_an_adapter_is_merged_into_its_base(tiny_qwen, adapter, tmp_path, qwen_media):
    folder, merged = adapter
    frontend = open_at(folder)
    got = frontend.load("cpu").model.state_dict()
    for name, tensor in merged.model.state_dict().items():
        assert torch.allclose(got[name], tensor, atol=1e-6), name
    base = opened(tiny_qwen, "qwen2_vl")
    assert frontend.identity["weights"].endswith(f" on {base.identity['weights']}")
    assert cosine(rows(frontend, items_of(qwen_media)), rows(base, items_of(qwen_media))).max() < 0.999

    moved = shutil.copytree(tiny_qwen["qwen2_vl"], tmp_path / "moved")
    (folder / FILE).write_text(replace(PLAIN, pool="last_token").to_json())
    again = open_at(folder, base=str(moved))
    assert again.identity["weights"] == frontend.identity["weights"]
    assert again.spec.pool == "last_token"


def test_what_is_trained_beside_an_adapter_is_taken_too(tiny_qwen, adapter, qwen_media):
    from safetensors.torch import load_file, save_file

    folder, _ = adapter
    tensors = load_file(folder / "adapter_model.safetensors")
    fewer = torch.ones(300, 64)  # a table resized to fewer rows, as U-MARVEL's loaders do
    tensors["base_model.model.model.embed_tokens.weight"] = fewer
    save_file(tensors, folder / "adapter_model.safetensors")
    table = open_at(folder).load("cpu").model.get_input_embeddings().weight
    assert (table[:300] == 1).all()
    assert (table[300:] != 1).any()


def _say(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def _other_shapes(folder: Path) -> None:
    from safetensors.torch import load_file, save_file

    tensors = load_file(folder / "adapter_model.safetensors")
    save_file(
        {n: t[..., :-1].contiguous() if t.ndim else t for n, t in tensors.items()},
        folder / "adapter_model.safetensors",
    )


@pytest.mark.parametrize(
    ("harm", "message"),
    [
        (
            lambda f: _say(f, base_model_name_or_path="/gone"),
            "is an adapter: there is no checkpoint at /gone: .* base=PATH",
        ),
        (
            lambda f: _say(f, base_model_name_or_path="Qwen/Gone"),
            "is an adapter: cannot get Qwen/Gone .* base=PATH",
        ),
        (
            lambda f: _say(f, base_model_name_or_path=None),
            "names no base: give it with --model-arg base=PATH",
        ),
        (lambda f: _say(f, base_model_name_or_path=str(f)), "is an adapter itself: merge it first"),
        (
            lambda f: (f / "adapter_model.safetensors").unlink(),
            "holds no weights: adapter_model.safetensors or",
        ),
        (lambda f: _cut_adapter(f), "adapter_model.safetensors has .* bytes, not"),
        (_other_shapes, "adapter_model.safetensors does not fit its base: "),
    ],
)
def test_a_broken_adapter_is_one_line(adapter, harm, message):
    folder, _ = adapter
    harm(folder)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        open_at(folder).load("cpu")
    assert "\n" not in str(caught.value)


def _cut_adapter(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-8])


def test_a_base_is_for_adapters(tiny_qwen):
    with pytest.raises(HarnessError, match=r"is no adapter .*: leave out base="):
        open_at(tiny_qwen["qwen2_vl"], base="elsewhere")


def test_processors_saved_together_are_read(tiny_qwen, tmp_path, qwen_media):
    """transformers 5 writes processor_config.json, with bounds under `size`."""
    folder = copied(tiny_qwen["qwen2_vl"], tmp_path / "c")
    saved = json.loads((folder / "preprocessor_config.json").read_text())
    size = {"shortest_edge": saved.pop("min_pixels"), "longest_edge": saved.pop("max_pixels")}
    (folder / "preprocessor_config.json").unlink()
    clips = {**saved, "size": {"shortest_edge": 784, "longest_edge": 28 * 28 * 40}}
    together = {"image_processor": {**saved, "size": size}, "video_processor": clips}
    (folder / "processor_config.json").write_text(json.dumps(together))
    frontend = open_at(folder)
    assert frontend.vision == replace(opened(tiny_qwen, "qwen2_vl").vision, clip_pixels=(784, 31_360))
    _, high, wide = look(frontend.vision, PLAIN, Video(qwen_media / "12.mp4")).grid
    assert high * wide / 4 <= 40


@pytest.fixture
def hub(monkeypatch, tmp_path):
    from huggingface_hub import constants

    with Hub() as served:
        monkeypatch.setenv("HF_ENDPOINT", served.url)
        monkeypatch.delenv("HF_TOKEN", raising=False)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hf"))
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf/token"))
        yield served


def test_a_model_of_the_hub_is_opened_without_its_weights_and_pinned(hub, tiny_qwen, monkeypatch, qwen_media):
    files = {f.name: f.read_bytes() for f in tiny_qwen["qwen2_vl"].iterdir()}
    files |= {"README.md": b"#", "training_args.bin": b"no"}
    commit = hub.commit("models/team/embedder", files)
    frontend = open_at("team/embedder")
    assert frontend.identity["weights"] == f"team/embedder@{commit}"
    assert "model.safetensors" not in hub.downloads()
    got = rows(frontend, items_of(qwen_media))
    assert torch.allclose(got, rows(opened(tiny_qwen, "qwen2_vl"), items_of(qwen_media)), atol=1e-6)
    assert {"model.safetensors", "config.json"} <= set(hub.downloads())
    assert {"README.md", "training_args.bin"}.isdisjoint(hub.downloads())

    newer = hub.commit("models/team/embedder", files)
    assert open_at("team/embedder", revision=newer).identity["weights"].endswith(newer)
    assert open_at("team/embedder", revision=commit).identity == frontend.identity
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    offline = open_at("team/embedder", revision=commit)
    assert offline.identity == frontend.identity
    assert offline.load("cpu").model is not None
    assert open_at("team/embedder").identity["weights"].endswith(newer)  # downloaded last


def test_a_download_that_was_cut_goes_on(hub, tiny_qwen, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 10_000)
    hub.commit("models/team/embedder", {f.name: f.read_bytes() for f in tiny_qwen["qwen2_vl"].iterdir()})
    hub.cut["model.safetensors"] = 100_000
    assert open_at("team/embedder").load("cpu").model is not None
    starts = [
        asked.start
        for asked in hub.asked
        if asked.path.endswith("model.safetensors") and asked.method == "GET"
    ]
    assert starts[0] == 0
    assert starts[-1] > 0


@pytest.mark.parametrize(
    ("files", "given", "message"),
    [
        (None, {}, "cannot get team/embedder from the model hub"),
        ({"README.md": b"#"}, {}, r"team/embedder@\w+ is no checkpoint: config.json is missing"),
        ({"config.json": b"{}"}, {"revision": "v9"}, "cannot get team/embedder from the model hub"),
        ({"config.json": b'{"model_type": "bert"}'}, {}, "holds a model of type 'bert', not 'qwen2_vl'"),
    ],
)
def test_what_the_hub_does_not_give_is_one_line(hub, files, given, message):
    if files is not None:
        hub.commit("models/team/embedder", files)
    with pytest.raises(CheckpointMissing, match=message) as caught:
        open_at("team/embedder", **given)
    assert "\n" not in str(caught.value)


def test_weights_that_the_hub_lacks_are_missed_when_loaded(hub, tiny_qwen):
    files = {f.name: f.read_bytes() for f in tiny_qwen["qwen2_vl"].iterdir() if f.suffix != ".safetensors"}
    hub.commit("models/team/embedder", files)
    with pytest.raises(CheckpointMissing, match="holds no weights"):
        open_at("team/embedder").load("cpu")
