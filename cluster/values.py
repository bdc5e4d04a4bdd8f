"""What differs from one team's clusters to another's: `cluster/values.yaml`, from which all is rendered."""

from typing import Annotated, Self

from pydantic import Field, model_validator

from blip3o.config.base import Frozen
from cluster.instances import machine

Name = Annotated[str, Field(pattern=r"^[a-z]([-a-z0-9]*[a-z0-9])?$")]
# Ray and Python are part of the tag: the validator compares them with what is installed.
Image = Annotated[str, Field(pattern=r"^[^\s@]+:[^\s:/@]+(@sha256:[0-9a-f]{64})?$")]


class Group(Frozen):
    """Nodes of one purpose. A cloud that has none of the first machine type gives the next one."""

    machines: tuple[str, ...] = Field(min_length=1, description="machine types, the preferred one first")
    max_nodes: int = Field(gt=0, description="the most nodes of each machine type")
    spot: bool = Field(default=True, description="cheaper nodes that the cloud may take back at two minutes' notice")
    disk_gb: int = Field(default=256, gt=0, description="root disk, GB")

    @model_validator(mode="after")
    def _known(self) -> Self:
        for name in self.machines:
            machine(name)
        return self


class Images(Frozen):
    """The container images that `docker/Dockerfile` builds, in a registry that the nodes reach."""

    cpu: Image = Field(description="of nodes without GPUs, and of the head")
    gpu: Image = Field(description="of nodes with GPUs")


class Head(Frozen):
    """The node of the drivers and controllers."""

    machine: str = Field(description="machine type; the head runs no tasks")
    disk_gb: int = Field(default=256, gt=0, description="root disk, GB")

    @model_validator(mode="after")
    def _known(self) -> Self:
        machine(self.machine)
        return self


class Aws(Frozen):
    """One VPC. What is named here exists before `ray up`; docs/aws.md makes it."""

    account: str = Field(pattern=r"^\d{12}$", description="the account's number")
    region: str = Field(description="where the nodes, the bucket and the registry are")
    subnets: dict[str, str] = Field(min_length=1, description="private subnets by zone, with a route to the internet")
    training_zone: str = Field(description="the zone of all trainers of a job; one of subnets")
    security_group: str = Field(pattern="^sg-", description="allows all traffic from and to itself, and nothing in")
    ami: str = Field(description="ami-… or resolve:ssm:…; an NVIDIA driver of version 580 or later")
    ami_driver: int = Field(description="the driver's version in that image, whole part")
    placement_group: Name = Field(description="a placement group with strategy cluster")
    capacity_reservation: str = Field(
        default="", pattern="^(cr-.+)?$", description="a capacity block for the trainers; if empty, on demand or spot"
    )
    tags: dict[str, str] = Field(default={}, description="cost tags of instances and volumes")
    head: Head = Field(description="the head")
    preprocess: Group = Field(description="CPU nodes: fetching, decoding, tokenising")
    encoder: Group = Field(description="GPU nodes: features of the frozen encoder")
    trainer: Group = Field(description="GPU nodes: training, all in one zone and placement group")
    ingress: Group = Field(description="CPU nodes: HTTP")
    generator: Group = Field(description="GPU nodes: replicas of the model")

    @model_validator(mode="after")
    def _one_zone(self) -> Self:
        if self.training_zone not in self.subnets:
            raise ValueError(f"aws.training_zone '{self.training_zone}' has no subnet: use one of {list(self.subnets)}")
        return self


class Gcp(Frozen):
    """One project and zone."""

    project: str = Field(description="project id")
    region: str = Field(description="region")
    zone: str = Field(description="zone of all nodes")
    subnetwork: str = Field(description="name of a subnetwork with Cloud NAT")
    images: Images = Field(description="container images in Artifact Registry, from which the nodes may pull")
    source_image: str = Field(description="image family of GPU and CPU nodes; names its NVIDIA driver, 580 or later")
    endpoint: str = Field(description="the store's S3 endpoint, seen from the nodes")
    head: Head = Field(description="the head")
    preprocess: Group = Field(description="CPU nodes")
    encoder: Group = Field(description="GPU nodes")
    trainer: Group = Field(description="GPU nodes")


class Pods(Frozen):
    """Pods of one worker group."""

    max_pods: int = Field(gt=0, description="the most pods")
    cpu: int = Field(gt=0, description="CPUs")
    memory: str = Field(pattern="^[0-9]+Gi$", description="memory, request and limit")
    gpus: int = Field(default=0, ge=0, description="GPUs")
    shared_memory: str = Field(default="16Gi", pattern="^[0-9]+Gi$", description="/dev/shm, a part of memory")
    node: dict[str, str] = Field(default={}, description="nodeSelector")
    efa: int = Field(default=0, ge=0, description="EFA interfaces (AWS's device plugin)")


class Kubernetes(Frozen):
    """One namespace, with KubeRay 1.7 or later in the cluster."""

    namespace: Name = Field(description="exists before `kubectl apply`")
    service_account: Name = Field(description="its role may read and write the bucket (IRSA, pod or workload identity)")
    role_annotation: dict[str, str] = Field(default={}, description="annotations of the service account")
    queue: str = Field(default="", description="Kueue's local queue for the jobs; if empty, no queue")
    gateway: Name = Field(description="the gateway class that moves traffic between two clusters of an upgrade")
    redis: str = Field(description="host:port of the Redis that keeps the state of a serving head")
    redis_secret: Name = Field(description="a secret with the key `password`")
    api_keys_secret: Name = Field(description="a secret with the key `keys`: what BLIP3O_API_KEYS holds, NAME:KEY,…")
    gpu_quota: int = Field(gt=0, description="the most GPUs of the namespace")
    job_hours: int = Field(gt=0, description="a job that takes longer is ended, in hours")
    head: Pods = Field(description="heads")
    preprocess: Pods = Field(description="as on AWS")
    encoder: Pods = Field(description="as on AWS")
    trainer: Pods = Field(description="as on AWS")
    ingress: Pods = Field(description="as on AWS")
    generator: Pods = Field(description="as on AWS")


class Values(Frozen):
    """All of it."""

    name: Name = Field(description="prefix of clusters, profiles and manifests")
    bucket: str = Field(pattern=r"^[a-z0-9][-.a-z0-9]{2,62}$", description="bucket of data, runs and bundles")
    bundle: str = Field(description="folder of the served bundle in the bucket")
    recipe: str = Field(description="recipe that the manifests' jobs run: a shipped name")
    images: Images = Field(description="container images of AWS's nodes and of pods")
    aws: Aws = Field(description="for aws-train.yaml, aws-serve.yaml and iam/")
    gcp: Gcp = Field(description="for gcp-train.yaml")
    kubernetes: Kubernetes = Field(description="for kuberay/")
