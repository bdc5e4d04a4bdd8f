"""What is submitted: a verb with its arguments, checked here before anything is sent."""

import re
import shlex
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from blip3o.config.pipeline import TrainingPipeline, load_pipeline
from blip3o.errors import ConfigError, nearest
from jobs.submit.packing import Package

VERBS = (
    "all", "index", "tokenizer", "latents", "encode", "preflight", "train", "export", "evaluate", "adopt", "ablate",
)  # fmt: skip
WITHOUT_RECIPE = ("ablate", "evaluate")  # the first takes a folder; the second can do without


@dataclass(frozen=True, kw_only=True)
class JobRequest:
    """A verb's command line for a cluster. `name` is that of its attempts, without their number."""

    name: str
    arguments: tuple[str, ...]

    @property
    def entrypoint(self) -> str:
        """The command that the job runs, for a shell."""
        return shlex.join(("python", "-m", *self.arguments))

    def next_id(self, taken: Iterable[str]) -> str:
        """The id of the next attempt: Ray refuses one that it has had."""
        numbers = [int(found[1]) for each in taken if (found := self._attempt(each))]
        return f"{self.name}-{max(numbers, default=0) + 1}"

    def attempts(self, ids: Iterable[str]) -> list[str]:
        """Those ids that are attempts of this request."""
        return [each for each in ids if self._attempt(each)]

    def _attempt(self, submission_id: str) -> re.Match[str] | None:
        return re.fullmatch(rf"{re.escape(self.name)}-(\d+)", submission_id)


def make_request(
    verb: str, target: str | None, overrides: Sequence[str], extra: Sequence[str], package: Package
) -> JobRequest:
    """The request for `python -m jobs.VERB TARGET --set … EXTRA`.

    `target` is the recipe, or whatever the verb takes first. Raises `ConfigError` for an unknown verb, a recipe that
    cannot be loaded or is not sent, and places below this folder, which a job would look for in its own copy.
    """
    if verb not in VERBS:
        raise ConfigError(f"--verb {verb} cannot be submitted: {nearest(verb, VERBS)}")
    name = verb
    if verb not in WITHOUT_RECIPE or (target is not None and verb != "ablate"):
        name = f"{_checked(verb, target, overrides, package).name}-{verb}"
    words = (*(() if target is None else (target,)), *(part for item in overrides for part in ("--set", item)), *extra)
    return JobRequest(name=name, arguments=(f"jobs.{verb}", *words))


def _checked(verb: str, recipe: str | None, overrides: Sequence[str], package: Package) -> TrainingPipeline:
    if recipe is None:
        raise ConfigError(f"--verb {verb} needs a recipe: name it first")
    pipeline = load_pipeline(recipe, overrides)
    file = Path(recipe.split(":", maxsplit=1)[0])
    if file.suffix in (".yaml", ".yml") and file not in package.sizes:
        raise ConfigError(
            f"{file} is not among the files that are sent: put it below this folder, give its relative path, and see "
            "that .gitignore and .rayignore do not name it"
        )
    for stage in pipeline.stages:
        for key, place in (("data.root", stage.data.root), ("run.storage", stage.run.storage)):
            if Path(place).is_relative_to(Path.cwd()):
                raise ConfigError(
                    f"{key}={place} is in this folder, and a job runs in a copy of it that is lost with the job: "
                    f"give --set {key}=s3://BUCKET/{Path(place).name}"
                )
    return pipeline
