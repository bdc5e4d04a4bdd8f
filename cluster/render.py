"""Launcher files, manifests and policies from one values file: `python -m cluster.render values.yaml --out FOLDER`.

The templates are in `cluster/templates`, and a file is written for each at the same place below FOLDER. What this
project ships is rendered from `cluster/values.yaml`.
"""

import argparse
import logging
import shlex
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from blip3o import log, settings
from blip3o.config.load import explain
from blip3o.config.yaml_reader import load_yaml
from blip3o.errors import Blip3oError, ConfigError
from cluster.instances import MACHINES
from cluster.values import Values

if TYPE_CHECKING:
    from jinja2 import Environment

logger = logging.getLogger("cluster.render")  # also when run as __main__

TEMPLATES = Path(__file__).parent / "templates"
# The label ray-subcluster of each worker group. Recipes and Serve configs choose nodes by it.
SUBCLUSTERS = {
    "preprocess": "preprocess",
    "encoder": "encoder",
    "trainer": "train",
    "ingress": "ingress",
    "generator": "serve",
}
# The verbs that a RayJob runs, with the worker groups that each uses and the recipe's keys that choose their nodes.
JOBS = {
    "train": {"preprocess": "parallel.data_labels", "trainer": "parallel.worker_labels"},
    "encode": {"preprocess": "parallel.data_labels", "encoder": "parallel.encoder_labels"},
    "evaluate": {"generator": ""},  # whose GPUs hold a whole bundle
}
POD_GRACE_S = 360  # of pods that serve: longer than a replica drains, and that longer than a request takes


def load_values(path: Path) -> Values:
    """Reads and checks a values file. Raises `ConfigError` that names the file and the field."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path}: {error}") from error
    try:
        return Values.model_validate(load_yaml(data, str(path)))
    except ValidationError as error:
        raise ConfigError(f"{path}: " + "; ".join(explain(item) for item in error.errors())) from error


def render(values: Values) -> dict[str, str]:
    """The text of each file, by its path below the output folder."""
    environment = _environment()
    files = {}
    for path in sorted(TEMPLATES.rglob("*.j2")):
        name = path.relative_to(TEMPLATES).as_posix()
        if path.name.startswith("_"):  # parts that others include
            continue
        for target, extra in _targets(name.removesuffix(".j2")):
            files[target] = environment.get_template(name).render(_context(values) | extra)
    return files


def _targets(name: str) -> list[tuple[str, dict[str, Any]]]:
    """The files of a template: one, or one for each verb."""
    if "VERB" not in name:
        return [(name, {})]
    return [(name.replace("VERB", verb), {"verb": verb, "groups": tuple(JOBS[verb])}) for verb in JOBS]


def _entrypoint(verb: str, values: Values) -> str:
    """The command of a job, a line for each option."""
    store = f"s3://{values.bucket}"
    options = {"run.storage": f"{store}/runs", "data.root": f"{store}/data"}
    options |= {key: f"{{ray-subcluster: {SUBCLUSTERS[group]}}}" for group, key in JOBS[verb].items() if key}
    words = [f"python -m jobs.{verb} {values.recipe}"]
    if verb == "evaluate":
        words.append(f"--bundle {store}/{values.bundle}")
    return "\n".join([*words, *(f"--set {shlex.quote(f'{key}={value}')}" for key, value in options.items())])


def _environment() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    # What is rendered is YAML and JSON, never HTML.
    return Environment(
        loader=FileSystemLoader(TEMPLATES),
        undefined=StrictUndefined,
        autoescape=False,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )


def _repository(image: str) -> str:
    """The name of an image in its registry, without the registry's host and the tag."""
    return image.partition("/")[2].partition("@")[0].rpartition(":")[0]


def _context(values: Values) -> dict[str, Any]:
    return {
        "v": values,
        "machines": MACHINES,
        "subclusters": SUBCLUSTERS,
        "entrypoints": {verb: _entrypoint(verb, values) for verb in JOBS},
        "ray_version": version("ray"),
        "python_tag": f"py{sys.version_info.major}{sys.version_info.minor}",
        "repositories": sorted({_repository(values.images.cpu), _repository(values.images.gpu)}),
        "pod_grace_s": POD_GRACE_S,
        "head_environment": settings.RAY_HEAD,
        "head_environment_words": " ".join(f"{name}={value}" for name, value in settings.RAY_HEAD.items()),
        "serve_environment": settings.RAY_SERVE,
        "serve_environment_words": "\n    ".join(f"{name}={value}" for name, value in settings.RAY_SERVE.items()),
    }


def write(files: dict[str, str], out: Path) -> None:
    """Writes rendered files below a folder, which is made if needed."""
    for name, text in files.items():
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def main(arguments: list[str]) -> int:
    """Renders all files; returns 1 if the values are wrong."""
    parser = argparse.ArgumentParser(prog="python -m cluster.render", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("values", type=Path)
    parser.add_argument("--out", type=Path, required=True, help="the folder to write to")
    chosen = parser.parse_args(arguments)
    log.configure()
    try:
        files = render(load_values(chosen.values))
        write(files, chosen.out)
    except (Blip3oError, OSError) as error:
        logger.error("%s", error)
        return 1
    for name in files:
        logger.info("%s", chosen.out / name)
    checked = [str(chosen.out / name) for name in files if not name.endswith("ignore")]
    logger.info("check them: python -m cluster.validate %s", " ".join(checked))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
