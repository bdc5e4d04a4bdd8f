"""Which application answers for a model: a table of names, and shares of traffic. Pure: no Ray, no clock, no chance."""

from collections import defaultdict
from typing import Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen


class Target(Frozen):
    """An application with replicas of a bundle, and the share of its model's requests that it gets."""

    application: str = Field(description="name of the Serve application; empty: the one of the ingress itself")
    share: float = Field(default=1.0, ge=0, le=1, description="of the model's requests; all shares add up to 1")


class RoutingTable(Frozen):
    """The models of one face, in the order in which clients see them; the first one is the default."""

    models: dict[str, tuple[Target, ...]] = Field(min_length=1, description="name in the API → its applications")

    @model_validator(mode="after")
    def _complete(self) -> Self:
        for name, targets in self.models.items():
            if abs(sum(target.share for target in targets) - 1) > 1e-6:
                raise ValueError(f"the shares of model '{name}' do not add up to 1")
        return self

    @property
    def applications(self) -> frozenset[str]:
        """All applications that a request may go to."""
        return frozenset(target.application for targets in self.models.values() for target in targets)


class Turns:
    """Spreads requests over targets by their shares: any stretch of requests has about these shares."""

    def __init__(self) -> None:
        self._credit: defaultdict[str, float] = defaultdict(float)

    def next(self, targets: tuple[Target, ...]) -> str:
        """The application whose turn it is."""
        for target in targets:
            self._credit[target.application] += target.share
        chosen = max(targets, key=lambda target: self._credit[target.application])
        self._credit[chosen.application] -= 1
        return chosen.application
