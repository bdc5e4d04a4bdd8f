"""The task for lmms-eval. lmms-eval itself is not in the tests' environment."""

import pyarrow.parquet as pq
import pytest

from blip3o.evaluate.lmms import scenes_utils
from blip3o.evaluate.lmms.scenes_task import SCENES_TASK, write_scenes_task


@pytest.fixture
def task(tmp_path):
    write_scenes_task(tmp_path, scenes=12)
    return tmp_path


def test_the_task_asks_closed_questions_about_heldout_scenes_and_judges_replies_by_their_answers(task):
    rows = pq.read_table(task / "scenes.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"color", "shape", "count", "position"}
    for row in rows:
        (picture,) = scenes_utils.pictures(row)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        assert scenes_utils.question(row).endswith("?")
        assert scenes_utils.judged(row, [f" {row['answer'].upper()}.\n"]) == {"accuracy": 1.0}
        assert scenes_utils.judged(row, [f"not {row['answer']}"]) == {"accuracy": 0.0}


def test_the_task_stands_beside_what_it_calls(task):
    text = (task / f"{SCENES_TASK}.yaml").read_text()
    assert str(task / "scenes.parquet") in text
    called = {word.removeprefix("utils.") for word in text.split() if word.startswith("utils.")}
    assert called == {"pictures", "question", "judged"}
    assert (task / "utils.py").read_text() == open(scenes_utils.__file__).read()
