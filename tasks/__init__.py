"""Built-in tasks, found through the `harness` entry point like any other plugin."""

from __future__ import annotations

from harness.hookspecs import hookimpl
from harness.task import Suite, Task

from . import (
    cc3m,
    ccneg,
    circo,
    coco,
    demo,
    flickr,
    genecis,
    mbeir,
    msrvtt,
    msvd,
    multiturn_fashioniq,
    nli,
    sharegpt4v,
    sharegpt4v_train,
    stamps,
    sugarcrepe,
    tart,
    urban1k,
    visdial,
    vist,
    zeroshot,
)


@hookimpl
def harness_tasks() -> tuple[Task, ...]:
    return (
        *demo.TASKS,
        *stamps.TASKS,
        *mbeir.TASKS,
        *sharegpt4v.TASKS,
        *urban1k.TASKS,
        *flickr.TASKS,
        *coco.TASKS,
        *circo.TASKS,
        *genecis.TASKS,
        *vist.TASKS,
        *visdial.TASKS,
        *multiturn_fashioniq.TASKS,
        *ccneg.TASKS,
        *sugarcrepe.TASKS,
        *msrvtt.TASKS,
        *msvd.TASKS,
        nli.TASK,
        cc3m.TASK,
        sharegpt4v_train.TASK,
        tart.TASK,
    )


@hookimpl
def harness_suites() -> tuple[Suite, ...]:
    return (demo.SUITE, stamps.SUITE, *mbeir.SUITES, *zeroshot.SUITES)
