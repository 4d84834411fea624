"""What an actor imports whose model was shipped: a module of its own, as tests import much."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from gptsweep.engine.torch_backend import TorchBackends
from gptsweep.models.checkpoint import Checkpoint
from gptsweep.records import ModelSource


class ReadOnce(TorchBackends):
    """Opens models whose files are gone once they are packed."""

    def pack(self, source: ModelSource) -> tuple[Checkpoint, Iterator[NDArray[np.uint8]]]:
        outline, weights = super().pack(source)
        read = list(weights)
        shutil.rmtree(source.out_dir)
        return outline, iter(read)
