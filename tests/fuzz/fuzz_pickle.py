"""``meta.pkl``, and the pickles in checkpoints: ``python tests/fuzz/fuzz_pickle.py --seconds 600``."""

from __future__ import annotations

import collections
import io
import pickle
import tempfile
from pathlib import Path

import numpy as np
import torch
from driver import check_message, instrumented, run

with instrumented():
    from gptsweep.errors import GptsweepError
    from gptsweep.models.files.meta import read_meta
    from gptsweep.models.files.pickles import PickleError, elements_of, mapping_of, read_pickle

PATH = Path(tempfile.mkdtemp()) / "meta.pkl"


def target(data: bytes) -> None:
    try:
        found = read_pickle(io.BufferedReader(io.BytesIO(data)), len(data))
        mapping_of(found), elements_of(found)
    except PickleError as error:
        check_message(error)
    PATH.write_bytes(data)
    try:
        tokenizer = read_meta(PATH, 300)
        assert tokenizer.vocab_size <= 300 or tokenizer.eot_id is not None
    except GptsweepError as error:
        check_message(error)


def seeds() -> list[bytes]:
    itos = dict(enumerate("abc"))
    metas = [
        {"vocab_size": 3, "itos": itos, "stoi": {text: token for token, text in itos.items()}},
        {"itos": collections.OrderedDict(itos), "stoi": collections.defaultdict(int, a=0)},
        {"itos": np.array(list("abc")), "stoi": {np.str_("a"): np.int64(0)}, "vocab_size": np.int32(3)},
        {"itos": tuple("abc"), "extra": [Path("a"), {1, 2}, frozenset([3]), 2**70, 1.5, b"x", torch.float32, range(3)]},
        {"tokenizer": "tiktoken", "encoding": "gpt2"},
    ]
    return [pickle.dumps(meta, protocol) for meta in metas for protocol in range(pickle.HIGHEST_PROTOCOL + 1)]


if __name__ == "__main__":
    run(target, seeds())
