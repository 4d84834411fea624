"""Code that the targets for checkpoints share."""

from __future__ import annotations

from collections.abc import Callable

import torch
from driver import check_message, instrumented

with instrumented():
    from gptsweep.errors import GptsweepError
    from gptsweep.models.checkpoint import Checkpoint, load_weights


def load(open_checkpoint: Callable[[], Checkpoint]) -> Checkpoint | None:
    """Open a damaged checkpoint and load its weights; None if it is refused, in one line."""
    try:
        checkpoint = open_checkpoint()
        load_weights(checkpoint, checkpoint.laid_out(), torch.float32)
    except GptsweepError as error:
        check_message(error)
        return None
    return checkpoint
