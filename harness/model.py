"""Models: what a plugin offers, and the two halves of a loaded one (frontend and embedder)."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from harness.collection import Collection
from harness.content import Ask, Item
from harness.digest import digest, file_digest
from harness.errors import PluginError, UnknownName

if TYPE_CHECKING:
    from torch import Tensor

Batch = Any
"""What `prepare` makes and `embed` takes: it crosses a process boundary, so it must pickle."""


class Embedder(Protocol):
    """The weights on a device."""

    def embed(self, batch: Batch) -> Tensor:
        """[B, D] float32, one row per item in order; the engine brings rows to unit length."""
        ...


class Frontend(Protocol):
    """The weightless half: cheap to make, picklable, held by workers and by `plan`."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Everything that changes a vector: weights, input form, dtype, library versions.

        Give it a "version" that you raise when your code changes its vectors; without one, the
        engine adds a digest of the source file.
        """
        ...

    @property
    def modalities(self) -> frozenset[str]:
        """Which of text, image, "image,text", interleaved and video it takes."""
        ...

    @property
    def reads_instructions(self) -> bool:
        """Whether `item.instruction` changes a vector; where not, the engine strips it, so that
        equal contents under several instructions are encoded once."""
        ...

    def cost(self, item: Item) -> int:
        """Tokens (or a like measure of work) of an item, at least 1, without decoding media."""
        ...

    def prepare(self, items: Sequence[Item]) -> Batch:
        """Decode, resize and tokenise on the CPU; called in worker processes.

        A batch that is a mapping may say under "cut" how many texts of each item its limit shortened.
        """
        ...

    def load(self, device: str) -> Embedder:
        """Load the weights."""
        ...


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as `harness list models` shows it; importing it must not import torch.

    `open(options)` gives the frontend; `tiny(folder)` writes a tiny checkpoint and returns the
    options that open it. `check` builds a frontend from a loaded collection instead: such a
    model tests tasks, and never enters a ranking.
    """

    name: str
    title: str
    open: Callable[[Mapping[str, str]], Frontend]
    tiny: Callable[[Path], Mapping[str, str]]
    source: str
    licence: str
    parent: str | None = None
    change: str | None = None
    paper_ref: str | None = None
    trained_on: Mapping[str, str] = field(default_factory=dict)
    """Source of data (as in `Task.derived_from`) → evidence that it was trained on it."""
    held_out: Mapping[str, str] = field(default_factory=dict)
    """Source of data → evidence that it was not; of what stands in neither nothing is known."""
    input_spec: Mapping[str, str] = field(default_factory=dict)
    check: Callable[[Collection], Frontend] | None = None


class Reranker(Protocol):
    """A reranker's weights on a device."""

    def score(self, batch: Batch) -> Tensor:
        """[all candidates of all asks] float32, ask after ask: the higher, the better."""
        ...


class RerankFrontend(Protocol):
    """The weightless half of a reranker, as `Frontend` is that of a model."""

    @property
    def identity(self) -> Mapping[str, str]:
        """Everything that changes a score."""
        ...

    @property
    def modalities(self) -> frozenset[str]:
        """Which modalities it takes, of queries and candidates."""
        ...

    @property
    def listwise(self) -> bool:
        """Whether a candidate's score depends on the others of its ask, and on their order."""
        ...

    def cost(self, ask: Ask) -> int:
        """Tokens (or a like measure of work) of an ask, at least 1, without decoding media."""
        ...

    def prepare(self, asks: Sequence[Ask]) -> Batch:
        """Decode, resize and tokenise on the CPU; called in worker processes."""
        ...

    def load(self, device: str) -> Reranker:
        """Load the weights."""
        ...


@dataclass(frozen=True, slots=True)
class RerankerSpec:
    """A reranker as `harness list models` shows it.

    `depths` and `weights` are its published settings by globs of task names; the last that matches
    holds. Scores are fused as retrieval score + weight · reranker's score.
    """

    name: str
    title: str
    open: Callable[[Mapping[str, str]], RerankFrontend]
    tiny: Callable[[Path], Mapping[str, str]]
    source: str
    licence: str
    depths: Mapping[str, int]
    weights: Mapping[str, float]
    parent: str | None = None
    change: str | None = None
    paper_ref: str | None = None
    trained_on: Mapping[str, str] = field(default_factory=dict)
    held_out: Mapping[str, str] = field(default_factory=dict)
    input_spec: Mapping[str, str] = field(default_factory=dict)


def options(model: str, given: Mapping[str, str], defaults: Mapping[str, str]) -> dict[str, str]:
    """`defaults` overridden by the `--model-arg` values; raises UnknownName for others."""
    for name in given:
        if name not in defaults:
            hint = f"known: {', '.join(sorted(defaults)) or 'none'}"
            raise UnknownName(f"option of model {model!r}", name, defaults, hint=hint)
    return {**defaults, **given}


def library_versions(*names: str) -> dict[str, str]:
    """The installed version of each distribution, for an identity ("absent" where it is not)."""
    return {name: _version(name) for name in names}


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "absent"


def full_identity(
    name: str, frontend: Frontend | RerankFrontend, engine: Mapping[str, str]
) -> dict[str, str]:
    """The frontend's identity with the model's name and what the engine adds.

    Raises PluginError where it is empty or not text to text: two models without an identity
    would share one cache, and one would get the other's vectors.
    """
    own = dict(frontend.identity)
    if not own or not all(isinstance(k, str) and isinstance(v, str) for k, v in own.items()):
        raise PluginError(
            f"model {name!r} has no usable identity ({own!r}): name, as text, what changes its vectors,"
            " such as {'weights': ..., 'dtype': ..., 'version': ...}"
        )
    if "version" not in own:
        own["code"] = _code_digest(type(frontend))
    return {"model": name, **own, **engine}


def _code_digest(cls: type) -> str:
    try:
        return file_digest(Path(inspect.getfile(cls)))[:16]
    except (OSError, TypeError) as error:
        raise PluginError(
            f"{cls.__qualname__} has no 'version' in its identity and no source file to hash: add a 'version'"
        ) from error


def identity_id(identity: Mapping[str, str]) -> str:
    """The digest of a full identity: the model's side of every score and of every stored row."""
    return digest(identity)
