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
        if name != "trust":
            _check_resources(where, actions, _listed(statement.get("Resource")))
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


def _check_resources(where: str, actions: set[str], resources: set[str]) -> None:
    if "*" in resources and not actions <= _EVERYWHERE:
        raise ConfigError(f"{where}.Resource is '*' for {', '.join(sorted(actions - _EVERYWHERE))}")
    for resource in resources:
        of_objects = resource.endswith("/*")
        if resource.startswith("arn:aws:s3:::") and of_objects == ("s3:ListBucket" in actions):
            raise ConfigError(f"{where}.Resource: s3:ListBucket is of a bucket, all others of its objects: {resource}")
