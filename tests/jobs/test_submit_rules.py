"""What `blip3o submit` decides before it asks a cluster, and after a job has ended."""

import pytest

from blip3o.errors import ConfigError
from jobs.submit.attempts import driver_was_lost, exit_code, worth_another
from jobs.submit.client import Job, connect
from jobs.submit.environment import job_environment
from jobs.submit.following import LineWriter
from jobs.submit.packing import Package, measure
from jobs.submit.request import JobRequest, make_request

NOTHING = Package({})
IN_S3 = ("data.root=s3://bucket/data", "run.storage=s3://bucket/runs")


def ended(status="FAILED", code=None, error="JOB_ENTRYPOINT_COMMAND_ERROR", seconds=100.0):
    return Job(
        id="x", status=status, entrypoint="", exit_code=code, error_type=error, started=1000.0, ended=1000 + seconds
    )


@pytest.mark.parametrize(
    ("job", "code", "lost"),
    [
        (ended("SUCCEEDED", 0, None), 0, False),
        (ended(code=1), 1, False),
        (ended(code=3), 3, False),
        (ended(code=-9), 137, True),
        (ended(code=137), 137, True),
        (ended(code=143), 143, False),
        (ended(code=-15), 143, False),
        (ended("STOPPED", None, None), 143, False),
        (ended("LOST", None, None), 1, True),
        (ended(error="JOB_SUPERVISOR_ACTOR_DIED"), 1, True),
        (ended(error="RUNTIME_ENV_SETUP_FAILURE"), 1, False),
    ],
)
def test_a_lost_driver_is_told_from_an_error_of_the_verb(job, code, lost):
    assert (exit_code(job), driver_was_lost(job)) == (code, lost)


def test_attempts_are_bounded_and_two_that_die_at_once_are_the_last():
    lost, brief = ended(code=-9), ended(code=-9, seconds=3.0)
    assert [worth_another([lost] * n, 3) for n in (1, 2, 3, 4)] == [True, True, True, False]
    assert worth_another([brief], 3) and not worth_another([brief, brief], 3)
    assert worth_another([brief, lost], 3)
    assert not worth_another([lost], 0)


def test_an_attempt_gets_the_next_number_of_its_own_name():
    request = JobRequest(name="run-train", arguments=("jobs.train", "run", "--set", "a=b c"))
    assert request.next_id([]) == "run-train-1"
    assert request.next_id(["run-train-2", "run-train-10", "run-train-x", "other-run-train-77"]) == "run-train-11"
    assert request.entrypoint == "python -m jobs.train run --set 'a=b c'"


def test_the_request_is_the_command_line_of_the_verb():
    request = make_request("train", "tiny:encoder", IN_S3, ["--prepare"], NOTHING)
    places = [part for item in IN_S3 for part in ("--set", item)]
    assert list(request.arguments) == ["jobs.train", "tiny:encoder", *places, "--prepare"]
    suites = ["--suite", "geneval", "--target", "s3://bucket/bundle"]
    assert make_request("evaluate", None, (), suites, NOTHING).arguments == ("jobs.evaluate", *suites)


@pytest.mark.parametrize(
    ("verb", "recipe", "overrides", "fault"),
    [
        ("trian", "tiny", IN_S3, "--verb trian cannot be submitted: did you mean 'train'?"),
        ("train", None, (), "--verb train needs a recipe"),
        ("train", "tiny", (), "is in this folder, and a job runs in a copy of it .* give --set data.root=s3://"),
        ("train", "tiny", IN_S3[:1], "give --set run.storage=s3://BUCKET/runs"),
        ("train", "tiny", ("optim.stepz=3",), "unknown key 'optim.stepz'"),
    ],
)
def test_what_would_fail_there_is_refused_here(verb, recipe, overrides, fault):
    with pytest.raises(ConfigError, match=fault):
        make_request(verb, recipe, overrides, (), NOTHING)


def test_a_folder_too_large_to_send_names_its_largest_part(tmp_path):
    for name, size in (("kept/a", 300), ("kept/b", 400), ("small", 9), ("runs/x", 5000), ("logs/y", 5000)):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes(size))
    (tmp_path / ".gitignore").write_text("/logs/\n")
    (tmp_path / ".rayignore").write_text("/runs/\n")
    sizes = {str(path): size for path, size in measure(tmp_path).sizes.items() if not path.name.startswith(".")}
    assert sizes == {"kept/a": 300, "kept/b": 400, "small": 9}
    with pytest.raises(ConfigError, match=r"name what it does not need in \.rayignore; the largest is kept \(700 "):
        measure(tmp_path, limit=500)


def test_secrets_are_passed_by_name_and_hidden(monkeypatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "s3cret-key")
    monkeypatch.setenv("AWS_REGION", "eu-west-1")
    monkeypatch.setenv("OWN", "hush-hush")
    found = job_environment(["OWN"])
    assert found.variables["OWN"] == "hush-hush" and "hush-hush" not in repr(found)
    assert found.hide("s3cret-key of eu-west-1, hush-hush") == "[hidden] of eu-west-1, [hidden]"
    assert "AWS_SECRET_ACCESS_KEY" not in job_environment(credentials=False).variables
    with pytest.raises(ConfigError, match=r"--env KEY=… shows its value") as refused:
        job_environment(["KEY=hush"])
    assert "hush" not in str(refused.value)
    with pytest.raises(ConfigError, match="--env NOT_SET: the variable is not set"):
        job_environment(["NOT_SET"])


def test_no_cluster_is_guessed(monkeypatch):
    monkeypatch.delenv("RAY_API_SERVER_ADDRESS", raising=False)
    with pytest.raises(ConfigError, match="no cluster is named: give --address"):
        connect(None)


def test_a_log_that_starts_again_is_passed_on_once():
    lines = []
    writer = LineWriter(lines.append)
    writer.feed("one\ntw")
    writer.restart()
    writer.feed("one\ntwo\nthree")
    writer.close()
    assert lines == ["one", "two", "three"]
