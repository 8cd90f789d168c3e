"""What models were trained on, under the names that tasks give their sources, each with its evidence."""

from __future__ import annotations

MBEIR = {
    **dict.fromkeys(
        (
            *("COCO", "FashionIQ", "CIRR", "NLVR2", "VisualNews", "Fashion200K", "WebQA", "EDIS"),
            *("NIGHTS", "OVEN", "InfoSeek", "Wikipedia"),
        ),
        "M-BEIR's training queries",
    ),
    "COCO val2017": "part of it lies in the Karpathy training split that M-BEIR uses",
    "Visual Genome": "its pictures are COCO's (arXiv 1602.07332), some of that split",
}
"""What training on M-BEIR has seen (UniIR, arXiv 2311.17136, and the sources of its data sets)."""

NLI = {"Flickr30K": "captions only: SNLI, in the first stage, takes them for premises (arXiv 1508.05326)"}
"""What SimCSE's pairs of sentences have seen, of which LamRA and U-MARVEL make their first stage."""

_NOT_NAMED = "not among the training sets of the paper and the released recipe"

NOT_MBEIR = dict.fromkeys(
    (*("ShareGPT4V", "Urban1K", "COCO unlabeled2017", "VIST", "VisDial", "MSVD", "MSR-VTT"),),
    _NOT_NAMED,
)
"""What recipes of texts and M-BEIR alone (LamRA, U-MARVEL but for CC3M) have not seen."""
LAMRA_HELD_OUT = {**NOT_MBEIR, "CC3M": _NOT_NAMED}

UNIIR_HELD_OUT = {**NOT_MBEIR, "Flickr30K": _NOT_NAMED, "CC3M": _NOT_NAMED}
"""What M-BEIR alone has not seen; CLIP's own 400 million pairs are not published."""
BLIP_LARGE = dict.fromkeys(
    ("COCO", "Visual Genome", "CC3M"),
    "BLIP's pre-training on 129 million pictures (arXiv 2201.12086, section 4.1), from which UniIR starts",
)
