"""What whoever runs rows and whoever decodes them tell each other: bounds on the rows, and progress.

The module imports no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..records import Prefix, Row, Sampling


@dataclass(frozen=True, slots=True, kw_only=True)
class Workload:
    """Bounds on the rows of a run, known before the first.

    How many rows, the most tokens in a prompt and in a whole row, the most new tokens of all rows together, those of prefixes
    left out, and for how many of those the model reads a whole window again (`windows_read`).
    """

    rows: int
    prompt_tokens: int
    row_tokens: int
    new_tokens: int
    windows: int = 0

    @classmethod
    def of(cls, rows: Sequence[Row], block_size: int | None) -> Workload:
        """The bounds of rows that are all there."""
        return cls(
            rows=len(rows),
            prompt_tokens=max((len(row.prompt_ids) for row in rows), default=1),
            row_tokens=max((len(row.prompt_ids) + row.sampling.max_new_tokens for row in rows), default=1),
            new_tokens=sum(row.sampling.max_new_tokens - row.begun for row in rows),
            windows=sum(
                windows_read(row.sampling, len(row.prompt_ids), row.sampling.max_new_tokens, block_size, row.begun)
                for row in rows
            ),
        )


def windows_read(sampling: Sampling, prompt_tokens: int, new_tokens: int, block_size: int | None, begun: int = 0) -> int:
    """For how many of a row's first ``new_tokens`` the model reads a whole window again: with ``crop``, past the context.

    The first ``begun`` of them are there already. ``block_size`` None: the context has no end.
    """
    if sampling.overflow != "crop" or block_size is None:
        return 0
    room = 1 + max(0, block_size - prompt_tokens)
    return max(0, new_tokens - room) - max(0, begun - room)


@dataclass(slots=True)
class BackendProgress:
    """What a backend has done: rows now in flight, tokens sampled so far, and at the end if no row stops early from here on.

    ``windows`` counts those of the tokens for which a whole window was read again. ``window_seconds`` is what reading one
    takes, as measured beforehand; None: there are too few of them, or nobody watches.

    ``unfinished`` gives the rows that were begun and have not ended, each with what it has so far. It may be called at any
    moment, also after an error has ended the run.
    """

    rows_in_flight: int = 0
    tokens: int = 0
    tokens_total: int = 0
    windows: int = 0
    windows_total: int = 0
    window_seconds: float | None = None
    unfinished: Callable[[], list[tuple[Row, Prefix]]] = list


OnStep = Callable[[BackendProgress], None]
