"""M-BEIR on disk: its 16 tasks, what their files are called, how many rows they have, its ids and texts.

One row a task, from which everything else follows:

    MSCOCO, task 0 (text → image): 24,809 test queries, 5,000 candidates, 24,989 qrels

The data set is TIGER-Lab/M-BEIR (UniIR, Wei et al. 2024, arXiv 2311.17136; MIT). Counts are those on
which MTEB's statistics and Pyserini's tables agree.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from harness.errors import DataInvalid
from harness.task import Hub, Need

from .wording import formatted

ROOT = Path("M-BEIR")
SPLITS = ("test", "val", "train")
DID_SPAN, QID_SPAN = 10_000_000, 500_000
"""An id "5:17" is also the integer 5 · span + 17; dids are unique, qids only in a data set's split."""

DATASETS = {
    "VisualNews": (0, "news"),
    "Fashion200K": (1, "fashion"),
    "WebQA": (2, "wiki"),
    "EDIS": (3, "news"),
    "NIGHTS": (4, "common"),
    "OVEN": (5, "wiki"),
    "InfoSeek": (6, "wiki"),
    "FashionIQ": (7, "fashion"),
    "CIRR": (8, "common"),
    "MSCOCO": (9, "common"),
}
"""Name → number and domain."""

DERIVED_FROM = {
    "EDIS": ("EDIS", "VisualNews"),
    "OVEN": ("OVEN", "Wikipedia"),
    "InfoSeek": ("InfoSeek", "OVEN", "Wikipedia"),
    "CIRR": ("CIRR", "NLVR2"),
    "MSCOCO": ("COCO",),
    "WebQA": ("WebQA", "Wikipedia"),
}
"""Where pictures and texts come from, where the data set's own name does not say all."""

MODALITIES = {
    0: ("text", "image"),
    1: ("text", "text"),
    2: ("text", "image,text"),
    3: ("image", "text"),
    4: ("image", "image"),
    6: ("image,text", "text"),
    7: ("image,text", "image"),
    8: ("image,text", "image,text"),
}
"""Task number → modality of its queries and of its candidates; 5 (image → image,text) is not used."""

TRAIN_POOL = ROOT / "cand_pool/global/mbeir_union_train_cand_pool.jsonl"
TRAIN_ROWS = ROOT / "query/union_train/mbeir_union_up_train.jsonl"
INSTRUCTIONS = ROOT / "instructions/query_instructions.tsv"
IMAGES = ROOT / "mbeir_images"

REPOSITORY = "TIGER-Lab/M-BEIR"
_DOWNLOAD = (
    "hf download TIGER-Lab/M-BEIR --repo-type dataset --local-dir M-BEIR, run in the data folder"
    " (huggingface.co/datasets/TIGER-Lab/M-BEIR)"
)
_UNPACK = (
    "after the download, join and unpack its parts (170 GB), in the folder M-BEIR:"
    " cat mbeir_images.tar.gz.part-* | tar -xzf -"
)


@dataclass(frozen=True, slots=True)
class Row:
    """One of the 16 tasks. Counts are those of the test split; `outside`, where it is known, of the
    qrels that point to no candidate of the task's own pool."""

    dataset: str
    task_id: int
    queries: int
    pool: int
    qrels: int
    outside: int | None = 0
    k: int = 5
    """The cut-off of the headline."""

    @property
    def name(self) -> str:
        return f"{self.dataset.lower()}_task{self.task_id}"

    @property
    def dataset_id(self) -> int:
        return DATASETS[self.dataset][0]

    @property
    def domain(self) -> str:
        return DATASETS[self.dataset][1]

    @property
    def asked(self) -> str:
        """The modality of the queries."""
        return MODALITIES[self.task_id][0]

    @property
    def wanted(self) -> str:
        """The modality of the candidates."""
        return MODALITIES[self.task_id][1]

    @property
    def arrow(self) -> str:
        return f"{_SHORT[self.asked]}→{_SHORT[self.wanted]}"

    def query_file(self, split: str) -> Path:
        """Train files hold all tasks of a data set."""
        return ROOT / f"query/{split}/mbeir_{self._stem(split)}_{split}.jsonl"

    def qrels_file(self, split: str) -> Path:
        return ROOT / f"qrels/{split}/mbeir_{self._stem(split)}_{split}_qrels.txt"

    def pool_file(self, split: str) -> Path:
        """One file serves validation and test, except for COCO; training has one for all tasks."""
        if split == "train":
            return TRAIN_POOL
        infix = f"_{split}" if self.dataset == "MSCOCO" else ""
        return ROOT / f"cand_pool/local/mbeir_{self.name}{infix}_cand_pool.jsonl"

    def _stem(self, split: str) -> str:
        return self.dataset.lower() if split == "train" else self.name


_SHORT = {"text": "T", "image": "I", "image,text": "IT"}

ROWS = (
    Row("VisualNews", 0, 19_995, 542_246, 20_000),
    Row("MSCOCO", 0, 24_809, 5_000, 24_989),
    Row("Fashion200K", 0, 1_719, 201_824, 4_847, k=10),
    Row("WebQA", 1, 2_455, 544_457, 5_002),
    Row("EDIS", 2, 3_241, 1_047_067, 8_341),
    Row("WebQA", 2, 2_511, 403_196, 3_627),
    Row("VisualNews", 3, 20_000, 537_568, 20_000),
    Row("MSCOCO", 3, 5_000, 24_809, 24_989),
    Row("Fashion200K", 3, 4_889, 61_707, 4_889, k=10),
    Row("NIGHTS", 4, 2_120, 40_038, 2_120),
    Row("OVEN", 6, 50_004, 676_667, 492_654, outside=442_650),
    Row("InfoSeek", 6, 11_323, 611_651, 73_869, outside=7_547),
    Row("FashionIQ", 7, 6_003, 74_381, 6_014, k=10),
    Row("CIRR", 7, 4_170, 21_551, 4_216),
    Row("OVEN", 8, 14_741, 335_135, 261_258, outside=None),
    Row("InfoSeek", 8, 17_593, 481_782, 131_376, outside=None),
)
"""In the order of all published tables. The positives of OVEN and InfoSeek point into each other's
pools; the totals are 190,573 queries, 5,609,079 candidates and 1,088,191 qrels."""

BY_NAME = {row.name: row for row in ROWS}
LINKED = frozenset({"OVEN", "InfoSeek"})
HOMES = {(row.dataset_id, "image" in row.wanted): row for row in ROWS}
"""(data set, whether there is a picture) → the task in whose pool such a candidate lies."""


def need(path: Path, *, media: bool = False) -> Need:
    files = "mbeir_images.tar.gz.part-*" if media else path.relative_to(ROOT).as_posix()
    return Need(path, _UNPACK if media else _DOWNLOAD, media=media, hub=Hub(REPOSITORY, (files,), into=ROOT))


def number(id: str, span: int) -> int | None:
    """The integer of an id such as "5:17", None where it is not one."""
    dataset, colon, n = id.partition(":")
    if not (colon and dataset.isdecimal() and n.isdecimal() and id.isascii() and 1 <= int(n) < span):
        return None
    return int(dataset) * span + int(n)


def named(number: int, span: int) -> str:
    """The id of an integer."""
    return "{}:{}".format(*divmod(number, span))


def kinds(modality: object) -> frozenset[str]:
    """A modality as a set: "text,image" is "image,text"."""
    return frozenset(modality.split(",")) if isinstance(modality, str) else frozenset()


def read_instructions(data_root: Path, row: Row) -> tuple[str, ...]:
    """The task's prompts, formatted; empty cells are left out. Raises DataInvalid without any."""
    path = need(INSTRUCTIONS).require(data_root)
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise DataInvalid(f"{path} is not UTF-8 ({error.reason} at byte {error.start})") from None
    head = lines[0].rstrip("\r").split("\t")
    wanted = (row.dataset_id, kinds(row.asked), kinds(row.wanted))
    for at, line in enumerate(lines[1:], 2):
        if not line.strip():
            continue
        cells = dict(zip(head, line.rstrip("\r").split("\t"), strict=False))
        try:
            key = (int(cells["dataset_id"]), kinds(cells["query_modality"]), kinds(cells["cand_modality"]))
        except (KeyError, ValueError):
            raise DataInvalid(
                f"{path}, line {at}: a row needs query_modality, cand_modality and a number as dataset_id"
            ) from None
        if key == wanted:
            prompts = tuple(filter(None, (formatted(v) for n, v in cells.items() if n.startswith("prompt_"))))
            if prompts:
                return prompts
    raise DataInvalid(
        f"{path} has no instruction for dataset_id {row.dataset_id} ({row.dataset}), query_modality"
        f" {row.asked!r}, cand_modality {row.wanted!r}: add the row, or use --instructions none"
    )
