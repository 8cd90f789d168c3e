"""The evaluators that people use instead: MTEB's, and the one of sentence-transformers.

Each is handed the whole collection in memory; ours reads its files.
"""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from harness.collection import Collection
from harness.compat import allow_torchvision
from harness.content import Image, Part, Text
from harness.errors import HarnessError
from harness.media import open_picture

from .timing import optional

BATCH = 32
"""The default of both."""
Scores = Mapping[str, float]
"""By the key of a metric of ours."""
METRICS = {"ndcg_at_10": "ndcg@10", "recall_at_10": "recall@10"}
"""What all have, by the names of ours and MTEB, and as sentence-transformers calls them."""

Load = Callable[[], Any]
"""Loads the model: for MTEB and sentence-transformers, something with their methods."""


@dataclass(frozen=True, slots=True)
class Evaluator:
    name: str
    evaluate: Callable[[], Scores]

    def run(self) -> Scores:
        """The scores; bars and warnings are swallowed."""
        with redirect_stderr(io.StringIO()):
            return self.evaluate()


def evaluators(collection: Collection, load: Load) -> list[Evaluator]:
    """Those that are installed, each to evaluate the model that `load` gives on the collection."""
    found = []
    if mteb := optional("mteb"):
        found.append(_mteb(mteb, collection, load))
    if optional("sentence_transformers"):
        found.append(_sentence_transformers(collection, load))
    return found


def sentence_model(folder: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    return SentenceTransformer(str(folder), device="cpu", local_files_only=True)


def write_open_clip(folder: Path, architecture: str = "ViT-B-32") -> None:
    """A model of open_clip with random weights, as a folder that open_clip and ours open."""
    allow_torchvision()
    import open_clip
    import torch
    from safetensors.torch import save_file

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = open_clip.create_model(architecture)
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(architecture), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))


class OpenClip:
    """A model of open_clip as both call it, in batches of a fixed size, as MTEB's own loader runs it."""

    similarity_fn_name = "cosine"
    model_card_data = SimpleNamespace(set_evaluation_metrics=lambda *_: None)

    def __init__(self, folder: Path) -> None:
        import open_clip

        self.model, _, self.transform = open_clip.create_model_and_transforms(f"local-dir:{folder}")
        self.model.eval()
        self.tokenizer = open_clip.get_tokenizer(f"local-dir:{folder}")

    @property
    def mteb_model_meta(self) -> Any:
        from mteb.models import ModelMeta

        return ModelMeta.create_empty({"modalities": ["text", "image"]})

    def encode(self, inputs: Any, **_: Any) -> Any:
        import torch

        with torch.inference_mode():
            return torch.cat(
                [self._texts(b["text"]) if "text" in b else self._see(b["image"]) for b in inputs]
            )

    def encode_query(self, texts: Sequence[str], **_: Any) -> Any:
        return self.encode({"text": texts[a : a + BATCH]} for a in range(0, len(texts), BATCH))

    def encode_document(self, pictures: Sequence[Image], **_: Any) -> Any:
        starts = range(0, len(pictures), BATCH)
        return self.encode({"image": [open_picture(p) for p in pictures[a : a + BATCH]]} for a in starts)

    def similarity(self, queries: Any, candidates: Any) -> Any:
        from sentence_transformers.util import cos_sim

        return cos_sim(queries, candidates)

    def similarity_pairwise(self, queries: Any, candidates: Any) -> Any:
        from sentence_transformers.util import pairwise_cos_sim

        return pairwise_cos_sim(queries, candidates)

    def _texts(self, texts: Sequence[str]) -> Any:
        return self.model.encode_text(self.tokenizer(texts))

    def _see(self, pictures: Sequence[Any]) -> Any:
        import torch

        return self.model.encode_image(torch.stack([self.transform(picture) for picture in pictures]))


def _sentence_transformers(collection: Collection, load: Load) -> Evaluator:
    from sentence_transformers.sentence_transformer.evaluation import InformationRetrievalEvaluator

    queries = {query.id: _plain(query.parts) for query in collection.queries}
    corpus = {candidate.id: _plain(candidate.parts) for candidate in collection.pool}
    relevant = {query: set(collection.positives(query)) for query in queries}

    def run() -> Scores:
        evaluator = InformationRetrievalEvaluator(queries, corpus, relevant, write_csv=False)
        found = evaluator(load())
        return {ours: found[f"cosine_{theirs}"] for ours, theirs in METRICS.items()}

    return Evaluator("sentence-transformers InformationRetrievalEvaluator", run)


def _mteb(mteb: Any, collection: Collection, load: Load) -> Evaluator:
    import datasets
    from mteb.abstasks import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    pictures = any(isinstance(part, Image) for candidate in collection.pool for part in candidate.parts)
    split = {
        "queries": datasets.Dataset.from_list([_row(q.id, q.parts) for q in collection.queries]),
        "corpus": datasets.Dataset.from_list([_row(c.id, c.parts) for c in collection.pool]),
        "relevant_docs": {q.id: collection.positives(q.id) for q in collection.queries},
        "top_ranked": None,
    }
    if pictures:
        split["corpus"] = split["corpus"].cast_column("image", datasets.Image())

    class Bench(AbsTaskRetrieval):  # type: ignore[misc]
        metadata = TaskMetadata(
            name="HarnessBench",
            description="The collection of harness bench eval.",
            dataset={"path": "none", "revision": "none"},
            type="Any2AnyRetrieval" if pictures else "Retrieval",
            category="t2i" if pictures else "t2t",
            modalities=["text", "image"] if pictures else ["text"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, **kwargs: Any) -> None:
            self.dataset = {"default": {"test": dict(split)}}
            self.data_loaded = True

    def run() -> Scores:
        result = mteb.evaluate(load(), Bench(), cache=None, co2_tracker=False, show_progress_bar=False)
        (scores,) = result.task_results[0].scores["test"]
        return {key: scores[key] for key in METRICS}

    return Evaluator("mteb.evaluate", run)


def _row(name: str, parts: Sequence[Part]) -> dict[str, Any]:
    """As a row of MTEB's; a picture is its path, read when it is needed."""
    row: dict[str, Any] = {"id": name}
    for part in parts:
        if isinstance(part, Text):
            row["text"] = part.text
        elif isinstance(part, Image):
            row["image"] = str(part.path)
    return row


def _plain(parts: Sequence[Part]) -> Any:
    if len(parts) == 1 and isinstance(parts[0], Text):
        return parts[0].text
    if len(parts) == 1 and isinstance(parts[0], Image):
        return parts[0]
    raise HarnessError("bench eval compares on items of one text or one picture")
