"""A model: a picture is its mean colour, a text the mean of its colour words."""

from dataclasses import dataclass

from harness.content import Image
from harness.media import open_picture
from harness.model import ModelSpec

WORDS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 210), "yellow": (240, 220, 40),
         "black": (10, 10, 10), "white": (245, 245, 245)}  # fmt: skip


@dataclass(frozen=True)
class Colours:
    identity = {"weights": "six colour words"}
    modalities = frozenset({"text", "image", "image,text"})
    reads_instructions = False

    def cost(self, item):
        return len(item.parts)

    def prepare(self, items):
        return [[self.colour(part) for part in item.parts] for item in items]

    def colour(self, part):
        if isinstance(part, Image):
            return open_picture(part).resize((1, 1)).getpixel((0, 0))
        named = [WORDS[word] for word in part.text.lower().split() if word in WORDS]
        shade = len(part.text) % 7  # texts without a colour still differ
        return [sum(c) / len(named) for c in zip(*named, strict=True)] if named else (120, 120, 120 + shade)

    def load(self, device):
        return self

    def embed(self, batch):
        import torch

        rows = torch.tensor([[sum(c) / len(c) for c in zip(*colours, strict=True)] for colours in batch])
        return torch.cat([rows - 127.5, torch.full((len(rows), 1), 40.0)], 1)


COLOURS = ModelSpec(
    name="colours",
    title="Mean colour against colour words",
    open=lambda options: Colours(),
    tiny=lambda folder: {},
    source="this example",
    licence="Apache-2.0",
)
