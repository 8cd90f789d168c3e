"""A tree with M-BEIR's exact shape and no pictures: `python full_shape.py DATA [SCALE]`.

Every row is a text, so that loading, search and metrics run at full size without a model's cost.
A share of the queries repeats the text of one positive: a content hash finds exactly those.
"""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

from harness.tasks import mbeir_layout as layout

PLANTED = 3
"""Every third query is found."""


def rows_of(row: layout.Row, scale: float) -> tuple[int, int]:
    """Queries and candidates of a task at this scale, a few at least."""
    return max(3, round(row.queries * scale)), max(8, round(row.pool * scale))


def write(data: Path, scale: float) -> None:
    (data / layout.IMAGES).mkdir(parents=True)
    instructions = data / layout.INSTRUCTIONS
    instructions.parent.mkdir()
    head = "query_modality\tcand_modality\tdataset_name\tdataset_id\tprompt_1\tprompt_2\tprompt_3\tprompt_4\n"
    keys = {(row.asked, row.wanted, row.dataset, row.dataset_id): None for row in layout.ROWS}
    prompts = "\t".join(f"Prompt {n}." for n in range(1, 5))
    instructions.write_text(head + "".join("\t".join(map(str, key)) + f"\t{prompts}\n" for key in keys))
    last_did: Counter[int] = Counter()
    last_qid: Counter[int] = Counter()
    for row in layout.ROWS:
        queries, pool = rows_of(row, scale)
        first = last_did[row.dataset_id] + 1
        last_did[row.dataset_id] += pool
        _write_pool(data / row.pool_file("test"), row, first, pool)
        start = last_qid[row.dataset_id] + 1
        last_qid[row.dataset_id] += queries
        _write_queries(data, row, start, queries, first, pool, max(1, round(row.qrels / row.queries)))


def _text(row: layout.Row, n: int) -> str:
    return f"{row.dataset} candidate {n} tells of thing {n * 7919 % 100_003} and of what came after it."


def _write_pool(path: Path, row: layout.Row, first: int, count: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        for n in range(first, first + count):
            text = _text(row, n)
            file.write(
                f'{{"txt": "{text}", "img_path": null, "modality": "text", "did": "{row.dataset_id}:{n}",'
                f' "src_content": null}}\n'
            )


def _write_queries(
    data: Path, row: layout.Row, start: int, count: int, first: int, pool: int, positives: int
) -> None:
    query_file, qrels_file = data / row.query_file("test"), data / row.qrels_file("test")
    for path in (query_file, qrels_file):
        path.parent.mkdir(parents=True, exist_ok=True)
    with query_file.open("w") as queries, qrels_file.open("w") as qrels:
        for i in range(count):
            qid = f"{row.dataset_id}:{start + i}"
            rows = sorted({(i * 104_729 + j * 15_485_863) % pool for j in range(positives)})
            dids = [f"{row.dataset_id}:{first + at}" for at in rows]
            text = _text(row, first + rows[0]) if i % PLANTED == 0 else f"{row.dataset} query {i} of nobody."
            listed = ", ".join(f'"{did}"' for did in dids)
            queries.write(
                f'{{"qid": "{qid}", "query_txt": "{text}", "query_img_path": null, "query_modality": "text",'
                f' "query_src_content": null, "pos_cand_list": [{listed}], "neg_cand_list": [],'
                f' "task_id": {row.task_id}}}\n'
            )
            qrels.writelines(f"{qid} 0 {did} 1 {row.task_id}\n" for did in dids)


if __name__ == "__main__":
    write(Path(sys.argv[1]), float(sys.argv[2]) if len(sys.argv) > 2 else 1.0)
