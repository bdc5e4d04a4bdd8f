"""The local head runs submitted jobs with this interpreter, next to another Ray, and leaves no process behind."""

import asyncio
import sys
import urllib.parse
from pathlib import Path

import psutil
import pytest

from blip3o.errors import ServiceError
from cluster.local_ray import LocalRay

SCRIPT = 'import ray, sys; ray.init(); print(sys.prefix, ray.cluster_resources()["CPU"], ray.get(ray.put(40)) + 2)'


def _sessions(temp_dir: Path) -> list[psutil.Process]:
    """Ray's processes below a temp_dir: their command lines name it."""
    listed = psutil.process_iter(["cmdline", "status"])
    return [p for p in listed if p.info["cmdline"] and str(temp_dir) in " ".join(p.info["cmdline"])]


def test_a_submitted_job_runs_beside_another_ray_and_nothing_is_left(ray_cluster):
    from ray.job_submission import JobSubmissionClient

    with LocalRay(num_cpus=3, dashboard=True) as head:
        assert urllib.parse.urlsplit(head.dashboard_url).hostname == "127.0.0.1"
        temp_dir, address = head.temp_dir, head.address
        assert address != ray_cluster.get_runtime_context().gcs_address
        assert _sessions(temp_dir)
        client = JobSubmissionClient(head.dashboard_url)
        job = client.submit_job(entrypoint=f"python -c '{SCRIPT}'")
        lines = "".join(_logs(client, job)).splitlines()
        assert f"{sys.prefix} 3.0 42" in lines
    assert not _sessions(temp_dir)
    assert not temp_dir.exists()
    with pytest.raises(ServiceError, match="not running"):
        _ = head.address
    assert ray_cluster.get(ray_cluster.remote(lambda: 1).options(num_cpus=0.1).remote()) == 1


def _logs(client, job):
    async def collect():
        return [part async for part in client.tail_job_logs(job)]

    return asyncio.run(asyncio.wait_for(collect(), timeout=120))


def test_a_long_temp_dir_is_refused(tmp_path):
    with pytest.raises(ServiceError, match="longer than 40 bytes"):
        LocalRay(num_cpus=1, dashboard=False, temp_dir=tmp_path / ("x" * 40))


def test_a_long_tmpdir_is_not_used(tmp_path, monkeypatch):
    (tmp_path / ("x" * 40)).mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / ("x" * 40)))
    made = LocalRay(num_cpus=1, dashboard=False)._make_temp_dir()
    made.rmdir()
    assert len(bytes(made)) <= 40


def test_no_dashboard_no_address_before_the_start():
    head = LocalRay(num_cpus=1, dashboard=False)
    with pytest.raises(ServiceError, match="dashboard=True"):
        _ = head.dashboard_url
    with pytest.raises(ServiceError, match="not running"):
        _ = head.temp_dir
    head.stop()


def test_a_head_that_dies_is_reported(tmp_path, monkeypatch):
    monkeypatch.setattr(LocalRay, "_command", lambda _: [str(Path("/bin/sh")), "-c", "echo no such option; exit 2"])
    with pytest.raises(ServiceError, match="the local Ray head ended with code 2; .* no such option"):
        LocalRay(num_cpus=1, dashboard=False).start()
