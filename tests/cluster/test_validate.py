"""The shipped cluster files pass every offline check, and each kind of slip in them is found and named."""

import copy
from pathlib import Path

import pytest
import yaml

from blip3o import settings
from blip3o.errors import ConfigError
from cluster import validate
from tests.cluster.files import CLUSTER, SHIPPED, changed, load

AWS = load("aws-train.yaml")
RAYJOB = load("kuberay/jobs/train/rayjob.yaml")
RAYSERVICE = load("kuberay/serve/rayservice.yaml")


@pytest.fixture(scope="module")
def crds():
    folder = settings.get("KUBERAY_CRDS")
    if not folder:
        pytest.skip("KUBERAY_CRDS names no folder with KubeRay's CRDs, which are not part of this project")
    return Path(folder)


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: str(path.relative_to(CLUSTER)))
def test_every_shipped_file_is_valid(path):
    assert validate.validate_file(path)


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
        ("spec.rayClusterSpec.rayVersion", "2.59.0", "rayVersion has Ray 2.59.0"),
        ("spec.rayClusterSpec.authOptions", None, "authOptions.mode is not 'token'"),
        (
            "spec.submitterPodTemplate.spec.securityContext",
            None,
            "submitterPodTemplate.spec.securityContext.runAsNonRoot",
        ),
        ("spec.activeDeadlineSeconds", None, "activeDeadlineSeconds is missing"),
        (f"{WORKER}.labels.ray-subcluster", "training", "parallel.worker_labels wants nodes with {'ray-subcluster'"),
        (f"{WORKER}.template.spec.securityContext", {}, "runAsNonRoot is not true"),
        (f"{WORKER}.template.spec.hostNetwork", True, "template.spec.hostNetwork is true"),
        (f"{WORKER}.template.spec.containers.0.securityContext.runAsUser", 0, "root or privileged"),
        (
            f"{WORKER}.template.spec.initContainers",
            [{"name": "a", "image": "b"}],
            "initContainers.0.securityContext.allow",
        ),
        (f"{WORKER}.template.spec.containers.0.env.0.name", "AWS_SECRET_ACCESS_KEY", "take it from a secret"),
        (f"{WORKER}.template.spec.containers.0.securityContext", {}, "allowPrivilegeEscalation is not false"),
        (f"{WORKER}.template.spec.containers.0.resources.limits.memory", None, "limits.memory is missing"),
        (f"{WORKER}.template.spec.containers.0.image", "a/blip3o:1-ray2.60.0-py310-gpu", "has Python 3.10"),
        (f"{WORKER}.template.spec.nodeSelector", None, "the pod could get any GPU"),
        (f"{WORKER}.template.spec.tolerations", None, "tolerations has none for nvidia.com/gpu"),
        ("spec.runtimeEnvYAML", "env_varz: {A: b}", "unknown key 'env_varz'"),
        ("spec.runtimeEnvYAML", "env_vars: {A: 1}", "Dict\\[str, str\\]"),
        ("spec.runtimeEnvYAML", "- a", "expected a mapping"),
    ],
)
def test_a_slip_in_the_job_manifest_is_named_without_crds(path, value, message):
    with pytest.raises(ConfigError, match=message):
        validate.validate_kuberay(changed(RAYJOB, path, value), crds=None)


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
        validate.validate_kuberay(changed(RAYJOB, path, value), crds=crds)


def test_the_service_manifest_keeps_to_its_crd(crds):
    validate.validate_kuberay(RAYSERVICE, crds=crds)
    with pytest.raises(ConfigError, match="spec: .*serveConfig"):
        validate.validate_kuberay(changed(RAYSERVICE, "spec.serveConfig", ""), crds=crds)


def test_a_folder_without_the_crd_is_named(tmp_path):
    with pytest.raises(ConfigError, match="has no ray.io_rayjobs.yaml"):
        validate.validate_kuberay(RAYJOB, crds=tmp_path)


SERVE = {
    "applications": [
        {
            "name": "app",
            "import_path": "serve.app:app",
            "args": {"bundle": "s3://bucket/b"},
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
        validate.validate_serve(changed(SERVE, path, value))


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
            validate.validate_kuberay(changed(RAYSERVICE, grace, seconds), crds=None)


def test_only_the_head_may_ask_kubernetes():
    cluster = RAYSERVICE["spec"]["rayClusterConfig"]
    pods = [group["template"]["spec"] for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"])]
    assert [pod.get("automountServiceAccountToken", True) for pod in pods] == [True, False, False]


def test_every_pod_that_serves_has_the_settings_that_our_own_nodes_have():
    cluster = RAYSERVICE["spec"]["rayClusterConfig"]
    for group in (cluster["headGroupSpec"], *cluster["workerGroupSpecs"]):
        [container] = group["template"]["spec"]["containers"]
        expected = settings.RAY_SERVE | (settings.RAY_HEAD if container["name"] == "ray-head" else {})
        assert {each["name"]: each["value"] for each in container["env"] if "value" in each} == expected
        assert [each["name"] for each in container["env"] if "valueFrom" in each] == ["BLIP3O_API_KEYS"]


@pytest.mark.parametrize(
    ("written", "slip", "message"),
    [
        ("import_path", "import_pth", "import_path"),
        ("serve.app:model", "serve.app:modell", "import_path 'serve.app:modell' cannot be imported"),
        ("batch_size: 16,", "batch_sise: 16,", "serve.app:model: args: 'batch_sise'"),
        (
            "ray-subcluster: ingress",
            "ray-subcluster: http",
            "blip3o.Ingress wants nodes with {'ray-subcluster': 'http'}",
        ),
    ],
)
def test_the_service_manifest_checks_its_serve_config(written, slip, message):
    assert written in RAYSERVICE["spec"]["serveConfigV2"]
    broken = RAYSERVICE["spec"]["serveConfigV2"].replace(written, slip)
    with pytest.raises(ConfigError, match=message):
        validate.validate_kuberay(changed(RAYSERVICE, "spec.serveConfigV2", broken), crds=None)


def test_the_command_line_reports_each_file(tmp_path, caplog, monkeypatch):
    monkeypatch.setattr(validate.log, "configure", lambda: None)
    caplog.set_level("INFO", logger="cluster.validate")
    broken = tmp_path / "broken.yaml"
    broken.write_text(yaml.safe_dump(changed(AWS, "max_wrokers", 1)))
    assert validate.main([str(CLUSTER / "aws-train.yaml"), str(broken), str(tmp_path / "missing.yaml")]) == 1
    valid, typo, missing = [record.message for record in caplog.records if record.name == "cluster.validate"]
    assert "aws-train.yaml: valid Ray cluster launcher config" in valid
    assert "broken.yaml: top level" in typo and "max_wrokers" in typo
    assert "missing.yaml" in missing and "No such file" in missing
    assert validate.main([str(CLUSTER / "aws-train.yaml")]) == 0
    assert validate.main([]) == 2


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("kuberay/base/quota.yaml", "spec.hardd", {}, "hardd"),
        ("kuberay/base/networkpolicy.yaml", "kind", "NetworkPolice", "kind 'NetworkPolice' of networking"),
        ("kuberay/base/podmonitor.yaml", "spec.podMetricEndpoints", [], "unknown key 'podMetricEndpoints'"),
        ("kuberay/base/podmonitor.yaml", "spec.selector", None, "spec.selector is missing"),
        ("kuberay/serve/kustomization.yaml", "resource", [], "unknown key 'resource'"),
        ("kuberay/serve/kustomization.yaml", "resources.0", "../bass", "../bass does not exist"),
        ("kuberay/serve/kustomization.yaml", "resources.3", None, "pdb-generator.yaml is in the folder"),
        ("iam/worker.json", "Statement.0.Action.1", None, "the policy lacks s3:PutObject"),
        ("iam/worker.json", "Statement.0.Action.1", "s3:*", r"the policy lacks s3:PutObject"),
        ("iam/worker.json", "Statement.1.Action.0", "s3:ListBucket*", "s3:ListBucket is of a bucket"),
        ("iam/worker.json", "Statement.0.Resource", "arn:aws:s3:::bucket", "s3:ListBucket is of a bucket"),
        ("iam/head.json", "Statement.3.Resource", "*", "Resource is '\\*' for ec2:CreateTags, ec2:TerminateInstances"),
        ("iam/head.json", "Statement.2.Condition", None, "ec2:CreateTags of any instance"),
        (
            "iam/head.json",
            "Statement.3.Condition",
            {"StringLike": {"aws:ResourceTag/Name": "x"}},
            "CreateAction: ec2:C",
        ),
        (
            "iam/head.json",
            "Statement.4.Resource",
            "arn:aws:iam::123456789012:role/*",
            "name the role that is passed on",
        ),
        ("iam/head.json", "Statement.3.NotResource", "x", "Statement.3: unknown key 'NotResource'"),
        ("iam/head.json", "Statement.1.Resource", None, "Resource is '\\*' for ec2:RunInstances"),
        ("iam/worker.json", "Statement.0.Resource", "arn:aws:s3:::*/*", "name the bucket"),
        ("iam/trust.json", "Statement.0.Principal", "*", "only EC2 takes the roles of nodes"),
        ("iam/head.json", "Statement.0.Effect", "Deny", "Effect is not 'Allow'"),
        ("iam/head.json", "Version", "2008-10-17", "write 2012-10-17"),
    ],
)
def test_a_slip_in_another_file_is_named(tmp_path, name, path, value, message):
    folder = tmp_path / "kuberay" / "x"
    folder.mkdir(parents=True)
    (folder.parent / "base").mkdir()
    (folder.parent / "base" / "kustomization.yaml").touch()
    for other in (CLUSTER / name).parent.glob("*"):
        (folder / other.name).write_bytes(other.read_bytes())
    file = folder / Path(name).name
    assert validate.validate_file(file)
    file.write_text(yaml.safe_dump(changed(load(name), path, value)))
    with pytest.raises(ConfigError, match=message):
        validate.validate_file(file)
