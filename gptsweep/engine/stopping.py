"""End a sample because it repeats itself. No torch: plans use this, too."""

from __future__ import annotations


class Repetition:
    """Whether the last tokens of a sample are one period of up to ``longest`` tokens, ``times`` times in a row.

    It is called with each new token, like a stop matcher.
    """

    def __init__(self, longest: int, times: int) -> None:
        self._longest, self._times = longest, times
        self._ids: list[int] = []
        self._equal: list[int] = []
        """For each period, how many of the last tokens equal the token one period earlier."""

    def __call__(self, token: int) -> bool:
        count = len(self._ids)
        if len(self._equal) < min(self._longest, count):
            self._equal.append(0)
        for at, equal in enumerate(self._equal):
            self._equal[at] = equal + 1 if self._ids[count - at - 1] == token else 0
        self._ids.append(token)
        return any(equal >= (self._times - 1) * (at + 1) for at, equal in enumerate(self._equal))
