"""Files of points, and of prompts: ``python tests/fuzz/fuzz_points.py --seconds 600``.

The first byte of the input says how the rest is read. What is read of a file of points makes points, or a `ConfigError`.
"""

from __future__ import annotations

import logging
import os
import tempfile
from pathlib import Path

from driver import check_message, instrumented, run
from hydra._internal.hydra import Hydra
from hydra._internal.utils import create_config_search_path
from hydra.core.global_hydra import GlobalHydra
from hydra.errors import MissingConfigException
from hydra.types import RunMode

with instrumented():
    from gptsweep.config import point_from_config
    from gptsweep.config_schema import CONF_DIR, register
    from gptsweep.errors import GptsweepError
    from gptsweep.multirun.compose import PointLoader
    from gptsweep.multirun.points_file import read_points
    from gptsweep.prompts import read_prompts

DIRECTORY = Path(tempfile.mkdtemp())
POINTS = {ord("c"): "p.csv", ord("j"): "p.jsonl", ord("y"): "p.yaml"}
PROMPTS = {ord("F"): "FILE", ord("L"): "LINES", ord("J"): "JSONL"}
MOST_COMPOSED = 3


def target(data: bytes) -> None:
    kind, content = data[:1], data[1:]
    try:
        if kind and kind[0] in PROMPTS:
            (DIRECTORY / "prompts").write_bytes(content)
            prompts = read_prompts(f"{PROMPTS[kind[0]]}:{DIRECTORY / 'prompts'}")
            assert prompts
            assert len({prompt.id for prompt in prompts}) == len(prompts)
            assert all(prompt.text for prompt in prompts)
        elif kind and kind[0] in POINTS:
            path = DIRECTORY / POINTS[kind[0]]
            path.write_bytes(content)
            for point in list(read_points(str(path)))[:MOST_COMPOSED]:
                point_from_config(LOADER.load_sweep_config(MASTER, list(point)))
    except GptsweepError as error:
        check_message(error)
    except MissingConfigException:
        pass  # a choice that is not there, which the command explains


def seeds() -> list[bytes]:
    logging.disable()
    table = b'start,sampling.temperature,sampling.top_k,sampling.stop,seed,model\n"a, b",0.7,,"[x,\'\\n\']",1,shakespeare\n'
    row = (
        b'{"start": "a\\n${seed}", "sampling.logit_bias": {"5": 1.5}, "sampling.order": ["top_k", "temperature"], '
        b'"sampling.top_p": null, "quiet": true}\n'
    )
    return [
        b"c" + table,
        b'c\xef\xbb\xbfseed,sampling.order,dtype\r\n1,llama,bf16\r\n2,"[top_k,temperature]",\r\n',
        b"j" + row,
        b"y- {seed: 1, start: 'x', sampling.logit_bias: {5: 1.5}}\n- seed: 0x1f\n  start: |\n    two\n    lines\n",
        b"y- !!str seed: 2001-12-14t21:59:43.10-05:00\n- ? seed\n  : !!float 1\n- {seed: .inf, start: ~}\n",
        b"Fsome text\r\n",
        b"Lone\ntwo \n\n  \nthree",
        b'J{"prompt": "Once"}\n{"prompt": "a", "id": "x"}\n{"id": 7, "prompt": "\\ud83d\\ude00"}\n',
    ]


if __name__ == "__main__":
    register()
    HYDRA = Hydra.create_main_hydra2("gptsweep", create_config_search_path(str(CONF_DIR)))
    GlobalHydra.instance().clear()
    MASTER = HYDRA.compose_config("config", [], RunMode.MULTIRUN, with_log_configuration=False)
    LOADER = PointLoader(HYDRA.config_loader)
    os.chdir(DIRECTORY)
    run(target, seeds())
