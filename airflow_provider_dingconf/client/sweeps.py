"""``Sweeps``: when triggers fire without an event, to make Airflow's scheduler look again."""

from __future__ import annotations

import math
import time
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from collections.abc import Collection, Hashable, Mapping, Sequence


class Sweeps:
    """The sweeps for the triggers of an event stream.

    While an event waits for its run, the scheduler overlooks all events that come after it, until another one
    comes while none waits. So an event is overlooked only if the scheduler has been away since the event
    before it. The scheduler is then likely to stay away for about as long again, so earlier sweeps are
    omitted. The last sweep finds what was overlooked, unless the scheduler is away for longer than that.

    :param distances: seconds between the moment when Airflow has stored an event and each of its sweeps.
    """

    # When a trigger of this process last fired. All of them count, because several can start the same DAG. It
    # is not known what fired before this process began.
    fired_at: ClassVar[float] = time.monotonic()

    _event = ""

    def __init__(self, distances: Sequence[float]) -> None:
        self._distances = distances
        self._ahead: list[tuple[float, Hashable, float]] = []  # the time, the trigger, and when it fired

    def __bool__(self) -> bool:
        """Return whether any sweep is ahead."""
        return bool(self._ahead)

    def restart(self, now: float) -> None:
        """Plan the sweeps of all triggers, for events before a restart.

        :param now: the time on the monotonic clock, here and below.
        """
        self._ahead = [(now + each, "", -math.inf) for each in self._distances]

    def fired(self, event_id: str, triggers: Collection[Hashable], now: float) -> None:
        """Plan the sweeps after an event, for the triggers that fired for it."""
        if event_id == self._event:  # it came again, since it was not acknowledged
            return
        self._event = event_id
        gap, Sweeps.fired_at = now - Sweeps.fired_at, now
        others = [one for one in self._ahead if one[1] not in triggers]
        distances = [each for each in self._distances if each >= gap]
        self._ahead = others + [(now + each, trigger, now) for trigger in triggers for each in distances]

    def pop_due(self, now: float) -> dict[Hashable, float]:
        """Return the triggers that must sweep now, and when each of them fired."""
        due = {trigger: fired_at for at, trigger, fired_at in self._ahead if at <= now}
        self._ahead = [one for one in self._ahead if one[0] > now]
        if due:
            Sweeps.fired_at = now
        return due

    def refused(self, sweeps: Mapping[Hashable, float], now: float) -> None:
        """Plan sweeps again that Airflow may not have stored."""
        self._ahead += [(now + self._distances[0], trigger, fired_at) for trigger, fired_at in sweeps.items()]
