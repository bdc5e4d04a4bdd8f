"""How many replicas a load of image requests needs: one image's seconds on a GPU, and a queue of that many servers."""

import math
from dataclasses import dataclass

from blip3o.budget.prices import Prices, peak_flops
from blip3o.config.model import ModelConfig
from blip3o.errors import ConfigError
from blip3o.model.describe import build_on_meta, count_parameters
from blip3o.model.flops import counted

QUANTILE = 0.95  # of the requests that a service level holds for
MOST = 10_000  # replicas


@dataclass(frozen=True, kw_only=True)
class Serving:
    """Replicas for a load: seconds of one image alone, weights in bytes (bf16), and USD an hour of all replicas.

    `replicas` is None if one image alone takes longer than the service level.
    """

    seconds: dict[str, float]
    weight_bytes: int
    replicas: int | None
    busy: float = 0.0
    usd_per_hour: float = 0.0
    usd_per_1000_images: float = 0.0

    @property
    def image_s(self) -> float:
        """Seconds of one image alone."""
        return sum(self.seconds.values())


def image_seconds(model: ModelConfig, prices: Prices, *, gpu: str, tokens: int) -> tuple[dict[str, float], int]:
    """Seconds of each operation of one image, and the bytes of the weights in bf16.

    An operation computes, or it reads the weights for each of its calls, whichever takes longer.
    """
    offer, rates, peak = prices.gpu(gpu), prices.assumptions, peak_flops(gpu)
    built = build_on_meta(model)
    weights = 2 * count_parameters(built)
    dit = 2 * count_parameters(built.denoiser)
    found = {}
    for cost in counted.generation(built, tokens):
        computing = cost.total / (peak * rates.serve_mfu)
        read = cost.calls * dit / (offer.memory_tb_s * 1e12) if cost.name == "velocity" else 0.0
        found[cost.name] = max(computing, read)
    return found, weights


def plan_serving(model: ModelConfig, prices: Prices, *, gpu: str, load: float, slo_s: float, tokens: int) -> Serving:
    """The fewest replicas of one GPU for `load` images a second, 95 % of which are done within `slo_s` seconds.

    Requests arrive at random and each occupies a replica for an image's seconds, alone: batching only shortens the
    queue. No number of replicas is enough if one image alone takes longer.
    """
    seconds, weights = image_seconds(model, prices, gpu=gpu, tokens=tokens)
    service = sum(seconds.values())
    if service >= slo_s:
        return Serving(seconds=seconds, weight_bytes=weights, replicas=None)
    replicas = fewest_servers(load * service, wait=(slo_s - service) / service)
    offer = prices.gpu(gpu)
    hourly = replicas * offer.usd_per_hour / offer.gpus
    return Serving(
        seconds=seconds,
        weight_bytes=weights,
        replicas=replicas,
        busy=load * service / replicas,
        usd_per_hour=hourly,
        usd_per_1000_images=hourly / 3.6 / load,
    )


def fewest_servers(offered: float, *, wait: float) -> int:
    """The fewest servers at which 95 % of the requests wait less than `wait` service times (M/M/c, Erlang C).

    `offered` is the load in servers: arrivals a second times seconds of service.
    """
    for servers in range(math.floor(offered) + 1, MOST):
        late = erlang_c(offered, servers) * math.exp(-(servers - offered) * wait)
        if late <= 1 - QUANTILE:
            return servers
    raise ConfigError(f"{offered:.0f} GPUs would be busy all the time: this plan ends at {MOST} replicas")


def erlang_c(offered: float, servers: int) -> float:
    """The probability that a request waits, of `servers` servers with a load of `offered` < `servers`."""
    blocked = 1.0
    for number in range(1, servers + 1):  # Erlang B, by its recursion
        blocked = offered * blocked / (number + offered * blocked)
    return blocked / (1 - offered / servers * (1 - blocked))
