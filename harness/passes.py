"""Tasks in a row that ask one pool are searched in one pass over it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from harness.run import Found, Search, SearchRequest
from harness.search import search_together

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Loaded:
    """Something has been loaded that asks the pool of this name and size; nothing of it is encoded."""

    pool: str
    size: int


Answer = tuple[Found, float]
"""And the seconds that it took."""
Steps = Generator[Loaded | SearchRequest, Answer | None, T]
"""Something with searches on its way: each is announced, wanted once all is encoded, answered by `send`."""


def in_passes(jobs: Iterable[Steps[T]], search: Search) -> list[T]:
    """What becomes of each. One that wants a search waits for as long as those after it ask the same pool;
    what it wants later is searched for by itself. What a search raises is thrown into the steps."""
    turns: list[_Turn[T]] = []
    waiting: list[_Asked[T]] = []
    asked: Loaded | None = None
    for steps in jobs:
        turn = _Turn(steps)
        turns.append(turn)
        if isinstance(turn.at, Loaded):
            if turn.at != asked:
                _answer(waiting, search)
            asked = turn.at
            turn.go()
        if isinstance(turn.at, SearchRequest):
            waiting.append((turn, turn.at))
    _answer(waiting, search)
    return [turn.value for turn in turns]


class _Turn(Generic[T]):
    """Steps, and where they are: at None they have ended, with a value."""

    at: Loaded | SearchRequest | None
    value: T

    def __init__(self, steps: Steps[T]) -> None:
        self._steps = steps
        self.go()

    def go(self, answer: Answer | None = None) -> None:
        self._go(lambda: self._steps.send(answer))

    def fail(self, error: Exception) -> None:
        self._go(lambda: self._steps.throw(error))

    def _go(self, step: Callable[[], Loaded | SearchRequest]) -> None:
        try:
            self.at = step()
        except StopIteration as end:
            self.at, self.value = None, end.value


_Asked = tuple[_Turn[T], SearchRequest]


def _answer(waiting: list[_Asked[T]], search: Search) -> None:
    """Answer all that wait, and see each to its end."""
    alike: dict[int, list[_Asked[T]]] = {}
    for turn, request in waiting:
        alike.setdefault(id(request.pool if request.scope is None else request), []).append((turn, request))
    waiting.clear()
    for together in alike.values():
        _pass(together, search)
        for turn, _ in together:
            while turn.at is not None:
                if isinstance(turn.at, Loaded):
                    turn.go()
                else:
                    _pass([(turn, turn.at)], search)


def _pass(asked: Sequence[_Asked[T]], search: Search) -> None:
    """One search for all; its time is shared out by their numbers of queries."""
    clock = time.perf_counter()
    try:
        found = search_together([request for _, request in asked], search)
    except Exception as error:
        for turn, _ in asked:
            turn.fail(error)
        return
    seconds = (time.perf_counter() - clock) / max(1, sum(len(request.queries) for _, request in asked))
    for (turn, request), each in zip(asked, found, strict=True):
        turn.go((each, seconds * len(request.queries)))
