"""What a job is given of this process's environment, and how its values are kept out of everything that is printed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from blip3o import settings
from blip3o.errors import ConfigError

# Where the store is.
PLACES = ("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_REGION", "AWS_DEFAULT_REGION")
# Who asks it. A cluster whose nodes have a role of their own needs none of these.
CREDENTIALS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN")
_PUBLIC = "AWS_ACCESS_KEY_ID"  # a name, which may be a common word at a store that is not AWS
HIDDEN = "[hidden]"


@dataclass(frozen=True)
class JobEnvironment:
    """Variables of a job. Its representation has the names only."""

    variables: Mapping[str, str]
    secrets: tuple[str, ...]

    def __repr__(self) -> str:
        """The names of the variables."""
        return f"JobEnvironment({', '.join(self.variables)})"

    def hide(self, text: str) -> str:
        """A text without the values that nobody is to see."""
        for secret in sorted(self.secrets, key=len, reverse=True):
            text = text.replace(secret, HIDDEN)
        return text


def job_environment(names: Sequence[str] = (), *, credentials: bool = True) -> JobEnvironment:
    """The S3 settings of this process and the variables named; their values count as secrets, but for the key's id.

    Raises `ConfigError` for a name that is not set, or for a value on the command line.
    """
    for name in names:
        if "=" in name:
            raise ConfigError(f"--env {name.partition('=')[0]}=… shows its value: export it, and give only the name")
        if settings.get(name) is None:
            raise ConfigError(f"--env {name}: the variable is not set: export it first")
    secret = (*(CREDENTIALS if credentials else ()), *names)
    found = {name: value for name in (*PLACES, *secret) if (value := settings.get(name))}
    return JobEnvironment(
        found, tuple(found[name] for name in dict.fromkeys(secret) if name in found and name != _PUBLIC)
    )
