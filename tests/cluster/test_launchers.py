"""The shipped launcher files are what a team may start, and each kind of slip in them is found and named."""

import pytest

from blip3o.errors import ConfigError
from cluster.launchers import validate_launcher
from tests.cluster.files import CLUSTER, changed, load

AWS = load("aws-train.yaml")
SERVE = load("aws-serve.yaml")
GCP = load("gcp-train.yaml")
TRAINER = "available_node_types/trainer-p5-48xlarge"
ENCODER = "available_node_types/encoder-g6-4xlarge"
GCP_TRAINER = "available_node_types/trainer-a3-highgpu-8g"
SOURCE = "node_config.disks.0.initializeParams.sourceImage"
IMAGE = "registry/blip3o:1-ray2.60.0-py311-gpu"


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("max_wrokers", 3, "max_wrokers"),
        ("idle_timeout_minutes", "five", "idle_timeout_minutes: 'five'"),
        ("provider", "aws", "provider: 'aws'"),
        ("provider.type", "nowhere", "nowhere"),
        ("provider.use_internal_ips", False, "use_internal_ips is not true: nodes would have public addresses"),
        ("head_node_type", "nope", "head_node_type"),
        ("available_node_types.head.resources.CPU", 4, "tasks would run next to the drivers"),
        (f"{TRAINER}.resources", None, "'resources' is a required"),
        (f"{TRAINER}.resources.GPU", "eight", "resources.GPU: 'eight'"),
        (f"{TRAINER}.resources.GPU", 4, "resources.GPU is 4: a p5.48xlarge has 8"),
        (f"{TRAINER}.labels.ray-subcluster", "training", "labels.ray-subcluster is 'training': recipes"),
        (f"{TRAINER}.min_workers", 99, "sum of `min_workers`"),
        (f"{TRAINER}.min_workers", 5, "min_workers 5 exceeds its max_workers 4"),
        (f"{TRAINER}.max_workers", 85, "max_workers 85 exceeds max_workers 84"),
        (f"{TRAINER}.node_config.InstanceTyp", "x", 'node_config: Unknown .* "InstanceTyp"'),
        (f"{ENCODER}.node_config.InstanceMarketOptions.MarketType", 1, "MarketType"),
        (f"{TRAINER}.node_config.ImageId", None, "node_config.ImageId is missing: .* 580"),
        (f"{TRAINER}.node_config.ImageId", "latest_dlami", "node_config.ImageId is missing"),
        ("metadata.nvidia_driver", 470, "nvidia_driver is 470: torch needs .* 580 or later"),
        ("metadata", None, "nvidia_driver is None"),
        (f"{TRAINER}.node_config.MetadataOptions", None, "HttpTokens is not 'required'"),
        (f"{TRAINER}.node_config.IamInstanceProfile", None, "IamInstanceProfile is missing"),
        (f"{TRAINER}.node_config.BlockDeviceMappings.0.Ebs.Encrypted", False, "Ebs.Encrypted is not true"),
        (f"{TRAINER}.node_config.BlockDeviceMappings", [], "Ebs.Encrypted is not true"),
        (f"{TRAINER}.node_config.NetworkInterfaces.0.AssociatePublicIpAddress", True, "gives a public address"),
        (f"{TRAINER}.node_config.Placement", None, "Placement.GroupName is missing"),
        (f"{TRAINER}.node_config.NetworkInterfaces.7.SubnetId", "subnet-2", "has 2: the nodes of a training job"),
        (f"{ENCODER}.node_config.SubnetIds", None, "SubnetIds is missing: .* open to the internet"),
        (f"{ENCODER}.node_config.SecurityGroupIds", None, "SecurityGroupIds is missing"),
        (f"{ENCODER}.docker.worker_image", "rayproject/ray:2.59.0-py311-gpu", "has Ray 2.59.0"),
        (f"{ENCODER}.docker.worker_image", IMAGE.replace("py311", "py312"), "has Python 3.12"),
        ("docker.image", "blip3o:latest", "docker.image: the tag of 'blip3o:latest' does not state its versions"),
        ("worker_start_ray_commands.2", "ray start --address=$RAY_HEAD_IP:6379", "without RAY_AUTH_MODE"),
        ("worker_start_ray_commands.2", "RAY_AUTH_MODE=disabled ray start", "write RAY_AUTH_MODE=token"),
        ("worker_start_ray_commands.3", "true", "spot nodes without `python -m cluster.notice`"),
    ],
)
def test_a_slip_in_the_launcher_config_is_named(path, value, message):
    with pytest.raises(ConfigError, match=message):
        validate_launcher(changed(AWS, path.replace(".", "/"), value))


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (
            f"{GCP_TRAINER}.{SOURCE}",
            "family/common-cpu",
            "driver of .* is None",
        ),
        (f"{GCP_TRAINER}.{SOURCE}", "family/x-nvidia-570", "is 570"),
        (f"{GCP_TRAINER}.node_config.networkInterfaces.0.accessConfigs", [{}], "a public address"),
        (f"{GCP_TRAINER}.node_config.networkInterfaces.0.subnetwork", None, "subnetwork is missing"),
        (f"{GCP_TRAINER}.node_config.networkInterfaces", [], "subnetwork is missing"),
        (f"{GCP_TRAINER}.resources.CPU", 96, "a a3-highgpu-8g has 208"),
    ],
)
def test_a_slip_in_the_launcher_config_of_google_is_named(path, value, message):
    validate_launcher(GCP)
    with pytest.raises(ConfigError, match=message):
        validate_launcher(changed(GCP, path.replace(".", "/"), value))


def test_a_gpu_node_is_known_by_its_resources_or_its_instance_and_others_need_no_image():
    imageless = changed(AWS, f"{ENCODER}/node_config/ImageId", None)
    hidden = changed(imageless, f"{ENCODER}/resources", {"CPU": 16})
    with pytest.raises(ConfigError, match="node_config.ImageId is missing"):
        validate_launcher(hidden)
    validate_launcher(changed(hidden, f"{ENCODER}/node_config/InstanceType", "m6i.4xlarge"))


def test_every_network_card_of_a_p5_has_one_efa_interface_in_the_group_and_subnet_of_the_head():
    types = AWS["available_node_types"]
    trainer, head = types["trainer-p5-48xlarge"]["node_config"], types["head"]["node_config"]
    found = trainer["NetworkInterfaces"]
    assert [card["NetworkCardIndex"] for card in found] == list(range(32))
    assert [card["DeviceIndex"] for card in found] == [0] + [1] * 31
    assert [card["InterfaceType"] for card in found] == ["efa"] + ["efa-only"] * 31
    assert all([card["SubnetId"]] == head["SubnetIds"] for card in found)
    assert all(card["Groups"] == head["SecurityGroupIds"] for card in found)
    # Ray refuses a node with interfaces that has them elsewhere too.
    assert not {"SubnetIds", "SecurityGroupIds"} & trainer.keys()


def test_workers_come_when_a_job_needs_them_and_a_scarce_machine_has_a_substitute():
    workers = {name: kind for name, kind in AWS["available_node_types"].items() if name != "head"}
    assert all(worker["min_workers"] == 0 for worker in workers.values())
    encoders = [worker for name, worker in workers.items() if name.startswith("encoder")]
    assert [each["node_config"]["InstanceType"] for each in encoders] == ["g6.4xlarge", "g5.4xlarge"]
    assert [each["priority"] for each in encoders] == [2, 1]
    assert all(each["node_config"]["InstanceMarketOptions"] == {"MarketType": "spot"} for each in encoders)
    serving = SERVE["available_node_types"].items()
    least = {name: kind["min_workers"] for name, kind in serving if kind.get("min_workers")}
    assert least == {"ingress-m6i-2xlarge": 2}


def test_no_shipped_file_holds_a_key():
    text = "".join(path.read_text() for path in CLUSTER.rglob("*") if path.suffix in (".yaml", ".j2", ".json"))
    assert "AKIA" not in text and "SECRET_ACCESS_KEY" not in text
