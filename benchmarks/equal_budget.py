"""How often the comparison of samplers is right, on simulated sweeps whose families are equal or differ by a known effect.

    python benchmarks/equal_budget.py [--sweeps 200]

Each line is for 200 sweeps by ``tests/planted.py``: how often the comparison finds any family ahead of any other at any budget
(``ahead``), how often it does so for the tried settings alone (``here``), how often the wrong family is ahead, and how often
the right one is at budgets 1, 2, 4 and all. Effects are in standard deviations over the settings of one family. It takes some
minutes on one core.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from planted import Planted

SAME = {
    "the same settings in both families": Planted(same_settings=True),
    "settings drawn anew from one distribution": Planted(),
    "the same, hardly any noise": Planted(noise=0.1, shared=0.1),
    "the same, 4 settings each": Planted(settings=4, noise=0.1, shared=0.1),
    "the same, 4 families": Planted(families=4),
    "the same, 6 independent samples": Planted(clusters=6),
    "all settings worth the same": Planted(spread=0.0),
    "samples that suit one family": Planted(family_noise=2.0, same_settings=True),
    "samples that suit one family, 8 of them": Planted(family_noise=2.0, same_settings=True, clusters=8),
}
AHEAD = {
    f"one family ahead by {lead:g}, noise {noise:g}": Planted(lead=lead, noise=noise)
    for noise in (1, 3)
    for lead in (0.5, 1, 2, 3)
}


def main() -> None:
    """Print both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sweeps", type=int, default=200)
    count = parser.parse_args().sweeps
    print("| sweeps | ahead | here | wrong | at 1 | at 2 | at 4 | at all |\n|---|---|---|---|---|---|---|---|")
    for name, planted in (SAME | AHEAD).items():
        found = planted.compared(count)
        every = [one.contrasts for one in found]
        shares = [
            sum(any(each.ahead.any() for each in one) for one in every),
            sum(any(each.ahead_here.any() for each in one) for one in every),
            sum(any((each.ahead < 0).any() for each in one) for one in every) if planted.lead else None,
            *(sum(one[0].ahead[at] > 0 for one in every) if planted.lead else None for at in (0, 1, 3, -1)),
        ]
        print(f"| {name} |", " | ".join("" if share is None else f"{share / count:.1%}" for share in shares), "|", flush=True)


if __name__ == "__main__":
    main()
