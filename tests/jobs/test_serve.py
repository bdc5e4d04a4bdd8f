"""`blip3o serve --demo`: the store and the model that a demo left, until Ctrl-C."""

import signal
import subprocess
import sys

import boto3
import pytest

from cluster.local_s3 import REGION, LocalS3
from cluster.ports import free_ports
from jobs import serve
from jobs.commands.demo_store import BUCKET, BUNDLE, STORE
from tests.bundles import write_nano_bundle


@pytest.fixture
def demo(tmp_path):
    """A folder as a demo leaves it, for this command: its store, with a bundle, which is nowhere else."""
    write_nano_bundle(str(tmp_path / "bundle"))
    with LocalS3(data_dir=tmp_path / "demo" / STORE) as store:
        store.create_bucket(BUCKET)
        keys = {"aws_access_key_id": store.access_key, "aws_secret_access_key": store.secret_key}
        client = boto3.client("s3", endpoint_url=store.endpoint, region_name=REGION, **keys)
        for file in (tmp_path / "bundle").rglob("*.*"):
            name = BUNDLE.removeprefix(f"s3://{BUCKET}/") + f"/{file.relative_to(tmp_path / 'bundle')}"
            client.upload_file(str(file), BUCKET, name)
    return tmp_path / "demo"


def test_what_a_demo_left_is_served_until_ctrl_c_with_lines_that_work(demo, tmp_path):
    port = free_ports(1)[0]
    command = [sys.executable, "-m", "jobs.serve", "--demo", "--folder", str(demo), "--port", str(port)]
    with subprocess.Popen(command, stdout=-1, stderr=-1, text=True) as process:
        try:
            lines = [process.stdout.readline()]
            while lines[-1] and not lines[-1].endswith("/v1/models\n"):
                lines.append(process.stdout.readline())
            assert lines[0] == f"serving {BUNDLE} at http://127.0.0.1:{port} (Ctrl-C stops it)\n", process.stderr.read()
            pasted = subprocess.run(["bash", "-c", "".join(lines[2:])], cwd=tmp_path, capture_output=True, text=True)
            assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")
            assert "data: [DONE]" in pasted.stdout and '"object":"list"' in pasted.stdout
            process.send_signal(signal.SIGINT)
            said = process.communicate(timeout=120)
        finally:
            process.kill()
    assert (process.returncode, said[0]) == (0, "stopping\n") and "Traceback" not in said[1]


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        ([], 2, "Missing option '--bundle', or --demo"),
        (["--demo", "--bundle", "b"], 2, "give one of them"),
        (["--bundle", "b", "--folder", "runs/demo"], 2, "--demo, which --folder belongs to"),
        (["--demo", "--folder", "nowhere"], 1, "nowhere holds no store: give the folder of a demo"),
    ],
)
def test_what_cannot_be_served_is_told_in_one_line(capsys, options, code, words):
    assert serve.main(options) == code
    said = capsys.readouterr()
    assert words in said.err and said.err.count("\n") == 1 and not said.out
