"""What Serve is told, in Python and in YAML: one meaning, valid for Ray, and timeouts that end in the right order."""

import json
from pathlib import Path

import pytest
import yaml

import serve.config
from blip3o.errors import ConfigError, ServiceError
from cluster.validate import validate_serve
from jobs.serve import build_config
from serve.app import app, face, model
from serve.config.options import FaceConfig, ServeConfig
from serve.deployments import configs
from serve.deployments.applications import build_app, build_model

ROOT = Path(__file__).parents[3]
FILES = {path.stem: path for path in Path(serve.config.__file__).parent.glob("*.yaml")}
SHIPPED = {
    "cpu": {"bundle": "/data/bundles/demo", "min_replicas": 2, "max_replicas": 4},
    "gpu": {
        "bundle": "s3://bucket/bundles/blip3o",
        "batch_size": 16,
        "num_gpus": 1,
        "num_cpus": 4,
        "min_replicas": 2,
        "max_replicas": 8,
    },
    "gpu-split": {
        "bundle": "s3://bucket/bundles/blip3o",
        "batch_size": 16,
        "num_gpus": 1,
        "num_cpus": 4,
        "min_replicas": 2,
        "max_replicas": 8,
        "layout": "split",
        "stages": {"condition": {"num_gpus": 0.5, "max_replicas": 4}, "chat": {"num_gpus": 0.5}},
    },
}
SPLIT = {"layout": "split", "min_replicas": 2, "max_replicas": 3}


def _config(**options):
    return build_config({"bundle": "s3://bucket/b", **options})


def _text(config):
    """What Serve compares: 20.0 is another text than 20, and restarts the replicas."""
    return json.dumps(config, sort_keys=True)


def test_the_files_are_what_the_options_mean():
    assert set(FILES) == set(SHIPPED)
    for name, path in FILES.items():
        written = yaml.safe_load(path.read_text())
        validate_serve(written)
        for application in written["applications"]:
            for deployment in application["deployments"]:
                deployment["ray_actor_options"].pop("label_selector", None)
        assert _text(written) == _text(configs.first_config(build_config(SHIPPED[name]), host="0.0.0.0", port=8000))


def test_what_is_changed_without_a_restart_is_no_argument_of_a_replica():
    few, many = _config(), _config(max_replicas=9, min_replicas=3, target_rows=2, ingress_replicas=5, upscale_delay_s=1)
    assert build_model(few)._bound_deployment.init_args == build_model(many)._bound_deployment.init_args
    assert configs.application_name(few) == configs.application_name(many)
    for one, other in ((few, many), (many, few)):
        first, second = (configs.model_application(each) for each in (one, other))
        assert first["args"] == second["args"] and first["deployments"] != second["deployments"]
    assert configs.application_name(few) != configs.application_name(_config(batch_size=8))
    stages = _config(**SPLIT), _config(**SPLIT, stages={"decode": {"max_replicas": 9, "target_rows": 2}})
    one, other = (configs.model_application(each) for each in stages)
    assert [one[name] == other[name] for name in ("name", "args", "deployments")] == [True, True, False]
    on_gpu = _config(**SPLIT, precision="bf16", stages={"decode": {"num_gpus": 1}})
    assert len({configs.application_name(each) for each in (*stages, on_gpu, few)}) == 3


def test_a_roll_out_keeps_what_is_not_given():
    given = {"name": "m", "num_cpus": 0.5, "min_replicas": 2, "max_replicas": 7, "target_wait_s": 3.0, "threads": 2}
    config = configs.first_config(_config(**given, request_timeout_s=60.0, access_log=True), host="h", port=1)
    options = configs.options_of(config, "m")
    again = build_config(options)
    assert again == _config(**given, target_rows=4.0, request_timeout_s=60.0, access_log=True)
    assert _text(configs.first_config(again, host="h", port=1)) == _text(config)
    assert "bundle" not in configs.options_of(config, "another") and options["ingress_replicas"] == 2


@pytest.mark.parametrize(
    "stages",
    [
        {},
        {"decode": {"max_replicas": 9, "target_rows": 2.0}, "chat": {"num_cpus": 0.5}},
        {"denoise": {"num_gpus": 1.0}, "condition": {"num_gpus": 0.5}},
    ],
)
def test_a_roll_out_of_stages_keeps_what_is_not_given(stages):
    config = configs.first_config(_config(**SPLIT, precision="fp32", num_gpus=2, stages=stages), host="h", port=1)
    validate_serve(config)
    options = configs.options_of(config, "blip3o")
    assert _text(configs.first_config(build_config(options), host="h", port=1)) == _text(config)
    more = build_config({**options, "max_replicas": 12})
    assert more.of_stage("condition").max_replicas == 12
    assert more.of_stage("decode").max_replicas == stages.get("decode", {}).get("max_replicas", 12)


def test_coordinators_leave_before_their_stages():
    """Serve ends an application's deployments at once, and requests are between two of them."""
    config = configs.first_config(_config(**SPLIT), host="h", port=1)
    old, new = config["applications"][1], configs.model_application(_config())
    both = configs.with_application(config, new)
    target = configs.with_table(both, configs.routed(configs.routing_table(both), "blip3o", {new["name"]: 1.0}))
    leaving = configs.draining(both, target)
    validate_serve(leaving)
    *kept, last = leaving["applications"]
    assert kept == target["applications"] and last["name"] == old["name"]
    counts = {each["name"]: each["autoscaling_config"]["min_replicas"] for each in last["deployments"]}
    assert counts == {"Generator": 0, "Condition": 2, "Denoise": 2, "Decode": 2, "Chat": 2}
    assert configs.draining(target, configs.with_table(target, configs.routing_table(target))) is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stages": {"decode": {"max_replicas": 1}}}, "stages.decode: min_replicas 2 is above max_replicas 1"),
        ({"stages": {"decode": {"num_gpus": 1}}}, "precision auto is another one on a GPU"),
        ({"stages": {"decoder": {}}}, "decoder"),
        ({"stages": "{decode: {num_gpus: -1}}"}, "num_gpus"),
    ],
)
def test_stages_that_cannot_be_are_refused(options, message):
    with pytest.raises(ConfigError, match=message):
        _config(**SPLIT, **options)


def test_spare_replicas_come_on_top_of_the_least():
    config = configs.first_config(_config(min_replicas=2, max_replicas=4, spare_replicas=1), host="h", port=1)
    scaling = config["applications"][1]["deployments"][0]["autoscaling_config"]
    assert scaling["min_replicas"] == 3 and scaling["policy"]["policy_kwargs"]["spare_replicas"] == 1
    again = build_config(configs.options_of(config, "blip3o"))
    assert (again.min_replicas, again.spare_replicas) == (2, 1)
    with pytest.raises(ConfigError, match="min_replicas 2 with 1 to spare is above max_replicas 2"):
        _config(min_replicas=2, max_replicas=2, spare_replicas=1)


def test_a_hand_written_config_has_defaults_or_a_clear_error():
    config = configs.first_config(_config(request_timeout_s=60), host="h", port=1)
    face, model = config["applications"]
    del face["args"]
    assert build_config(configs.options_of(config, "blip3o")).request_timeout_s == 300
    for where, whole, key in (
        ("Generator of this cluster says no autoscaling_config", model["deployments"][0], "autoscaling_config"),
        ("says no args", model, "args"),
        ("blip3o.Ingress of this cluster says no user_config", face["deployments"][0], "user_config"),
        ("blip3o of this cluster says no deployments", face, "deployments"),
    ):
        del whole[key]
        with pytest.raises(ServiceError, match=where):
            configs.options_of(config, "blip3o")


def test_routes_and_applications_go_together():
    config = configs.first_config(_config(), host="h", port=1)
    old = configs.application_name(_config())
    new = configs.model_application(_config(bundle="s3://bucket/new"))
    both = configs.with_application(config, new)
    shared = configs.with_table(
        both, configs.routed(configs.routing_table(both), "blip3o", {old: 0.9, new["name"]: 0.1}, new["name"])
    )
    assert list(configs.routing_table(shared).models) == ["blip3o", "blip3o@next"]
    assert configs.running(configs.routing_table(shared), "blip3o") == old
    moved = configs.with_table(shared, configs.routed(configs.routing_table(shared), "blip3o", {new["name"]: 1.0}))
    assert [each["name"] for each in moved["applications"]] == ["blip3o", new["name"]]
    back = configs.with_table(shared, configs.routed(configs.routing_table(shared), "blip3o", {old: 1.0}))
    assert {each["name"] for each in back["applications"]} == {"blip3o", old}


@pytest.mark.parametrize(
    ("batch_size", "decode_batch_size", "images"),
    [(4, 1, 4 + 4 + 1), (16, 1, 16 + 16 + 1), (16, None, 16 + 16 + 16), (2, 8, 2 + 8 + 8)],
)
def test_a_replica_takes_a_request_for_each_image_and_conversation_that_it_can_hold(
    batch_size, decode_batch_size, images
):
    """Rows in slots, in the decoder's queue and in the decoder; then those that wait, and conversations."""
    config = ServeConfig(bundle="x", batch_size=batch_size, decode_batch_size=decode_batch_size, max_waiting=10)
    assert config.max_requests == images + 10 + 10
    generator = build_app(config)._bound_deployment.init_args[0]._bound_deployment
    assert generator.max_ongoing_requests > config.max_requests  # a rejection does not wait


def test_the_applications_are_built_from_a_config_files_arguments():
    from ray.serve._private.api import call_user_app_builder_with_args_if_necessary as build

    built = build(app, {"bundle": "b", "batch_size": "2", "num_cpus": "0.5"})
    generator = built._bound_deployment.init_args[0]._bound_deployment
    assert generator.init_args[0].batch_size == 2
    assert generator.ray_actor_options["num_cpus"] == 0.5
    arguments = configs.face_application(
        _config(access_log=True), configs.RoutingTable(models={"m": [{"application": "a"}]})
    )["args"]
    assert FaceConfig(**arguments).http.access_log
    assert build(face, arguments)._bound_deployment.name == "Ingress"
    application = configs.model_application(_config(batch_size=8))
    assert build(model, application["args"])._bound_deployment.init_args[0].batch_size == 8
    split = build(model, {"bundle": "b", "layout": "split", "stages": "{decode: {num_cpus: 0.25}}"})._bound_deployment
    stages = [each._bound_deployment for each in split.init_args[:4]]
    assert [each.name for each in stages] == ["Condition", "Denoise", "Decode", "Chat"] and split.name == "Generator"
    assert [each.ray_actor_options["num_cpus"] for each in stages] == [1, 1, 0.25, 1]
