"""Jobs as a cluster runs them, on a head with a job server that asks for a token: `ray job submit`, `blip3o submit`."""

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from blip3o import settings, storage
from blip3o.data.sets.scenes import build_scenes
from blip3o.data.shards.manifest import read_manifest
from blip3o.data.text.tokenizer_training import train_tokenizer
from blip3o.runs.paths import final_uri
from blip3o.runs.rows import newest_row
from jobs.index import index
from tests.jobs import world

ROOT = Path(__file__).parent.parent.parent
TOKEN = "a" * 40
S3 = ("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_REGION")


@pytest.fixture(scope="module")
def head(s3):
    """A head that asks for a token; its own environment has no key of the store."""
    from cluster.local_ray import LocalRay

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(ROOT))
        for name in S3:
            patch.delenv(name)
        local = LocalRay(num_cpus=4, dashboard=True, token=TOKEN)
        local.start()
    yield local
    local.stop()


@pytest.fixture(scope="module")
def base(s3):
    """Indexed scenes, a tokenizer and weights to start from, made without a Ray of this process."""
    uri = f"{s3}/trained"
    made = world.recipe(uri)
    build_scenes(f"{uri}/data/scenes", train=world.SCENES, heldout=8, samples_per_shard=40)
    index(made)
    train_tokenizer(made)
    world.write_finals(made)
    return uri


def blip3o(head, *words, cwd=ROOT, token=TOKEN, **options):
    """Starts `blip3o WORDS` against the head."""
    environment = settings.child_environment(
        {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": token,
            "RAY_API_SERVER_ADDRESS": head.dashboard_url,
            "PYTHONPATH": str(ROOT),
            "OWN_SECRET": "hush-hush-hush",
        }
    )
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen([sys.executable, "-m", "jobs.cli", *words], cwd=cwd, env=environment, **pipes, **options)


def finish(process, timeout=300):
    """(exit code, output) of a process."""
    said, _ = process.communicate(timeout=timeout)
    return process.returncode, said


def listed(head):
    code, said = finish(blip3o(head, "jobs", "--json"))
    assert code == 0, said
    return {job["id"]: job for job in json.loads(said)}


@pytest.fixture(scope="module")
def scenes(s3):
    """Overrides that make tiny-encoder read a few scenes in the store."""
    root = f"{s3}/submitted"
    build_scenes(f"{root}/scenes", train=12, heldout=4, samples_per_shard=6)
    overrides = (
        f"run.storage={root}/runs",
        f"data.root={root}",
        "data.sources=[{name: scenes, shards: 'scenes/train-*.tar'}]",
        "evaluate.sources=[{name: scenes-heldout, shards: 'scenes/heldout-*.tar'}]",
    )
    return root, [part for item in overrides for part in ("--set", item)]


def ray_job_submit(head, *words, variables=()):
    """Runs Ray's own command for `python -m WORDS`; the job reaches the store only by these variables."""
    ray = str(Path(sys.executable).with_name("ray"))
    values = json.dumps({"env_vars": {name: settings.get(name) for name in variables}})
    command = [
        ray,
        "job",
        "submit",
        "--address",
        head.dashboard_url,
        "--working-dir",
        ".",
        "--runtime-env-json",
        values,
    ]
    environment = settings.child_environment({"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": TOKEN})
    options = {"capture_output": True, "text": True, "timeout": 400, "env": environment}
    return subprocess.run([*command, "--", "python", "-m", *words], cwd=ROOT, **options)


def test_ray_job_submit_leaves_a_manifest(head, scenes):
    root, overrides = scenes
    done = ray_job_submit(head, "jobs.index", "tiny-encoder", *overrides, variables=S3)
    assert done.returncode == 0, done.stdout[-3000:]
    assert "succeeded" in done.stdout
    assert read_manifest(f"{root}/manifests/scenes-heldout").rows == 4


def test_ray_job_submit_ends_with_the_line_of_the_error(head):
    done = ray_job_submit(head, "jobs.index", "tiny-encoder", "--set", "optim.stepz=3")
    assert done.returncode != 0
    assert "error: unknown key 'optim.stepz': did you mean 'steps'?" in done.stdout
    assert "Traceback" not in done.stdout.split("error: unknown key")[0]


def test_a_submitted_verb_is_followed_to_its_end_and_shows_no_secret(head, scenes):
    root, overrides = scenes
    code, said = finish(blip3o(head, "submit", "tiny-encoder", "--verb", "index", "--env", "OWN_SECRET", *overrides))
    assert code == 0, said
    assert "packing " in said and "tiny-encoder-index-1 succeeded" in said and "manifests/scenes-heldout" in said
    assert [shard.rows for shard in read_manifest(f"{root}/manifests/scenes").shards] == [6, 6]
    assert read_manifest(f"{root}/manifests/scenes-heldout").rows == 4
    shown = said + json.dumps(listed(head)) + finish(blip3o(head, "jobs", "logs", "tiny-encoder-index-1"))[1]
    assert not [secret for secret in (settings.get("AWS_SECRET_ACCESS_KEY"), "hush-hush-hush") if secret in shown]


def test_the_exit_code_of_a_failing_job_is_passed_through_without_another_attempt(head, scenes):
    _, overrides = scenes
    request = ("submit", "tiny-encoder", "--verb", "index", *overrides, "--", "--no-such-option")
    code, said = finish(blip3o(head, *request))
    assert code == 2, said
    assert "No such option: --no-such-option" in said and "ended as FAILED, exit code 2" in said
    assert "continues: attempt" not in said


def test_a_wrong_token_is_named(head):
    code, said = finish(blip3o(head, "jobs", token="b" * 40))
    assert code == 1
    assert f"error: the cluster at {head.dashboard_url} refuses the token: set RAY_AUTH_MODE=token" in said


def drivers(head, verb):
    """Processes of the head's jobs that run a verb."""
    tree = psutil.Process(head._process.pid).children(recursive=True)
    return [each for each in tree if each.status() != psutil.STATUS_ZOMBIE and f"jobs.{verb}" in each.cmdline()]


def wait_until(found, timeout_s=120.0):
    deadline = time.monotonic() + timeout_s
    while not (result := found()):
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.1)
    return result


def submit_training(head, folder, base, name, *options):
    recipe = world.write_recipe(
        folder / f"{name}.yaml",
        base,
        run={"name": name},
        optim={"steps": 60, "warmup_steps": 2, "micro_batch_size": 8, "micro_batches": 2},
    )
    return blip3o(head, "submit", Path(recipe).name, "--verb", "train", *options, cwd=folder)


def result(base, name):
    """(hash of the final weights, last loss) of a run."""
    runs = f"{base}/runs"
    files = [file.uri for file in storage.list_files(final_uri(runs, name), suffix=".safetensors")]
    digest = hashlib.sha256(b"".join(storage.read_bytes(uri) for uri in sorted(files))).hexdigest()
    return len(files), digest, newest_row(runs, name)["loss"]


def test_a_killed_driver_is_replaced_and_the_run_ends_as_an_undisturbed_one(head, base, tmp_path):
    runs = f"{base}/runs"
    code, said = finish(submit_training(head, tmp_path, base, "calm"))
    assert code == 0, said
    process = submit_training(head, tmp_path, base, "killed")
    wait_until(lambda: newest_row(runs, "killed"))
    (driver,) = drivers(head, "train")
    driver.kill()
    code, said = finish(process)
    assert code == 0, said
    assert "killed-train-1: the driver was lost" in said and "killed-train-2 succeeded" in said
    assert result(base, "killed") == result(base, "calm")


def test_ctrl_c_leaves_the_job_running_or_stops_it_if_asked(head, base, tmp_path):
    process = submit_training(head, tmp_path, base, "left")
    wait_until(lambda: drivers(head, "train"))
    process.send_signal(signal.SIGINT)
    code, said = finish(process)
    assert code == 130 and "left-train-1 continues; follow it: " in said, said
    code, said = finish(submit_training(head, tmp_path, base, "left"))
    assert code == 1 and "error: left-train-1 is still running: follow it" in said
    code, said = finish(blip3o(head, "jobs", "stop", "left-train-1"))
    assert (code, said) == (0, "left-train-1: STOPPED\n")
    assert listed(head)["left-train-1"]["status"] == "STOPPED"
