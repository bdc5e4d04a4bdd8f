"""`pytest -p tests.fast` runs no test that starts a process."""

import subprocess
import sys
from pathlib import Path

from blip3o import settings

ROOT = Path(__file__).parent.parent
FILES = {
    "test_by_import.py": "def test_in_a_function():\n    import ray.data\n",
    "test_by_helper.py": "from tests.distributed import run_ranks\n\n\ndef test_it():\n    pass\n",
    "test_by_fixture.py": "def test_stored(s3):\n    pass\n\n\ndef test_pure():\n    pass\n",
    "test_slipped.py": (
        "import os\n\n\ndef test_it():\n    os.system(f'touch {__file__}.started')\n"
        "\n\ndef test_after_it():\n    pass\n"
    ),
}
CONFTEST = "import pytest\n\n\n@pytest.fixture\ndef s3():\n    return 's3://bucket'\n"


def test_what_starts_a_process_is_left_out_before_or_skipped_at_that_moment(tmp_path):
    for name, text in {**FILES, "conftest.py": CONFTEST}.items():
        (tmp_path / name).write_text(text, encoding="utf-8")
    options = ("-p", "tests.fast", "-p", "no:cacheprovider", "-v", "--rootdir", str(tmp_path), str(tmp_path))
    run = subprocess.run(
        [sys.executable, "-m", "pytest", *options],
        cwd=ROOT,
        env=settings.child_environment({"PYTHONPATH": str(ROOT)}),
        capture_output=True,
        text=True,
    )
    lines = [line for line in run.stdout.splitlines() if "::" in line and "%]" in line]
    outcomes = {line.split()[0].partition("::")[2]: line.split()[1] for line in lines}
    assert outcomes == {"test_pure": "PASSED", "test_it": "SKIPPED", "test_after_it": "PASSED"}, run.stdout
    assert "1 deselected" in run.stdout
    assert not list(tmp_path.glob("*.started"))
