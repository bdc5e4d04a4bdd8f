"""A job as a cluster runs it: `ray job submit` from the checkout to a head with a job server, and what comes back."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from blip3o import settings
from blip3o.data.sets.scenes import build_scenes
from blip3o.data.shards.manifest import read_manifest

ROOT = Path(__file__).parent.parent.parent


@pytest.fixture(scope="module")
def submit(s3):
    """Submits `python -m jobs.<verb> …` and waits; the job reaches the store only through its runtime environment."""
    from cluster.local_ray import LocalRay

    names = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")
    variables = {name: settings.get(name) for name in names}
    ray = str(Path(sys.executable).with_name("ray"))

    with LocalRay(num_cpus=2, dashboard=True) as head:

        def run(*arguments):
            options = ["--address", head.dashboard_url, "--working-dir", "."]
            environment = ["--runtime-env-json", json.dumps({"env_vars": variables})]
            command = [ray, "job", "submit", *options, *environment, "--", "python", "-m", *arguments]
            return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=400)

        yield run


def test_an_index_job_succeeds_and_leaves_its_manifest(s3, submit):
    root = f"{s3}/submitted"
    build_scenes(f"{root}/scenes", train=12, heldout=4, samples_per_shard=6)
    sources = "[{name: scenes, shards: 'scenes/train-*.tar'}]"
    heldout = "[{name: scenes-heldout, shards: 'scenes/heldout-*.tar'}]"
    overrides = (
        f"run.storage={root}/runs",
        f"data.root={root}",
        f"data.sources={sources}",
        f"evaluate.sources={heldout}",
    )
    done = submit("jobs.index", "tiny-encoder", *(part for item in overrides for part in ("--set", item)))
    assert done.returncode == 0, done.stdout[-3000:]
    assert "succeeded" in done.stdout
    assert [shard.rows for shard in read_manifest(f"{root}/manifests/scenes").shards] == [6, 6]
    assert read_manifest(f"{root}/manifests/scenes-heldout").rows == 4


def test_a_job_with_a_wrong_key_fails_with_its_line(submit):
    done = submit("jobs.index", "tiny-encoder", "--set", "optim.stepz=3")
    assert done.returncode != 0
    assert "error: unknown key 'optim.stepz': did you mean 'steps'?" in done.stdout
    assert "Traceback" not in done.stdout.split("error: unknown key")[0]
