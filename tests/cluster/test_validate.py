"""The shipped cluster files pass every offline check, and each kind of slip in them is found and named."""

import copy
from pathlib import Path

import pytest
import yaml

from blip3o import settings
from blip3o.errors import ConfigError
from cluster import validate

CLUSTER = Path(validate.__file__).parent
AWS = yaml.safe_load((CLUSTER / "aws.yaml").read_text())
RAYJOB = yaml.safe_load((CLUSTER / "kuberay" / "rayjob.yaml").read_text())
RAYSERVICE = yaml.safe_load((CLUSTER / "kuberay" / "rayservice.yaml").read_text())


@pytest.fixture(scope="module")
def crds():
    folder = settings.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs, which are not part of this project")
    return Path(folder)


@pytest.fixture
def crds_if_any():
    folder = settings.get("KUBERAY_CRDS")
    return Path(folder) if folder else None


def _changed(document, path, value):
    """A copy with one entry, named by a dotted path, set; `None` removes it."""
    changed = copy.deepcopy(document)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place = changed
    for part in parents:
        place = place[part]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return changed


@pytest.mark.parametrize("path", sorted(CLUSTER.rglob("*.yaml")), ids=lambda path: path.name)
def test_every_shipped_file_is_valid(path):
    assert validate.validate_file(path)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("max_wrokers", 3, "max_wrokers"),
        ("idle_timeout_minutes", "five", "idle_timeout_minutes: 'five'"),
        ("provider", "aws", "provider: 'aws'"),
        ("provider.type", "nowhere", "nowhere"),
        ("head_node_type", "nope", "head_node_type"),
        ("available_node_types.trainer.resources", None, "available_node_types.trainer: 'resources' is a required"),
        ("available_node_types.trainer.resources.GPU", "eight", "available_node_types.trainer.resources.GPU: 'eight'"),
        ("available_node_types.trainer.min_workers", 99, "sum of `min_workers`"),
        ("available_node_types.trainer.min_workers", 9, "min_workers 9 exceeds its max_workers 8"),
        ("available_node_types.trainer.max_workers", 25, "max_workers 25 exceeds max_workers 24"),
        ("available_node_types.trainer.node_config.InstanceTyp", "x", 'node_config: Unknown .* "InstanceTyp"'),
        ("available_node_types.trainer.node_config.InstanceMarketOptions.MarketType", 1, "MarketType"),
        ("available_node_types.trainer.node_config.ImageId", None, "trainer.node_config.ImageId is missing: .* 580"),
        ("available_node_types.trainer.node_config.ImageId", "latest_dlami", "trainer.node_config.ImageId is missing"),
        ("worker_start_ray_commands.1", "ray start --address=$RAY_HEAD_IP:6379", "without RAY_AUTH_MODE"),
    ],
)
def test_a_slip_in_the_launcher_config_is_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        validate.validate_launcher(_changed(AWS, path, value))


def test_a_gpu_node_is_known_by_its_resources_or_its_instance_and_others_need_no_image():
    trainer = "available_node_types.trainer"
    imageless = _changed(AWS, f"{trainer}.node_config.ImageId", None)
    hidden = _changed(imageless, f"{trainer}.resources", {"CPU": 192})
    with pytest.raises(ConfigError, match="trainer.node_config.ImageId is missing"):
        validate.validate_launcher(hidden)
    validate.validate_launcher(_changed(hidden, f"{trainer}.node_config.InstanceType", "m6i.4xlarge"))


def test_every_network_card_of_a_p5_has_one_efa_interface_in_the_group_and_subnet_of_all_nodes():
    types = yaml.safe_load((CLUSTER / "aws-p5.yaml").read_text())["available_node_types"]
    found = types["trainer"]["node_config"]["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in found] == list(range(32))
    assert [card["DeviceIndex"] for card in found] == [0] + [1] * 31
    assert [card["InterfaceType"] for card in found] == ["efa"] + ["efa-only"] * 31
    for name in ("head", "preprocess"):
        config = types[name]["node_config"]
        assert all([card["SubnetId"]] == config["SubnetIds"] for card in found)
        assert all(card["Groups"] == config["SecurityGroupIds"] for card in found)
    # Ray refuses a node with interfaces that has them elsewhere too.
    assert not {"SubnetIds", "SecurityGroupIds"} & types["trainer"]["node_config"].keys()


HEAD = "spec.rayClusterSpec.headGroupSpec.template.spec"
WORKER = "spec.rayClusterSpec.workerGroupSpecs.1"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("kind", "RayJoob", "kind 'RayJoob' is unknown"),
        ("spec.rayClusterSpec.headGroupSpec", None, "headGroupSpec is missing"),
        (f"{HEAD}.containers.0.resorces", {}, "headGroupSpec.template.spec.containers.0: .*resorces"),
        (f"{HEAD}.containers.0.name", None, "containers.0: 'name' is a required"),
        (f"{WORKER}.template.spec.containers.0.image", 7, "workerGroupSpecs.1.template.spec.containers.0.image: 7"),
        (f"{WORKER}.template.spec.tolerations.0.efect", "x", "tolerations.0: .*efect"),
        (f"{WORKER}.minReplicas", 9, "minReplicas 9 exceeds maxReplicas 8"),
        ("spec.runtimeEnvYAML", "env_varz: {A: b}", "unknown key 'env_varz'"),
        ("spec.runtimeEnvYAML", "env_vars: {A: 1}", "Dict\\[str, str\\]"),
        ("spec.runtimeEnvYAML", "- a", "expected a mapping"),
    ],
)
def test_a_slip_in_the_job_manifest_is_named_without_crds(path, value, message):
    with pytest.raises(ConfigError, match=message):
        validate.validate_kuberay(_changed(RAYJOB, path, value), crds=None)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("spec.entrypiont", "python", "spec: .*entrypiont"),
        ("spec.backoffLimit", "three", "spec.backoffLimit: 'three'"),
        ("spec.rayClusterSpec.authOptions.mode", "tokens", "authOptions.mode: 'tokens'"),
        (f"{WORKER}.maxReplicas", None, "workerGroupSpecs.1: 'maxReplicas' is a required"),
        (f"{WORKER}.template.spec.containers.0.resorces", {}, "containers.0: .*resorces"),
        ("apiVersion", "ray.io/v9", "ray.io/v9 is not served"),
    ],
)
def test_a_slip_in_the_job_manifest_is_named_by_its_crd(crds, path, value, message):
    validate.validate_kuberay(RAYJOB, crds=crds)
    with pytest.raises(ConfigError, match=message):
        validate.validate_kuberay(_changed(RAYJOB, path, value), crds=crds)


def test_the_service_manifest_keeps_to_its_crd(crds):
    validate.validate_kuberay(RAYSERVICE, crds=crds)
    with pytest.raises(ConfigError, match="spec: .*serveConfig"):
        validate.validate_kuberay(_changed(RAYSERVICE, "spec.serveConfig", ""), crds=crds)


def test_a_folder_without_the_crd_is_named(tmp_path):
    with pytest.raises(ConfigError, match="has no ray.io_rayjobs.yaml"):
        validate.validate_kuberay(RAYJOB, crds=tmp_path)


def test_the_variant_with_efa_is_valid_too(crds_if_any):
    lines = (CLUSTER / "kuberay" / "rayjob.yaml").read_text().splitlines()
    added = yaml.safe_load("\n".join(line.partition("#efa ")[2] for line in lines if "#efa " in line))
    changed = copy.deepcopy(RAYJOB)
    [container] = changed["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"]
    for kind, amounts in added.pop("resources").items():
        container["resources"][kind].update(amounts)
    assert not container.keys() & added.keys()
    container.update(added)
    assert container["resources"]["limits"]["vpc.amazonaws.com/efa"] == "32"
    validate.validate_kuberay(changed, crds=crds_if_any)


SERVE = {
    "applications": [
        {
            "name": "app",
            "import_path": "serve.app:app",
            "deployments": [
                {"name": "Engine", "autoscaling_config": {"max_replicas": 2}, "ray_actor_options": {"num_gpus": 1}}
            ],
        }
    ]
}
DEPLOYMENT = "applications.0.deployments.0"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("applicatons", [], "unknown key 'applicatons'"),
        ("applications.0.import_path", "no colon", "applications.0.import_path"),
        ("applications.0.rout_prefix", "/", "unknown key 'rout_prefix'"),
        ("applications.0.runtime_env", {"pips": []}, "unknown key 'pips'"),
        (f"{DEPLOYMENT}.max_ongoing_request", 4, "unknown key 'max_ongoing_request'"),
        (f"{DEPLOYMENT}.ray_actor_options.num_gpu", 1, "ray_actor_options: unknown key 'num_gpu'"),
        (f"{DEPLOYMENT}.autoscaling_config.max_replica", 3, "autoscaling_config: unknown key 'max_replica'"),
        (f"{DEPLOYMENT}.autoscaling_config.max_replicas", 0, "max_replicas"),
    ],
)
def test_a_slip_in_the_serve_config_is_named(path, value, message):
    validate.validate_serve(SERVE)
    with pytest.raises(ConfigError, match=message):
        validate.validate_serve(_changed(SERVE, path, value))


def test_a_request_that_may_outlive_its_replica_or_its_pod_is_named():
    served = yaml.safe_load(RAYSERVICE["spec"]["serveConfigV2"])
    long = copy.deepcopy(served)
    long["http_options"]["request_timeout_s"] = 330
    with pytest.raises(ConfigError, match=r"blip3o.Ingress: graceful_shutdown_timeout_s 330 is not above .* 330"):
        validate.validate_serve(long)
    silent = copy.deepcopy(served)
    del silent["applications"][1]["deployments"][0]["graceful_shutdown_timeout_s"]
    with pytest.raises(ConfigError, match="Generator: graceful_shutdown_timeout_s 20 is not above"):
        validate.validate_serve(silent)
    grace = "spec.rayClusterConfig.workerGroupSpecs.1.template.spec.terminationGracePeriodSeconds"
    for seconds in (330, 30):
        with pytest.raises(ConfigError, match=f"generator: terminationGracePeriodSeconds {seconds} is not above"):
            validate.validate_kuberay(_changed(RAYSERVICE, grace, seconds), crds=None)


def test_every_pod_that_serves_has_the_settings_that_our_own_nodes_have():
    cluster = RAYSERVICE["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        assert {each["name"]: each["value"] for each in container["env"]} == settings.RAY_SERVE


def test_the_service_manifest_checks_its_serve_config():
    broken = RAYSERVICE["spec"]["serveConfigV2"].replace("import_path", "import_pth")
    with pytest.raises(ConfigError, match="import_path"):
        validate.validate_kuberay(_changed(RAYSERVICE, "spec.serveConfigV2", broken), crds=None)


def test_the_command_line_reports_each_file(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(validate.log, "configure", lambda: None)
    caplog.set_level("INFO", logger="cluster.validate")
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(_changed(AWS, "max_wrokers", 1)))
    assert validate.main([str(CLUSTER / "aws.yaml"), str(broken), str(tmp_path / "missing.yaml")]) == 1
    valid, typo, missing = [record.message for record in caplog.records if record.name == "cluster.validate"]
    assert "aws.yaml: valid Ray cluster launcher config" in valid
    assert "broken.yaml: top level" in typo and "max_wrokers" in typo
    assert "missing.yaml" in missing and "No such file" in missing
    assert validate.main([str(CLUSTER / "aws.yaml")]) == 0
    assert validate.main([]) == 2


def test_no_shipped_file_holds_a_key_or_a_fixed_worker():
    text = "".join(path.read_text() for path in CLUSTER.rglob("*.yaml"))
    assert "AKIA" not in text and "SECRET_ACCESS_KEY" not in text
    workers = [AWS["available_node_types"][name] for name in ("preprocess", "trainer")]
    assert all(worker["min_workers"] == 0 for worker in workers)
    assert all(worker["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for worker in workers)
