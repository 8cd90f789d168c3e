"""The types that rows are stored in. Numpy has bfloat16 once ml_dtypes is imported, torch takes its bits."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import ml_dtypes
import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from torch import Tensor

DTYPE = "float16"
"""What rows are stored in unless something else is asked for."""
BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


def tensor_of(array: npt.NDArray[Any]) -> Tensor:
    """A tensor that shares the array's memory."""
    import torch

    if array.dtype == BFLOAT16:
        return torch.from_numpy(array.view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array)


def array_of(tensor: Tensor) -> npt.NDArray[Any]:
    """An array that shares the memory of a tensor on the CPU."""
    import torch

    if tensor.dtype == torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(BFLOAT16)
    return tensor.numpy()
