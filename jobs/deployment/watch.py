"""Distinguishes replicas that were lost from those that the autoscaler has removed. Pure: no cluster, no clock."""

from collections.abc import Collection


class Watch:
    """Looks at the replicas of one deployment from time to time."""

    def __init__(self) -> None:
        self._seen: frozenset[str] = frozenset()
        self._gone: frozenset[str] = frozenset()
        self._target = self._fewer = 0

    def look(self, replicas: Collection[str], target: int) -> frozenset[str]:
        """The replicas that are gone since the first look; none if that many fewer are wanted since.

        `replicas` are those that start or run; `target` is the number that Serve wants. It lowers that before it stops
        a replica, and not for one that was lost.
        """
        self._gone |= self._seen - frozenset(replicas)
        self._seen = frozenset(replicas)
        self._fewer += max(self._target - target, 0)
        self._target = target
        return self._gone if len(self._gone) > self._fewer else frozenset()
