"""Offline checks of IAM policies: a role may do what the code does, and no more.

`S3_ACTIONS` and `EC2_ACTIONS` are held by tests to the requests that a recording proxy has seen.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from blip3o.errors import ConfigError

S3_ACTIONS = {"s3:GetObject", "s3:PutObject", "s3:DeleteObject", "s3:ListBucket"}
# Ray's autoscaler on the head, and what RunInstances asks of whoever names a role and a public image.
EC2_ACTIONS = {"ec2:DescribeInstances", "ec2:RunInstances", "ec2:CreateTags", "ec2:TerminateInstances"}
_PASSING = {"iam:PassRole", "ssm:GetParameters"}
_PULLING = {
    *("ecr:GetAuthorizationToken", "ecr:BatchCheckLayerAvailability"),
    *("ecr:BatchGetImage", "ecr:GetDownloadUrlForLayer"),
}
# Of the policies that are rendered, by the name of their file; a node has the workers' and the head both.
ACTIONS = {"worker": S3_ACTIONS | _PULLING, "head": EC2_ACTIONS | _PASSING, "trust": {"sts:AssumeRole"}}
_EVERYWHERE = {"ec2:DescribeInstances", "ecr:GetAuthorizationToken"}  # know no resources
# Only on what the cluster has started. Whoever may tag any instance may end it, since its tags say whose it is.
_OWN = {"ec2:CreateTags", "ec2:TerminateInstances"}
_OF_OWN = (
    ("StringLike", "aws:ResourceTag/ray-cluster-name"),
    ("StringEquals", "ec2:CreateAction"),
)
_STATEMENT = {"Sid", "Effect", "Action", "Resource", "Condition"}


def validate_policy(name: str, policy: Mapping[str, Any]) -> None:
    """Checks the policy of that name. Raises `ConfigError` naming what is missing, too much or too wide."""
    if name not in ACTIONS:
        raise ConfigError(f"policy '{name}' is unknown; expected one of {', '.join(ACTIONS)}")
    if policy.get("Version") != "2012-10-17":
        raise ConfigError(f"Version is {policy.get('Version')!r}; write 2012-10-17")
    allowed = set()
    for where, statement in _statements(policy):
        actions = _listed(statement.get("Action"))
        allowed |= actions
        if name == "trust":
            _check_trust(where, statement)
        else:
            _check_grant(where, actions, statement)
    for what, which in (("lacks", ACTIONS[name] - allowed), ("allows", allowed - ACTIONS[name])):
        if which:
            raise ConfigError(f"the policy {what} {', '.join(sorted(which))}")


def _statements(policy: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for index, statement in enumerate(policy.get("Statement", [])):
        if statement.get("Effect") != "Allow":
            raise ConfigError(f"Statement.{index}.Effect is not 'Allow'")
        yield f"Statement.{index}", statement


def _listed(value: object) -> set[str]:
    return set(value) if isinstance(value, list) else {str(value)}


def _check_trust(where: str, statement: Mapping[str, Any]) -> None:
    if statement.get("Principal") != {"Service": "ec2.amazonaws.com"}:
        raise ConfigError(f"{where}.Principal is {statement.get('Principal')}: only EC2 takes the roles of nodes")


def _check_grant(where: str, actions: set[str], statement: Mapping[str, Any]) -> None:
    if unknown := sorted(set(statement) - _STATEMENT):
        raise ConfigError(f"{where}: unknown key '{unknown[0]}'")
    _check_resources(where, actions, _listed(statement.get("Resource", "*")))
    condition = statement.get("Condition", {})
    if actions & _OWN and not any(condition.get(operator, {}).get(key, "*") != "*" for operator, key in _OF_OWN):
        names = " or ".join(key for _, key in _OF_OWN)
        raise ConfigError(f"{where}.Condition has no {names}: {', '.join(sorted(actions & _OWN))} of any instance")


def _check_resources(where: str, actions: set[str], resources: set[str]) -> None:
    if "*" in resources and not actions <= _EVERYWHERE:
        raise ConfigError(f"{where}.Resource is '*' for {', '.join(sorted(actions - _EVERYWHERE))}")
    for resource in resources:
        of_objects = resource.endswith("/*")
        if resource.startswith("arn:aws:s3:::"):
            if of_objects == ("s3:ListBucket" in actions):
                raise ConfigError(
                    f"{where}.Resource: s3:ListBucket is of a bucket, all others of its objects: {resource}"
                )
            if "*" in resource.removesuffix("/*"):
                raise ConfigError(f"{where}.Resource: name the bucket: {resource}")
        if "iam:PassRole" in actions and "*" in resource:
            raise ConfigError(f"{where}.Resource: name the role that is passed on: {resource}")
