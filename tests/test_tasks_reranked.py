"""Under the profiles of the code bases, rerankers are shown what the released reranking shows them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from harness.content import Candidate, Image, Query, Text, Video, item
from harness.models.input_spec import Piece, render, text_of
from harness.models.qwen_rerank import form
from harness.registry import load_catalog
from harness.task import Protocol
from harness.tasks.wording import formatted

IMAGE = "Find me an everyday image that matches the given caption."
CAPTION = "Find an image caption describing the following everyday image."
CHANGED = "I'm looking for a similar everyday image with the described changes"
SAME = "I'm looking for an image with the same attributes as described."
CLIP = "Find an everyday video match with caption."
ROUNDS = "Find me a similar fashion image based on the following multi-round modifications."
STORY = (
    "I will provide you with a series of images and captions from a story, and I need you to retrieve"
    " the image corresponding to the last caption."
)
# The reranking data sets of Code-kunkun/LamRA: instruction, how it stands in the query, candidate
LAMRA = {
    "flickr/text-to-image": (IMAGE, "{ask} {text}", "<picture>"),
    "flickr/image-to-text": (CAPTION, "<picture>{ask}", "{text}"),
    "sharegpt4v/text-to-image": (IMAGE, "{ask} {text}", "<picture>"),
    "sharegpt4v/image-to-text": (CAPTION, "<picture>{ask}", "{text}"),
    "urban1k/text-to-image": (IMAGE, "{ask} {text}", "<picture>"),
    "urban1k/image-to-text": (CAPTION, "<picture>{ask}", "{text}"),
    "ccneg/right-caption": (CAPTION, "<picture>{ask}", "{text}"),
    "sugarcrepe/add_att": (CAPTION, "<picture>{ask}", "{text}"),
    "sugarcrepe/swap_obj": (CAPTION, "<picture>{ask}", "{text}"),
    "circo/val": (CHANGED, "<picture>{ask} {text}", "<picture>"),
    "genecis/change_object": (f"{CHANGED}.", "<picture>{ask} {text}", "<picture>"),
    "genecis/focus_attribute": (SAME, "<picture>{ask} {text}", "<picture>"),
    "visdial/dialog-to-image": ("Find the image that matches the dialogue", "{ask} {text}", "<picture>"),
    "msvd/text-to-video": (CLIP, "{ask} {text}", "<8 frames>"),
    "msrvtt/text-to-video": (CLIP, "{ask} {text}", "<2.0 a second>"),
    "multiturn-fashioniq/all": (ROUNDS, "{ask}{parts}", "<picture>"),
    "vist/story-to-image": (STORY, "{ask}{parts}", "<picture>"),
}
# chaxjli/U-MARVEL: markers around the same words but for these, and two sets of texts in M-BEIR's form
UMARVEL = {
    "genecis/change_object": "I want you to retrieve an similar image with the described changes."
    " Show me an image that best captures the following the described changes.",
    "genecis/focus_attribute": "I want you to retrieve an image with the same attributes as described."
    " Show me an image that best captures the following the same attributes.",
}
FORMATTED = ("flickr/text-to-image", *UMARVEL)


def first(name: str, folder: Path, **chosen: str) -> tuple[Query, Candidate]:
    task = load_catalog().tasks[name]
    if not any(folder.iterdir()):
        task.mini(folder)
    split = "val" if name.startswith(("circo", "visdial", "multiturn", "vist")) else "test"
    collection = task.load(folder, Protocol(split=split, **chosen))
    return collection.queries[0], collection.pool.sequence[0]


def seen(part: Image | Video) -> str:
    if isinstance(part, Image):
        assert part.max_pixels is None
        return "<picture>"
    return f"<{part.frames} frames>" if part.frames else f"<{part.fps} a second>"


def shown(thing: Query | Candidate) -> str:
    bare = replace(form("qwen2_vl"), chat=False)
    return text_of(render(bare, item(thing.reranked or thing), lambda part: [Piece(seen(part))]))


def written(form: str, ask: str, thing: Query | Candidate, *, m_beir: bool = False) -> str:
    text = "".join(part.text for part in thing.parts if isinstance(part, Text))
    parts = "".join(part.text if isinstance(part, Text) else seen(part) for part in thing.parts)
    return form.format(ask=ask, text=formatted(text) if m_beir else text, parts=parts)


@pytest.mark.parametrize("name", LAMRA)
def test_a_reranker_is_shown_the_released_prompts(name, tmp_path):
    ask, query, candidate = LAMRA[name]
    raw = first(name, tmp_path)
    last = written(candidate, "", raw[1])
    got = first(name, tmp_path, profile="lamra")
    assert tuple(map(shown, got)) == (written(query, ask, raw[0]), last)

    got = first(name, tmp_path, profile="umarvel")
    if not name.startswith("vist"):  # which U-MARVEL's code cannot run
        ask = f"<instruction_start>{UMARVEL.get(name, ask)}<instruction_end>"
    assert tuple(map(shown, got)) == (written(query, ask, raw[0], m_beir=name in FORMATTED), last)

    assert shown(raw[0]) == shown(replace(raw[0], reranked=None))
    bare = first(name, tmp_path, profile="lamra", instructions="none")
    assert shown(bare[0]) == written(query.replace("{ask} ", "{ask}"), "", raw[0])
