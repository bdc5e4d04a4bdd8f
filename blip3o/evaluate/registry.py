"""The suites by name."""

from blip3o.errors import ConfigError
from blip3o.evaluate.suite import Suite
from blip3o.evaluate.suites.geneval import GenEval


def suites() -> dict[str, Suite]:
    """Every suite under the name by which it is asked for."""
    known: tuple[Suite, ...] = (GenEval(),)
    return {suite.name: suite for suite in known}


def suite(name: str) -> Suite:
    """The suite of that name. Raises `ConfigError` for an unknown one."""
    known = suites()
    if name not in known:
        raise ConfigError(f"unknown suite '{name}': choose from {', '.join(known)}")
    return known[name]
