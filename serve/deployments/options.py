"""What Serve is told about the deployments, in the form of its config files. Imports no Ray.

None of it restarts a replica when it changes, except `ray_actor_options`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from serve.config.options import STAGES, ServeConfig, Stage

GENERATOR = "Generator"
INGRESS = "Ingress"
STAGE_NAMES: Mapping[Stage, str] = {stage: stage.capitalize() for stage in STAGES}
_POLICY = "serve.deployments.autoscaling:RowsAndWork"
_HEADROOM = 16  # requests beyond those that a replica can hold: it rejects them itself, with a time to retry
_INGRESS_CPUS = 0.1
_INGRESS_REQUESTS = 1000
_LOOK_BACK_S = 5
_HEALTH = {"health_check_period_s": 2, "health_check_timeout_s": 20}  # three failures in a row replace a replica


def generator_options(config: ServeConfig) -> dict[str, Any]:
    """The replicas of the model."""
    arguments = {"target_wait_s": config.target_wait_s}
    if config.spare_replicas:
        arguments["spare_replicas"] = config.spare_replicas
    return {
        "name": GENERATOR,
        "autoscaling_config": {
            "min_replicas": config.min_replicas + config.spare_replicas,
            "max_replicas": config.max_replicas,
            "target_ongoing_requests": config.target_rows or config.batch_size,  # the policy reads it as rows
            "look_back_period_s": _LOOK_BACK_S,
            "upscale_delay_s": config.upscale_delay_s,
            "downscale_delay_s": config.downscale_delay_s,
            "policy": {"policy_function": _POLICY, "policy_kwargs": arguments},
        },
        # An overloaded engine rejects requests at once, with a time to retry. Serve's limit per replica is higher than
        # the replica's, so that rejections never queue behind images.
        "max_ongoing_requests": config.max_requests + _HEADROOM,
        "max_queued_requests": config.max_waiting,
        "graceful_shutdown_timeout_s": config.drain_timeout_s,
        "max_surge_percent": 100,
        "ray_actor_options": {"num_cpus": config.num_cpus, "num_gpus": config.num_gpus},
        **_HEALTH,
    }


def stage_options(config: ServeConfig, stage: Stage) -> dict[str, Any]:
    """The replicas of one stage of the split layout."""
    own = config.of_stage(stage)
    most = {
        "condition": own.max_waiting + _HEADROOM,
        "denoise": own.batch_size + own.max_waiting + _HEADROOM,
        # Rows for which no decoder has room wait in the coordinators, which bound them, and are load all the same.
        "decode": 2 * max(own.batch_size, own.decode_batch_size or 0),
        "chat": own.batch_size + own.max_waiting + _HEADROOM,
    }
    return generator_options(own) | {
        "name": STAGE_NAMES[stage],
        "max_ongoing_requests": most[stage],
        "max_queued_requests": -1 if stage == "decode" else own.max_waiting,
    }


def coordinator_options(config: ServeConfig) -> dict[str, Any]:
    """The processes in front of the stages, under the name of what they stand for."""
    return {
        "name": GENERATOR,
        # A fixed number; that it is autoscaled lets a roll-out take them to none when they are idle.
        "autoscaling_config": {
            "min_replicas": config.coordinator_replicas,
            "max_replicas": config.coordinator_replicas,
            "look_back_period_s": _LOOK_BACK_S,
            "downscale_delay_s": 0,
        },
        "max_ongoing_requests": _INGRESS_REQUESTS,
        "graceful_shutdown_timeout_s": config.drain_timeout_s,
        "max_surge_percent": 100,
        "ray_actor_options": {"num_cpus": _INGRESS_CPUS, "num_gpus": 0},
        **_HEALTH,
    }


def model_options(config: ServeConfig) -> list[dict[str, Any]]:
    """All deployments of a bundle."""
    if config.layout == "all-in-one":
        return [generator_options(config)]
    return [coordinator_options(config), *(stage_options(config, stage) for stage in STAGES)]


def ingress_options(config: ServeConfig, models: Mapping[str, Sequence[Mapping[str, Any]]]) -> dict[str, Any]:
    """The HTTP API, with its routing table. Serve spreads its replicas over the nodes."""
    return {
        "name": INGRESS,
        "num_replicas": config.ingress_replicas,
        "user_config": {"models": {name: [dict(target) for target in targets] for name, targets in models.items()}},
        "max_ongoing_requests": _INGRESS_REQUESTS,
        "graceful_shutdown_timeout_s": config.drain_timeout_s,
        "max_surge_percent": 100,
        "ray_actor_options": {"num_cpus": _INGRESS_CPUS},
        **_HEALTH,
    }
