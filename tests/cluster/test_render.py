"""All cluster files come from one values file: the shipped ones are what the shipped values render."""

import json
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
import yaml

from blip3o.config.pipeline import load_pipeline
from blip3o.errors import ConfigError
from cluster import render
from cluster.instances import MACHINES
from cluster.launchers import validate_launcher
from cluster.validate import validate_file, validate_kuberay
from tests.cluster.files import CLUSTER, SHIPPED, VALUES, changed, load
from tests.docs_commands import parse

FILES = render.render(render.load_values(VALUES))


def _values(tmp_path, path, value):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(changed(load("values.yaml"), path, value)))
    return file


def _rendered(tmp_path, values):
    file = tmp_path / "values.yaml"
    file.write_text(yaml.safe_dump(values))
    return render.render(render.load_values(file))


def test_the_shipped_files_are_rendered_from_the_shipped_values():
    stale = [name for name, text in FILES.items() if (CLUSTER / name).read_text() != text]
    assert not stale, "run python -m cluster.render cluster/values.yaml --out cluster"
    assert {str(path.relative_to(CLUSTER)) for path in SHIPPED} <= {*FILES, "values.yaml", "fake/launcher.yaml"}


def test_what_is_written_once_is_written_everywhere(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(render.log, "configure", lambda: None)
    caplog.set_level("INFO", logger="cluster.render")
    file = _values(tmp_path, "bucket", "another-bucket")
    assert render.main([str(file), "--out", str(tmp_path / "out")]) == 0
    _, *advised = caplog.records[-1].message.split("python -m cluster.validate ")
    assert all(validate_file(Path(name)) for name in advised[0].split())
    written = {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert written == set(FILES)
    for name in ("iam/worker.json", "kuberay/serve/rayservice.yaml", "kuberay/jobs/train/rayjob.yaml"):
        text = (tmp_path / "out" / name).read_text()
        assert "another-bucket" in text and "s3://bucket/" not in text and "s3:::bucket" not in text


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("bucket", None, "values.yaml: 'bucket' is missing"),
        ("bucket", "My Bucket", "'bucket' = 'My Bucket'"),
        ("buckett", "a", "'buckett' = 'a': extra inputs"),
        ("aws.training_zone", "us-east-1f", "aws.training_zone 'us-east-1f' has no subnet"),
        ("aws.trainer.machines.0", "p9.huge", "machine type 'p9.huge' is unknown"),
        ("aws.head.machine", "m6i.2xlargee", "machine type 'm6i.2xlargee' is unknown"),
        ("images.gpu", "blip3o", "'images.gpu' = 'blip3o'"),
    ],
)
def test_a_wrong_value_is_named(tmp_path, path, value, message):
    with pytest.raises(ConfigError, match=message):
        render.load_values(_values(tmp_path, path, value))


@pytest.mark.parametrize("kind", ["p4d.24xlarge", "p5en.48xlarge", "g6e.48xlarge"])
def test_another_trainer_gets_its_own_network_cards(tmp_path, kind):
    """A machine without EFA gets a subnet and a group instead."""
    text = render.render(render.load_values(_values(tmp_path, "aws.trainer.machines.0", kind)))["aws-train.yaml"]
    trainer = yaml.safe_load(text)["available_node_types"][f"trainer-{kind.replace('.', '-')}"]
    assert len(trainer["node_config"].get("NetworkInterfaces", [])) == MACHINES[kind].efa_cards
    assert ("SubnetIds" in trainer["node_config"]) == (not MACHINES[kind].efa_cards)
    assert ("worker_run_options" in trainer["docker"]) == bool(MACHINES[kind].efa_cards)


def test_options_that_the_shipped_values_leave_out(tmp_path):
    """A reservation, EFA on Kubernetes, a queue, and an image by its content."""
    values = load("values.yaml")
    values["aws"]["capacity_reservation"] = "cr-1"
    values["kubernetes"]["queue"] = "gpus"
    values["kubernetes"]["trainer"]["efa"] = 32
    values["images"]["gpu"] += "@sha256:" + "0" * 64
    files = _rendered(tmp_path, values)
    trainer = yaml.safe_load(files["aws-train.yaml"])["available_node_types"]["trainer-p5-48xlarge"]
    assert trainer["node_config"]["InstanceMarketOptions"] == {"MarketType": "capacity-block"}
    job = yaml.safe_load(files["kuberay/jobs/train/rayjob.yaml"])
    assert job["metadata"]["labels"] == {"kueue.x-k8s.io/queue-name": "gpus"}
    [container] = job["spec"]["rayClusterSpec"]["workerGroupSpecs"][1]["template"]["spec"]["containers"]
    assert container["resources"]["limits"]["vpc.amazonaws.com/efa"] == "32"
    assert container["securityContext"]["capabilities"]["add"] == ["IPC_LOCK"]
    assert container["image"].endswith("0" * 64)
    validate_launcher(yaml.safe_load(files["aws-train.yaml"]))
    validate_kuberay(job, crds=None)


def test_what_follows_from_a_value_is_rendered_with_it(tmp_path):
    """Tags that YAML would read as something else, or none; replicas; repositories; a registry for each cloud."""
    values = load("values.yaml")
    values["aws"]["tags"] = {"cost centre": "0123", "live": "on"}
    values["kubernetes"]["generator"]["max_pods"] = 3
    values["images"]["gpu"] = values["images"]["gpu"].replace("blip3o:", "team/gpu:")
    files = _rendered(tmp_path, values)
    aws = yaml.safe_load(files["aws-train.yaml"])["available_node_types"]["head"]["node_config"]
    written = [{"Key": "cost centre", "Value": "0123"}, {"Key": "live", "Value": "on"}]
    assert [each["Tags"] for each in aws["TagSpecifications"]] == [written, written]
    serve = yaml.safe_load(yaml.safe_load(files["kuberay/serve/rayservice.yaml"])["spec"]["serveConfigV2"])
    assert serve["applications"][1]["deployments"][0]["autoscaling_config"]["max_replicas"] == 3
    pulled = json.loads(files["iam/worker.json"])["Statement"][3]["Resource"]
    assert [each.partition("repository/")[2] for each in pulled] == ["blip3o", "team/gpu"]
    google = yaml.safe_load(files["gcp-train.yaml"])
    registry = values["gcp"]["images"]["cpu"].partition("/")[0]
    assert google["docker"]["image"].startswith(registry)
    assert registry in google["initialization_commands"][0] and ".ecr." not in files["gcp-train.yaml"]
    values["aws"]["tags"] = {}  # EC2 takes no empty list of tags
    assert "TagSpecifications" not in _rendered(tmp_path, values)["aws-train.yaml"]


@pytest.mark.parametrize("verb", render.JOBS)
def test_the_command_of_a_job_is_one_that_the_program_takes(verb):
    """Its recipe resolves with the labels of the manifest's own groups."""
    words = shlex.split(load(f"kuberay/jobs/{verb}/rayjob.yaml")["spec"]["entrypoint"])
    parameters = parse(tuple(words))
    recipe = load_pipeline(str(parameters["recipe"]), list(parameters["overrides"])).stages[0]
    assert recipe.run.storage == "s3://bucket/runs"
    for key in filter(None, render.JOBS[verb].values()):
        assert getattr(recipe.parallel, key.partition(".")[2])["ray-subcluster"] in render.SUBCLUSTERS.values()


@pytest.mark.skipif(not shutil.which("kubectl"), reason="no kubectl, which has kustomize")
@pytest.mark.parametrize("folder", ["dev", "serve", *(f"jobs/{verb}" for verb in render.JOBS)])
def test_kustomize_puts_the_base_and_the_workload_together(folder):
    command = ["kubectl", "kustomize", str(CLUSTER / "kuberay" / folder)]
    built = list(yaml.safe_load_all(subprocess.run(command, check=True, capture_output=True).stdout))
    kinds = {each["kind"] for each in built}
    assert {"NetworkPolicy", "ServiceAccount", "PodMonitor", "ResourceQuota", "PriorityClass"} < kinds
    assert len([kind for kind in kinds if kind.startswith("Ray")]) == 1
    assert {each["metadata"].get("namespace") for each in built if each["kind"] != "PriorityClass"} == {"blip3o"}
