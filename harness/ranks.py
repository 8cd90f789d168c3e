"""The processes that a launcher started for one job, each with a device of its own.

torchrun --nproc-per-node 8 …   ->   Ranks(rank=0, count=8) … Ranks(rank=7, count=8)
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Mapping
from dataclasses import dataclass

from harness.errors import HarnessError

PATIENCE = datetime.timedelta(days=7)
"""One rank may search or score for long while the others wait."""


@dataclass(frozen=True, slots=True)
class Ranks:
    """Which of so many processes this is."""

    rank: int = 0
    count: int = 1

    @classmethod
    def of(cls, environment: Mapping[str, str] = os.environ) -> Ranks:
        """As torchrun and `accelerate launch` say it. Raises HarnessError where that is nonsense."""
        said = environment.get("RANK", "0"), environment.get("WORLD_SIZE", "1")
        try:
            rank, count = map(int, said)
        except ValueError:
            rank, count = -1, 0
        if not 0 <= rank < count:
            raise HarnessError(
                f"RANK={said[0]} and WORLD_SIZE={said[1]} are no rank of a launch: start all processes with"
                " torchrun or accelerate launch, or unset both"
            )
        return cls(rank, count)

    def wait(self, device: str) -> None:
        """Return when all ranks are here."""
        if self.count > 1:
            from accelerate import PartialState

            state = PartialState(cpu=plain_cpu(device), timeout=PATIENCE)
            if state.num_processes != self.count:
                raise HarnessError(
                    f"the launcher announced {self.count} processes (WORLD_SIZE) and"
                    f" {state.num_processes} came together: start them all with the same command"
                )
            state.wait_for_everyone()

    def leave(self) -> None:
        """Part from the others. A process that just ends, while others go on, may abort in its threads."""
        if self.count > 1:
            from torch import distributed

            if distributed.is_initialized():
                distributed.destroy_process_group()


def plain_cpu(device: str) -> bool:
    """Whether to tell Accelerate that it drives a CPU, with which it would leave out DeepSpeed and FSDP."""
    return device == "cpu" and not {"ACCELERATE_USE_DEEPSPEED", "ACCELERATE_USE_FSDP"} & set(os.environ)
