"""What a developer would lose: a page on extending the package whose code works as it is printed, where it says it goes."""

from __future__ import annotations

import importlib
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch
from hydra.core.plugins import Plugins
from hydra.core.singleton import Singleton
from made_sweep import made_samples
from sweeps import Run, samples_of, save_checkpoint
from test_families import SIZES, TOLERANCE, peaked, saved
from transformers import AutoConfig

from gptsweep.analysis import metrics
from gptsweep.analysis.metrics import METRICS
from gptsweep.analysis.own_metrics import OwnMetric
from gptsweep.analysis.summary import text_metrics
from gptsweep.errors import ModelError
from gptsweep.models.loading import load_model
from gptsweep.models.registry import ARCHITECTURES, open_checkpoint
from gptsweep.records import DeviceSettings, ModelSource

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "docs" / "extend.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## ([^\n]*)\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL))
SWEEP = ("-m", "model=resume", "sampling.max_new_tokens=4", "sampling.num_samples=3", "quiet=true", "start=a,b")


def blocks(section: str) -> dict[str, str]:
    """The Python code of a section by its file; that which has none is a program to run."""
    found = re.findall(r'^```python(?: title="([^"]*)")?\n(.*?)^```', SECTIONS[section], re.MULTILINE | re.DOTALL)
    assert len(found) == len(dict(found))
    return dict(found)


def module_of(code: str, path: Path) -> ModuleType:
    """``code`` as a module in ``path``, imported."""
    path.write_text(code)
    return importlib.import_module(path.stem)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A directory on Python's path, for modules that no other test has."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        if (getattr(sys.modules[name], "__file__", None) or "").startswith(str(tmp_path)):
            del sys.modules[name]


COMMANDS = """
import json, sys
from pathlib import Path
from gptsweep.__main__ import main

def run(*arguments):
    sys.argv = ["gptsweep", *arguments, "sampling.num_samples=2", "sampling.max_new_tokens=8", "quiet=true"]
    return main()

assert run("-m", "name=s", "sampling.top_a=0,0.9", "sampling.temperature=1") == 0
lines = [json.loads(path.read_text().splitlines()[0]) for path in Path("outputs/sweeps/s").glob("*/samples.jsonl")]
print(sorted(line.get("top_a", 0) for line in lines))
assert run("sampling.top_a=2") == 2
"""


def test_the_sampler_of_the_page_is_known_everywhere(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "gptsweep", tmp_path / "gptsweep", ignore=shutil.ignore_patterns("__pycache__", "data"))
    shutil.copytree(ROOT / "conf", tmp_path / "conf")
    (tmp_path / "gptsweep" / "data").symlink_to(ROOT / "gptsweep" / "data")
    code = blocks("A sampler")
    declarations, chain = tmp_path / "gptsweep/records/sampling.py", tmp_path / "gptsweep/engine/chain.py"
    text = declarations.read_text()
    place = text.index("    xtc_probability: float = field(")
    declarations.write_text(text[:place] + code["gptsweep/records/sampling.py"] + text[place:])
    chain.write_text(f"{chain.read_text()}\n\n{code['gptsweep/engine/chain.py']}")
    done = subprocess.run([sys.executable, "-c", code[""] + COMMANDS], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (printed,) = re.findall(r"^```text\n(.*?)^```", SECTIONS["A sampler"], re.MULTILINE | re.DOTALL)
    assert done.stdout.startswith(printed)
    assert "[0, 0.9]\n" in done.stdout
    assert "sampling.top_a=2.0: must be from 0 to 1; 0 switches it off" in done.stderr


def test_the_metrics_of_the_page_have_values(here: Path) -> None:
    code = blocks("A metric")
    lines = [sample.as_json() for sample in made_samples(temperature=0.8, top_k=None, seed=1)]
    own = module_of(code["my_metrics.py"], here / "my_metrics.py")
    counts = [sum(letter == "?" for letter in line["completion"]) for line in lines]
    assert [own.questions(line) for line in lines] == counts
    assert 1 <= own.openings(lines) <= len(lines)
    assert [OwnMetric.of(each).metric.per for each in (own.questions, own.openings)] == ["sample", "point"]
    before = dict(METRICS)
    try:
        exec(code["gptsweep/analysis/metrics.py"], vars(metrics))
        values = text_metrics(lines)
        (name,) = METRICS.keys() - before
    finally:
        METRICS.clear()
        METRICS.update(before)
    words = [line["completion"].split() for line in lines]
    assert values[name] == pytest.approx(sum(len(set(each)) / len(each) for each in words) / len(words))


def test_the_architecture_of_the_page_has_the_logits_of_transformers(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = blocks("An architecture")
    name, entry = re.findall(r'^ARCHITECTURES\["(\w+)"\] = "([\w.:]+)"$', code["gptsweep/models/registry.py"])[0]
    assert entry == "gptsweep.models.phi3:Phi3"
    module_of(code["gptsweep/models/phi3.py"], here / "phi3.py")
    monkeypatch.setitem(ARCHITECTURES, name, "phi3:Phi3")
    model = peaked(AutoConfig.for_model(name, **SIZES, num_key_value_heads=2))
    source = ModelSource(name="hf", path=str(saved(here / "model", model)))
    loaded = load_model(source, DeviceSettings(name="cpu", dtype="float32"))
    ids = torch.arange(30)[None] * 7 % SIZES["vocab_size"]
    with torch.inference_mode():
        assert torch.allclose(loaded.model(ids), model(ids).logits, atol=TOLERANCE)
    saved(here / "windows", model, sliding_window=4)
    with pytest.raises(ModelError, match="sliding_window"):
        open_checkpoint(ModelSource(name="hf", path=str(here / "windows")))


def test_the_executor_of_the_page_leaves_the_same_files(run: Run, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_checkpoint(here / "out", seed=1)
    assert run(*SWEEP, "name=here").status == 0
    before = Singleton.get_state()
    (there := here / "plugins" / "hydra_plugins").mkdir(parents=True)
    (there / "elsewhere.py").write_text(blocks("An executor")["hydra_plugins/elsewhere.py"])
    monkeypatch.syspath_prepend(there.parent)
    try:
        plugin = importlib.import_module("hydra_plugins.elsewhere")
        Plugins.instance().register(plugin.ElsewhereLauncher)
        assert run(*SWEEP, "name=there", "hydra/launcher=elsewhere").status == 0
    finally:
        Singleton.set_state(before)
    made, elsewhere = (samples_of(here / "outputs/sweeps" / name) for name in ("here", "there"))
    assert len(made) == 2
    assert elsewhere == made
