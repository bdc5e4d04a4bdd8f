"""The task for lmms-eval and the way it is called. lmms-eval itself is not in the tests' environment."""

import shlex

import pyarrow.parquet as pq
import pytest

from blip3o.evaluate.lmms import scenes_utils as lmms_scenes
from jobs import lmms


@pytest.fixture
def task(tmp_path):
    lmms.write_scenes_task(tmp_path, scenes=12)
    return tmp_path


def test_the_task_asks_closed_questions_about_heldout_scenes_and_judges_replies_by_their_answers(task):
    rows = pq.read_table(task / "scenes.parquet").to_pylist()
    assert {row["kind"] for row in rows} == {"color", "shape", "count", "position"}
    for row in rows:
        (picture,) = lmms_scenes.pictures(row)
        assert (picture.mode, picture.size) == ("RGB", (64, 64))
        assert lmms_scenes.question(row).endswith("?")
        assert lmms_scenes.judged(row, [f" {row['answer'].upper()}.\n"]) == {"accuracy": 1.0}
        assert lmms_scenes.judged(row, [f"not {row['answer']}"]) == {"accuracy": 0.0}


def test_the_task_stands_beside_what_it_calls(task):
    text = (task / f"{lmms.SCENES_TASK}.yaml").read_text()
    assert str(task / "scenes.parquet") in text
    called = {word.removeprefix("utils.") for word in text.split() if word.startswith("utils.")}
    assert called == {"pictures", "question", "judged"}
    assert (task / "utils.py").read_text() == open(lmms_scenes.__file__).read()


@pytest.mark.parametrize(
    ("target", "asked"),
    [
        ("http://127.0.0.1:8000", "--model openai --model_args model=mine,base_url=http://127.0.0.1:8000/v1,"),
        ("http://127.0.0.1:8000/v1/", "--model openai --model_args model=mine,base_url=http://127.0.0.1:8000/v1,"),
        ("s3://bucket/bundles/demo", "--model blip3o --model_args bundle=s3://bucket/bundles/demo "),
    ],
)
def test_a_url_is_asked_as_a_server_and_all_else_is_a_bundle(tmp_path, target, asked):
    line = lmms.lmms_eval_command(target, model="mine", tasks=["mme", "vqav2"], folder=tmp_path, out=tmp_path, limit=3)
    assert asked in shlex.join(line)
    assert "--tasks mme,vqav2" in shlex.join(line)
    assert line[-2:] == ["--limit", "3"]


def test_without_lmms_eval_the_way_to_get_it_is_named(tmp_path, capsys):
    assert lmms.main(["--target", "http://127.0.0.1:1", "--out", str(tmp_path)]) != 0
    assert "make lmms" in capsys.readouterr().err
