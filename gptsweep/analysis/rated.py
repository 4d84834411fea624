"""Attach ratings to a sweep: those given to this review, or those an earlier one saved as ``ratings.jsonl``."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ..display import say
from ..errors import ResultsError
from ..files import open_inside
from ..store.ratings import read_ratings, save_ratings
from ..store.schema import RATINGS
from .comparison_request import metric_name
from .metrics import PREFERENCE
from .sweep import Sweep


def rated(sweep: Sweep, directory: Path | None, files: Sequence[str], *, keep: bool) -> Sweep:
    """Return the sweep with the ratings of ``files``, or without files with the saved ratings.

    Args:
        sweep: the sweep to rate.
        directory: the sweep's directory; None: ratings are neither saved nor looked up.
        files: paths as the user typed them; ``null`` alone deletes the saved ratings.
        keep: whether to save the ratings for later reviews.

    Raises:
        ResultsError: a named file cannot be read, or none of them rates these samples.
    """
    saved = directory / RATINGS if directory else None
    if list(files) == ["null"]:
        if saved and keep:
            saved.unlink(missing_ok=True)
        return sweep
    if files:
        ratings = [each for name in files for each in read_ratings(Path(name))]
        found = sweep.rated(ratings)
        if directory and keep:
            try:
                save_ratings(directory, ratings)
            except ResultsError as error:
                say(f"gptsweep.review: could not save the ratings: {error}", error=True)
        return found
    if saved and saved.exists():
        try:
            return sweep.rated(read_ratings(saved, open_inside))
        except ResultsError as error:
            say(f"gptsweep.review: no ratings: {error}", error=True)
    return sweep


def require_ratings(metrics: Sequence[str], sweep: Sweep) -> None:
    """Check that there are ratings if ``metrics`` names the metric that needs them, also as ``METRIC:max`` and the like.

    Raises:
        ResultsError: there are none.
    """
    if sweep.ratings is None and PREFERENCE.name in map(metric_name, metrics):
        raise ResultsError("ratings", None, f"{PREFERENCE.name} needs ratings; give them with --ratings FILE")
