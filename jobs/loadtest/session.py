"""One load test: warm-up, requests one at a time, the load, and the server's metrics around it."""

import itertools
import logging
from dataclasses import dataclass, field
from typing import Any

from blip3o.errors import ServiceError
from jobs.loadtest.client import Client
from jobs.loadtest.drive import Phase, run
from jobs.loadtest.options import LoadOptions
from jobs.loadtest.scrape import Samples, scrape, stages
from jobs.loadtest.summary import Objectives, by_label, summary
from jobs.loadtest.workload import Workload

logger = logging.getLogger(__name__)


@dataclass(kw_only=True)
class Session:
    """Its phases keep what has come so far, also if it is interrupted."""

    url: str
    key: str | None
    options: LoadOptions
    workload: Workload
    warm_up: Phase = field(default_factory=lambda: Phase("warm-up"))
    alone: Phase = field(default_factory=lambda: Phase("one at a time"))
    load: Phase = field(default_factory=lambda: Phase("load"))
    _before: Samples | None = None

    async def run(self) -> None:
        """All of it. Raises `ServiceError` if no server answers."""
        options, workload = self.options, self.workload
        if options.stages:
            scrape(self.url)  # before any request: fails here if there is no server
        calls = itertools.islice(workload.calls("load", options.rate), options.requests)
        async with Client(self.url, key=self.key, timeout_s=options.timeout_s, connections=options.clients) as client:
            for phase, times in ((self.warm_up, options.warm_up), (self.alone, options.alone)):
                await run(phase, client, workload.one_of_each(times), clients=1, seconds=None)
            self._before = scrape(self.url) if options.stages else None
            await run(self.load, client, calls, clients=options.clients, seconds=options.seconds)

    def result(self, *, interrupted: bool) -> dict[str, Any]:
        """The figures. Reads the server's metrics again."""
        objectives = Objectives(latency_s=self.options.latency_slo_s, first_s=self.options.first_slo_s)
        outcomes, seconds = self.load.outcomes, self.load.seconds
        return {
            "interrupted": interrupted,
            "unfinished": self.load.sent - len(outcomes),
            "seconds": round(seconds, 3),
            "most_at_once": self.load.most_at_once,
            "objectives": {"latency_s": objectives.latency_s, "first_s": objectives.first_s},
            "load": summary(outcomes, seconds, objectives),
            "kinds": by_label(outcomes, seconds, objectives),
            "alone": by_label(self.alone.outcomes, self.alone.seconds, objectives),
            "stages": self._stages(),
        }

    def _stages(self) -> dict[str, Any] | None:
        """None also for a server that has gone: the client's figures are worth keeping."""
        if self._before is None:
            return None
        try:
            return stages(self._before, scrape(self.url))
        except ServiceError as error:
            logger.warning("there are no figures of the stages: %s", error)
            return None
