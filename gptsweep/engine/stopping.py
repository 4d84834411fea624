"""When a sample ends because it repeats itself. No torch: plans look at it, too."""

from __future__ import annotations


class Repetition:
    """Whether the last tokens of a sample are the same period, of up to ``longest`` tokens, ``times`` times in a row.

    It is called with each new token, as a stop matcher is.
    """

    def __init__(self, longest: int, times: int) -> None:
        self._longest, self._times = longest, times
        self._ids: list[int] = []
        self._equal: list[int] = []
        """For each period, how many of the last tokens are equal to those one period before."""

    def __call__(self, token: int) -> bool:
        count = len(self._ids)
        if len(self._equal) < min(self._longest, count):
            self._equal.append(0)
        for at, equal in enumerate(self._equal):
            self._equal[at] = equal + 1 if self._ids[count - at - 1] == token else 0
        self._ids.append(token)
        return any(equal >= (self._times - 1) * (at + 1) for at, equal in enumerate(self._equal))
