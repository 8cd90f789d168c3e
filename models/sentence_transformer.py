"""Any model that sentence-transformers loads: a folder or repository with a modules.json.

    harness eval -m sentence-transformers --model-arg path=Qwen/Qwen3-VL-Embedding-2B -s mbeir-local

A query's instruction is the library's `prompt`: in front of the text, or the system message of a model
with a chat template; without one a model's own prompts for queries and documents hold. Of a model that
sees texts and pictures apart, as CLIP, parts are fused as in `fusion.py`, and instructions are not read.
No code that a repository brings along is run.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from harness.compat import allow_torchvision
from harness.content import Image, Item, Part, Text, Video
from harness.digest import Digests, digest
from harness.errors import CheckpointMissing, HarnessError, Unsupported
from harness.files import cache_dir
from harness.hub import endpoint
from harness.media import frame_count, frames, open_picture
from harness.model import ModelSpec, library_versions, options

from .checkpoint import CONFIG, Place, find, quietly, require_whole, unreachable
from .fusion import ALL_MODALITIES, frames_asked, fuse, take_apart
from .text_encoder import checked_dtype, write_tiny_encoder

if TYPE_CHECKING:
    import PIL.Image
    from torch import Tensor

Kind = Literal["text", "apart", "chat"]
"""Texts alone; texts and pictures, each by itself; a chat template with both."""

OPTIONS = {"path": "", "revision": "main", "dtype": "float32", "video-frames": "8"}
MODULES = "modules.json"
_FILES = ("*.json", "*.txt", "*.model", "*.jinja", "*.safetensors", "*.bin")
_OTHER_BACKENDS = ("onnx/*", "openvino/*")
_PICTURE_COST = 256
_LETTERS_OF_TOKEN = 3


@dataclass(frozen=True, slots=True)
class SentenceFrontend:
    place: Place
    fingerprint: str
    kind: Kind
    dtype: str
    video_frames: int

    @property
    def identity(self) -> Mapping[str, str]:
        return {
            "version": "1",
            "weights": self.fingerprint,
            "kind": self.kind,
            "dtype": self.dtype,
            "video_frames": str(self.video_frames),
            **library_versions("sentence-transformers", "torch", "transformers", "tokenizers", "pillow"),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return frozenset({"text"}) if self.kind == "text" else ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return self.kind != "apart"

    def cost(self, item: Item) -> int:
        """About as many tokens as there are; the library tells only once the weights are loaded."""
        total = 1 + len(item.instruction or "") // _LETTERS_OF_TOKEN
        for part in item.parts:
            if isinstance(part, Text):
                total += len(part.text) // _LETTERS_OF_TOKEN
            else:
                shown = frame_count(part, count=self.video_frames) if isinstance(part, Video) else 1
                total += _PICTURE_COST * shown
        return total

    def prepare(self, items: Sequence[Item]) -> dict[str, Any]:
        if self.kind == "apart":
            parts = take_apart(items, lambda picture: picture, video_frames=self.video_frames)
            return {"texts": parts.texts, "pictures": parts.pictures, "layout": parts.layout}
        inputs = [self._text(i) if self.kind == "text" else self._message(i) for i in items]
        return {"inputs": inputs, "asked": [(i.role, self._prompt(i)) for i in items]}

    def load(self, device: str) -> SentenceEmbedder:
        return SentenceEmbedder(self, device)

    def _prompt(self, item: Item) -> str | None:
        if not item.instruction:
            return None
        return item.instruction + item.separator if self.kind == "text" else item.instruction

    def _text(self, item: Item) -> str:
        if not all(isinstance(part, Text) for part in item.parts):
            raise Unsupported(f"{self.place} takes text alone, not {item.modality}")
        return " ".join(part.text for part in item.parts if isinstance(part, Text))

    def _message(self, item: Item) -> list[dict[str, Any]]:
        """A conversation of one turn with the parts in their order."""
        content = [piece for part in item.parts for piece in self._pieces(part)]
        return [{"role": "user", "content": content}]

    def _pieces(self, part: Part) -> list[dict[str, Any]]:
        if isinstance(part, Text):
            return [{"type": "text", "text": part.text}]
        seen: list[PIL.Image.Image] = (
            [open_picture(part)] if isinstance(part, Image) else list(frames(part, count=self.video_frames))
        )
        return [{"type": "image", "image": picture} for picture in seen]


class SentenceEmbedder:
    """The loaded model."""

    def __init__(self, frontend: SentenceFrontend, device: str) -> None:
        allow_torchvision()
        import torch

        try:
            from sentence_transformers import SentenceTransformer
        except ImportError as error:
            raise HarnessError(
                "this model needs sentence-transformers: pip install 'umr-harness[sentence-transformers]'"
            ) from error
        folder = _fetched(frontend.place)
        _require_weights(folder)
        try:
            with quietly():
                self.model = SentenceTransformer(
                    str(folder),
                    device=device,
                    local_files_only=True,
                    model_kwargs={"dtype": getattr(torch, frontend.dtype)},
                ).eval()
        except Exception as error:  # the library raises whatever the files lead to
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            raise CheckpointMissing(f"sentence-transformers cannot load {folder}: {reason}") from error

    def embed(self, batch: dict[str, Any]) -> Tensor:
        """[B, D] float32"""
        import torch

        if "layout" in batch:
            found = [
                self._encode(batch[key], "document", None) for key in ("texts", "pictures") if batch[key]
            ]
            return fuse(found, batch["layout"])
        alike = defaultdict(list)
        for at, asked in enumerate(batch["asked"]):
            alike[asked].append(at)
        rows = [
            self._encode([batch["inputs"][at] for at in places], role, prompt)
            for (role, prompt), places in alike.items()
        ]
        order = torch.tensor([at for places in alike.values() for at in places])
        return torch.cat(rows)[order.argsort()]

    def _encode(self, inputs: list[Any], role: str, prompt: str | None) -> Tensor:
        encode = self.model.encode_query if role == "query" else self.model.encode_document
        rows: Tensor = encode(
            inputs,
            prompt=prompt,
            batch_size=len(inputs),
            show_progress_bar=False,
            convert_to_tensor=True,
        )
        return rows.float().cpu()


def _fetched(place: Place) -> Path:
    """The folder, downloaded where need be. Raises CheckpointMissing."""
    if place.folder is not None:
        return place.folder
    from huggingface_hub import snapshot_download

    try:
        return Path(
            snapshot_download(
                place.repo,
                revision=place.commit,
                allow_patterns=list(_FILES),
                ignore_patterns=list(_OTHER_BACKENDS),
                endpoint=endpoint(),
            )
        )
    except Exception as error:  # the library raises its own, httpx's and built-in errors
        raise unreachable(place.repo, error) from error


def _require_weights(folder: Path) -> None:
    """Raises CheckpointMissing where there are none, or a file is broken off."""
    safe = sorted(folder.rglob("*.safetensors"))
    if not safe and not any(folder.rglob("*.bin")):
        raise CheckpointMissing(f"{folder} holds no weights: a .safetensors file is needed")
    for file in safe:
        require_whole(file)


def _modules(place: Place) -> list[dict[str, str]]:
    """What modules.json lists. Raises CheckpointMissing."""
    path = place.file(MODULES)
    if path is None:
        raise CheckpointMissing(f"{place} is no model of sentence-transformers: {MODULES} is missing")
    try:
        modules = json.loads(path.read_text(encoding="utf-8"))
        types = [str(module["type"]) for module in modules]
        first = {"type": types[0], "path": str(modules[0]["path"])}
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise CheckpointMissing(f"{path} is no list of modules: {error!r}") from error
    for name in types:
        if not name.startswith("sentence_transformers."):
            raise CheckpointMissing(f"{place} needs code of its own ({name}), which is not run")
    return [first, *({"type": name} for name in types[1:])]


def _kind(place: Place) -> Kind:
    """By the first module's settings, else by what lies beside it."""
    first = _modules(place)[0]
    inside = f"{first['path']}/" if first["path"] else ""
    saved = place.json(f"{inside}sentence_bert_config.json") or {}
    if modalities := saved.get("modality_config"):
        if "message" in modalities:
            return "chat"
        return "text" if set(modalities) == {"text"} else "apart"
    config = place.json(f"{inside}{CONFIG}") or {}
    if first["type"].endswith("CLIPModel"):
        return "apart"
    if "vision_config" not in config:
        return "text"
    templates = ("chat_template.jinja", "chat_template.json")
    spoken = any(place.file(inside + name) for name in templates) or "chat_template" in (
        place.json(f"{inside}tokenizer_config.json") or {}
    )
    return "chat" if spoken else "apart"


def _fingerprint(place: Place) -> str:
    """The commit, or the digest of all files that can change a vector."""
    if place.folder is None:
        return str(place)
    digests = Digests(cache_dir() / "digests.sqlite")
    files = sorted({file for pattern in _FILES for file in place.folder.rglob(pattern)})
    found = digest({str(file.relative_to(place.folder)): digests(file) for file in files}, length=32)
    digests.save()
    return found


def _open(given: Mapping[str, str]) -> SentenceFrontend:
    given = {key.replace("_", "-"): value for key, value in given.items()}
    chosen = options("sentence-transformers", given, OPTIONS)
    dtype = checked_dtype("sentence-transformers", chosen["dtype"])
    video_frames = frames_asked("sentence-transformers", chosen["video-frames"])
    if not chosen["path"]:
        raise CheckpointMissing("name a model of sentence-transformers with --model-arg path=FOLDER_OR_NAME")
    place = find(chosen["path"], chosen["revision"], "path")
    return SentenceFrontend(place, _fingerprint(place), _kind(place), dtype, video_frames)


def _tiny(folder: Path) -> Mapping[str, str]:
    write_tiny_encoder(folder)
    names = ("Transformer", "Pooling", "Normalize")
    modules = [
        {
            "idx": i,
            "name": str(i),
            "path": f"{i}_{name}" if i else "",
            "type": f"sentence_transformers.models.{name}",
        }
        for i, name in enumerate(names)
    ]
    (folder / MODULES).write_text(json.dumps(modules))
    (folder / "1_Pooling").mkdir(exist_ok=True)
    pooling = {"word_embedding_dimension": 32, "pooling_mode_mean_tokens": True}
    (folder / "1_Pooling" / CONFIG).write_text(json.dumps(pooling))
    (folder / "sentence_bert_config.json").write_text(json.dumps({"max_seq_length": 256}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "BertTokenizer"}))
    return {"path": str(folder)}


SENTENCE_TRANSFORMERS = ModelSpec(
    name="sentence-transformers",
    title="Any model of sentence-transformers",
    open=_open,
    tiny=_tiny,
    source="option path: a folder, or a name on https://huggingface.co",
    licence="the model's own",
    paper_ref="arXiv 1908.10084",
    input_spec={
        "image": "the model's own processor",
        "text": "the model's own limit",
        "video": "8 frames (option video-frames), as pictures",
        "several parts": "one conversation; texts joined; sum of unit vectors where seen apart",
        "instructions": "the prompt; not read where texts and pictures are seen apart",
    },
)
