"""A sweep with the ratings that a review was given, or that an earlier one kept: ``ratings.jsonl`` beside the results."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..display import say
from ..errors import ResultsError
from ..files import open_inside
from ..store.ratings import keep_ratings, read_ratings
from ..store.schema import RATINGS
from .metrics import PREFERENCE
from .samplers import parted
from .sweep import Sweep


def rated(sweep: Sweep, directory: Path | None, files: Sequence[str], *, keep: bool) -> Sweep:
    """The sweep with the ratings of ``files``, else with those that are kept.

    Args:
        sweep: as it was read.
        directory: of the sweep; None: nothing is kept there, and nothing looked for.
        files: as they are named; ``null`` alone removes what is kept.
        keep: whether later reviews have the ratings, too.

    Raises:
        ResultsError: a file that is named cannot be read, or none has a rating of these samples.
    """
    kept = directory / RATINGS if directory else None
    if list(files) == ["null"]:
        if kept and keep:
            kept.unlink(missing_ok=True)
        return sweep
    if files:
        ratings = [each for name in files for each in read_ratings(Path(name))]
        found = sweep.rated(ratings)
        if directory and keep:
            try:
                keep_ratings(directory, ratings)
            except ResultsError as error:
                say(f"gptsweep.review: the ratings are not kept: {error}", error=True)
        return found
    if kept and kept.exists():
        try:
            return sweep.rated(read_ratings(kept, open_inside))
        except ResultsError as error:
            say(f"gptsweep.review: no ratings: {error}", error=True)
    return sweep


def require_ratings(metrics: Sequence[str], sweep: Sweep) -> None:
    """See that there are ratings if ``metrics`` has the metric that takes them, in ``METRIC:max`` and its like, too.

    Raises:
        ResultsError: there are none.
    """
    if sweep.ratings is None and PREFERENCE.name in (parted(text)[0] for text in metrics):
        raise ResultsError("ratings", None, f"{PREFERENCE.name} needs ratings; give them with --ratings FILE")
