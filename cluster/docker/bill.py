"""The bill of materials of an environment, in CycloneDX's JSON: `python -m cluster.docker.bill > sbom.json`.

Every distribution that is installed, with its version, its package URL and the licence that its metadata state. What
states none is listed on stderr: read its licence yourself.
"""

import json
import logging
import re
import sys
from collections.abc import Iterable
from importlib.metadata import Distribution, distributions
from typing import Any

from blip3o import __version__, log

logger = logging.getLogger("cluster.docker.bill")  # also when run as __main__

_CLASSIFIER = "License :: "


def licences(distribution: Distribution) -> list[dict[str, Any]]:
    """What the metadata say: the SPDX expression, or the classifiers, or the first line of the free text."""
    metadata = distribution.metadata
    if expressions := metadata.get_all("License-Expression"):
        return [{"expression": expressions[0]}]
    classified = [line for line in metadata.get_all("Classifier") or [] if line.startswith(_CLASSIFIER)]
    free = (metadata.get_all("License") or [""])[0].strip().partition("\n")[0]
    stated = [line.rpartition(" :: ")[2] for line in classified] or ([free] if free else [])
    return [{"license": {"name": text}} for text in stated]


def component(distribution: Distribution) -> dict[str, Any]:
    """One distribution as CycloneDX describes it."""
    name = distribution.metadata["Name"]
    plain = re.sub(r"[-_.]+", "-", name).lower()
    found: dict[str, Any] = {
        "type": "library",
        "name": name,
        "version": distribution.version,
        "purl": f"pkg:pypi/{plain}@{distribution.version}",
    }
    if stated := licences(distribution):
        found["licenses"] = stated
    return found


def bill(installed: Iterable[Distribution]) -> dict[str, Any]:
    """The document; a distribution that is found twice on the path is listed once."""
    components = {each["purl"]: each for each in map(component, installed)}
    return {
        "bomFormat": "CycloneDX",
        "specVersion": "1.6",
        "version": 1,
        "metadata": {"component": {"type": "application", "name": "blip3o", "version": __version__}},
        "components": [components[key] for key in sorted(components)],
    }


def main() -> int:
    """Writes the bill of this environment to stdout."""
    log.configure()
    document = bill(distributions())
    for each in document["components"]:
        if "licenses" not in each:
            logger.warning("%s %s states no licence", each["name"], each["version"])
    json.dump(document, sys.stdout, indent=1)
    return 0


if __name__ == "__main__":
    sys.exit(main())
