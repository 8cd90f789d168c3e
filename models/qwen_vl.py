"""Embedders made of Qwen2-VL, Qwen2.5-VL and Qwen3-VL: one family, driven by an InputSpec.

qwen_model("umarvel", "U-MARVEL", repo="TencentBAC/…", architecture="qwen2_vl", spec=InputSpec(), …)

Nothing of transformers is subclassed: the vision tower's features take the places of the placeholders,
and the language model is given its mask and its positions, whatever the batch looks like.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
import numpy.typing as npt

from harness.content import Image, Item, Text
from harness.errors import CheckpointMissing, DataInvalid, HarnessError, UnknownName
from harness.media import Size
from harness.model import ModelSpec, library_versions, options

from .checkpoint import ADAPTER, CONFIG, Checkpoint, find
from .fusion import ALL_MODALITIES
from .input_spec import EMB, FILE, InputSpec, Piece, option, render
from .qwen_pictures import Bytes, Seen, Vision, look, normalised, see, seen_at
from .qwen_tokens import IMAGE_PAD, PAD, VIDEO_PAD, Row, Vocabulary
from .tiny_qwen import write_tiny_qwen

if TYPE_CHECKING:
    from torch import Tensor

ARCHITECTURES = ("qwen2_vl", "qwen2_5_vl", "qwen3_vl")

Ids = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]


class Rows(TypedDict):
    """Rows of tokens, padded to one length."""

    ids: Ids
    """[B, L]"""
    real: Mask
    """[B, L], false where padded."""
    pool: Mask
    """[B, L], whose states' mean is an item's vector."""
    kinds: Ids
    """[B, L]: 0 text, 1 picture, 2 clip, as transformers' mm_token_type_ids."""


class QwenBatch(Rows):
    """Prepared items: also what is seen in them, in the order of the rows."""

    pictures: Bytes
    """[patches, 3 · side · side]"""
    picture_grids: Ids
    """[pictures, 3]"""
    clips: Bytes
    """[patches, 3 · frames · side · side]"""
    clip_grids: Ids
    clip_seconds: npt.NDArray[np.float32]
    """[clips]: how long a patch lasts."""
    cut: list[int]
    """How many texts of each item were cut to the limit."""


@dataclass(frozen=True, slots=True)
class QwenFrontend:
    """The weightless half."""

    name: str
    checkpoint: Checkpoint
    spec: InputSpec
    vocabulary: Vocabulary
    vision: Vision

    @property
    def identity(self) -> Mapping[str, str]:
        adapters = ("peft",) if self.checkpoint.base is not None else ()
        return {
            "version": "1",
            "architecture": self.checkpoint.architecture,
            "weights": self.checkpoint.fingerprint,
            **self.spec.identity,
            "vision": json.dumps(asdict(self.vision)),
            **library_versions("torch", "transformers", "tokenizers", "pillow", *adapters),
        }

    @property
    def modalities(self) -> frozenset[str]:
        return ALL_MODALITIES

    @property
    def reads_instructions(self) -> bool:
        return self.spec.instruction_place != "nowhere"

    def cost(self, item: Item) -> int:
        """Tokens, exactly."""
        shown = [look(self.vision, self.spec, part) for part in item.parts if not isinstance(part, Text)]
        return len(self._row(self._shortened(item)[0], shown).ids)

    def prepare(self, items: Sequence[Item]) -> QwenBatch:
        rows, pictures, clips, cut = [], [], [], []
        for item in items:
            item, shortened = self._shortened(item)
            seen = [see(self.vision, self.spec, part) for part in item.parts if not isinstance(part, Text)]
            rows.append(self._row(item, [each for each, _ in seen]))
            pictures += [each for each in seen if not each[0].moments]
            clips += [each for each in seen if each[0].moments]
            cut.append(shortened)
        return {
            **self._padded(rows),
            "pictures": _joined([patches for _, patches in pictures]),
            "picture_grids": _grids(pictures),
            "clips": _joined([patches for _, patches in clips]),
            "clip_grids": _grids(clips),
            "clip_seconds": np.array([each.seconds for each, _ in clips], np.float32),
            "cut": cut,
        }

    def seen_at(self, image: Image, size: Size) -> Size:
        return seen_at(self.spec, image, size)

    def load(self, device: str) -> QwenEmbedder:
        model = self.checkpoint.load(self.spec.dtype).model.to(device)
        return QwenEmbedder(model, self.spec, self.vision)

    def _shortened(self, item: Item) -> tuple[Item, int]:
        """The item with its texts within the limit, and how many were not."""
        parts = tuple(
            Text(self.vocabulary.shortened(self.spec, part.text)) if isinstance(part, Text) else part
            for part in item.parts
        )
        cut = sum(new != old for new, old in zip(parts, item.parts, strict=True))
        return replace(item, parts=parts), cut

    def _row(self, item: Item, seen: Sequence[Seen]) -> Row:
        """Raises DataInvalid where the item has more tokens than the context."""
        ahead = iter(seen)
        shown = {part: next(ahead) for part in item.parts if not isinstance(part, Text)}
        pieces = render(self.spec, item, lambda part: shown[part].pieces(self.vision))
        row = self.vocabulary.row(pieces or [Piece(PAD, token=True)])  # an empty text has a state too
        if len(row.ids) > self.spec.context:
            raise DataInvalid(
                f"{_brief(item)} has {len(row.ids):,} tokens, {self.name} takes {self.spec.context:,}:"
                " lower text-tokens, max-pixels, video-pixels or fps"
            )
        return row

    def _padded(self, rows: Sequence[Row]) -> Rows:
        shape = len(rows), max(len(row.ids) for row in rows)
        ids = np.full(shape, self.vocabulary.id(PAD), np.int64)
        real, pool = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
        for at, row in enumerate(rows):
            length = len(row.ids)
            here = slice(shape[1] - length, None) if self.spec.padding == "left" else slice(length)
            ids[at, here], real[at, here], pool[at, here] = row.ids, True, self._pool(row)
        kinds = 1 * (ids == self.vocabulary.id(IMAGE_PAD)) + 2 * (ids == self.vocabulary.id(VIDEO_PAD))
        return {"ids": ids, "real": real, "pool": pool, "kinds": kinds}

    def _pool(self, row: Row) -> list[bool]:
        """Which of the row's states are averaged."""
        if self.spec.pool == "mean":
            return row.pooled
        last = len(row.ids) - 1
        at = last if self.spec.pool == "last_token" else row.ids.index(self.vocabulary.id(EMB)) - 1
        return [i == at for i in range(len(row.ids))]


class QwenEmbedder:
    """The loaded weights."""

    def __init__(self, model: Any, spec: InputSpec, vision: Vision) -> None:
        self.model = model
        self.spec = spec
        self.vision = vision

    def embed(self, batch: QwenBatch) -> Tensor:
        """[B, D] float32 unit rows."""
        import torch
        from torch.nn.functional import normalize

        with torch.inference_mode():
            return normalize(vectors(self.model, batch, self.vision, self.spec), dim=-1)


def vectors(model: Any, batch: QwenBatch, vision: Vision, spec: InputSpec) -> Tensor:
    """[B, D] float32: the mean of each row's states that are pooled; with a gradient where one is wanted."""
    import torch

    states = last_states(
        model, batch, vision, attention=spec.attention, rope=spec.rope, deepstack=spec.deepstack
    )
    pool = torch.from_numpy(batch["pool"]).to(states.device, non_blocking=True)
    weights = pool.float() / pool.sum(1, keepdim=True)
    return torch.einsum("bl,bld->bd", weights, states.float())


def last_states(
    model: Any, batch: QwenBatch, vision: Vision, *, attention: str, rope: str, deepstack: bool
) -> Tensor:
    """[B, L, D] last hidden states, after the final norm, of a transformers Qwen2VLModel, Qwen2_5_VLModel
    or Qwen3VLModel; `attention`, `rope` and `deepstack` as in InputSpec."""
    import torch

    device, dtype = model.device, model.dtype
    ids, real, kinds = (
        torch.from_numpy(batch[name]).to(device, non_blocking=True) for name in ("ids", "real", "kinds")
    )
    embedded = model.get_input_embeddings()(ids)
    layers: dict[int, list[Tensor]] = {}
    for kind, features_of, patches, grids in (
        (1, model.get_image_features, batch["pictures"], batch["picture_grids"]),
        (2, model.get_video_features, batch["clips"], batch["clip_grids"]),
    ):
        if not len(grids):
            continue
        pixels = normalised(vision, torch.from_numpy(patches).to(device, non_blocking=True), still=kind == 1)
        found = features_of(pixels.to(dtype), torch.from_numpy(grids).to(device, non_blocking=True))
        embedded = embedded.index_put((kinds == kind,), _joined_tokens(found.pooler_output).to(dtype))
        if deepstack:
            layers[kind] = [_joined_tokens(layer) for layer in found.deepstack_features]
    more = {"visual_pos_masks": kinds > 0, "deepstack_visual_embeds": _woven(kinds, layers)} if layers else {}
    states: Tensor = model.language_model(
        inputs_embeds=embedded,
        attention_mask=additive_mask(real, attention, dtype),
        position_ids=_positions(model, batch, rope).to(device, non_blocking=True),
        use_cache=False,
        **more,
    ).last_hidden_state
    return states


def additive_mask(real: Tensor, attention: str, dtype: Any) -> Tensor:
    """[B, 1, L, L]: 0 where a token sees another, the least number of the dtype where it does not.

    A padded token sees itself in any case: a row of nothing but the least number may overflow, and what
    is not a number then spreads, though its weight is 0.
    """
    import torch

    length = real.shape[1]
    seen = real[:, None, :].expand(-1, length, -1)
    if attention == "causal" or (attention == "bidir_legacy" and bool(real.all())):
        seen = seen & torch.ones(length, length, dtype=torch.bool, device=real.device).tril()
    seen = seen | torch.eye(length, dtype=torch.bool, device=real.device)
    mask = torch.zeros(seen.shape, dtype=dtype, device=real.device)
    return mask.masked_fill_(~seen, torch.finfo(dtype).min)[:, None]


def _positions(model: Any, batch: QwenBatch, rope: str) -> Tensor:
    """[3, B, L], from 0 at a row's first real token."""
    import torch

    positions: Tensor
    real = torch.from_numpy(batch["real"])
    if rope == "1d" or not (len(batch["picture_grids"]) or len(batch["clip_grids"])):
        positions = (real.long().cumsum(1) - 1).clamp(min=0)
        return positions[None].expand(3, -1, -1)
    positions, _ = model.get_rope_index(
        torch.from_numpy(batch["ids"]),
        mm_token_type_ids=torch.from_numpy(batch["kinds"]),
        image_grid_thw=torch.from_numpy(batch["picture_grids"]),
        video_grid_thw=torch.from_numpy(batch["clip_grids"]),
        second_per_grid_ts=torch.from_numpy(batch["clip_seconds"]),
        attention_mask=real.long(),
    )
    return positions


def _woven(kinds: Tensor, layers: Mapping[int, Sequence[Tensor]]) -> list[Tensor]:
    """Features [visual tokens, D] of each inner layer, pictures' and clips' in the order of the rows."""
    import torch

    visual = kinds[kinds > 0]
    woven = []
    for each in zip(*layers.values(), strict=True):
        rows = torch.empty(len(visual), each[0].shape[1], dtype=each[0].dtype, device=each[0].device)
        for kind, features in zip(layers, each, strict=True):
            rows[visual == kind] = features
        woven.append(rows)
    return woven


def _joined_tokens(features: Any) -> Tensor:
    """[tokens, D] of all that is seen: one tensor each, or all in one (inner layers in transformers 5.17)."""
    import torch

    return features if isinstance(features, torch.Tensor) else torch.cat(tuple(features))


def _joined(patches: Sequence[Bytes]) -> Bytes:
    return np.concatenate(patches) if patches else np.zeros((0, 0), np.uint8)


def _grids(seen: Sequence[tuple[Seen, Bytes]]) -> Ids:
    return np.array([each.grid for each, _ in seen], np.int64).reshape(-1, 3)


def _brief(item: Item) -> str:
    shown = [
        repr(part.text if len(part.text) <= 40 else f"{part.text[:37]}...")
        if isinstance(part, Text)
        else str(part.path)
        for part in item.parts
    ]
    return f"{item.role} {' + '.join(shown)}"


def open_qwen(
    name: str, repo: str, architecture: str | None, spec: InputSpec, given: Mapping[str, str]
) -> QwenFrontend:
    """The frontend of a model of an architecture, or of any: what the options say, else what its
    checkpoint's input_spec.json says, else `spec`. Raises CheckpointMissing, HarnessError, UnknownName."""
    shown = {option(field): value for field, value in spec.shown().items()}
    given = {key.replace("_", "-"): value for key, value in given.items()}
    chosen = options(name, given, {"path": repo, "revision": "main", "base": "", **shown})
    if not chosen["path"]:
        raise CheckpointMissing(
            f"{name} has no public checkpoint: 'harness train {name}' makes one,"
            " which --model-arg path=FOLDER names"
        )
    checkpoint = Checkpoint.at(chosen["path"], chosen["revision"], chosen["base"], architecture=architecture)
    spec = _saved_spec(checkpoint, spec).with_options(name, given)
    if spec.deepstack and checkpoint.architecture != "qwen3_vl":
        raise HarnessError(f"deepstack of model {name!r} needs Qwen3-VL, this is {checkpoint.architecture}")
    vocabulary = Vocabulary.at(checkpoint.file("tokenizer.json"), spec.special_tokens)
    config = checkpoint.config()
    _require_fit(vocabulary, config, checkpoint)
    pictures = _processor(checkpoint, "preprocessor_config.json", "image_processor")
    if pictures is None:
        checkpoint.file("preprocessor_config.json")
    clips = _processor(checkpoint, "video_preprocessor_config.json", "video_processor")
    return QwenFrontend(name, checkpoint, spec, vocabulary, Vision.of(config, pictures or {}, clips))


def architecture_of(path: str, revision: str, base: str) -> str:
    """What a checkpoint, or the base of an adapter, says that it is. Raises CheckpointMissing."""
    place = find(path, revision, "path")
    adapter = place.json(ADAPTER)
    under = base or (adapter or {}).get("base_model_name_or_path")
    if adapter is not None and under:
        place = find(str(under), "main", "base")
    found = str((place.json(CONFIG) or {}).get("model_type", ARCHITECTURES[0]))
    if found not in ARCHITECTURES:
        raise CheckpointMissing(
            f"{place} holds a model of type {found!r}, which is none of {', '.join(ARCHITECTURES)}"
        )
    return found


def _saved_spec(checkpoint: Checkpoint, spec: InputSpec) -> InputSpec:
    path = checkpoint.place.file(FILE)
    if path is None:
        return spec
    try:
        return InputSpec.from_json(path.read_text(encoding="utf-8"))
    except (ValueError, UnknownName) as error:
        raise CheckpointMissing(f"{path} is no input spec of this version: {error}") from error


def _processor(checkpoint: Checkpoint, file: str, key: str) -> dict[str, Any] | None:
    """A processor's settings, from its own file or from that of all processors (transformers 5)."""
    together = checkpoint.json("processor_config.json")
    if together is not None and isinstance(together.get(key), dict):
        return dict(together[key])
    return checkpoint.json(file)


def _require_fit(vocabulary: Vocabulary, config: Mapping[str, Any], checkpoint: Checkpoint) -> None:
    """Raises CheckpointMissing where tokenizer and model do not belong together."""
    language = {**config, **(config.get("text_config") or {})}
    table = int(language.get("vocab_size", 0))
    if table < vocabulary.rows:
        raise CheckpointMissing(
            f"{checkpoint.whole} has embeddings for {table:,} tokens, its tokenizer with"
            f" {', '.join(vocabulary.added)} needs {vocabulary.rows:,}: resize them and save it again"
        )
    for key, token in (("image_token_id", IMAGE_PAD), ("video_token_id", VIDEO_PAD)):
        if config.get(key) != vocabulary.id(token):
            raise CheckpointMissing(
                f"{vocabulary.file} has {token} at {vocabulary.id(token)}, the model's {key} is"
                f" {config.get(key)}: take the checkpoint's own tokenizer.json"
            )


def qwen_model(
    name: str,
    title: str,
    *,
    repo: str,
    architecture: str,
    spec: InputSpec,
    licence: str,
    paper_ref: str | None = None,
    parent: str | None = None,
    change: str | None = None,
    trained_on: Mapping[str, str] | None = None,
    held_out: Mapping[str, str] | None = None,
) -> ModelSpec:
    """A model of the family: `repo` on the hub by default, else `--model-arg path=…`."""
    return ModelSpec(
        name=name,
        title=title,
        open=partial(open_qwen, name, repo, architecture, spec),
        tiny=partial(tiny_options, architecture),
        source=f"https://huggingface.co/{repo}",
        licence=licence,
        parent=parent,
        change=change,
        paper_ref=paper_ref,
        trained_on=trained_on or {},
        held_out=held_out or {},
        input_spec=spec.shown(),
    )


def tiny_options(architecture: str, folder: Path) -> Mapping[str, str]:
    """Writes a tiny checkpoint; the options that open it, in a dtype in which rounding shows no fault."""
    return {"path": str(write_tiny_qwen(folder, architecture)), "dtype": "float32"}
