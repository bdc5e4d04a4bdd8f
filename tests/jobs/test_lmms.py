"""How lmms-eval is called. lmms-eval itself is not in the tests' environment."""

import shlex

import pytest

from blip3o.evaluate.lmms.run import lmms_eval_command
from jobs import lmms


@pytest.mark.parametrize(
    ("target", "expected"),
    [
        ("http://127.0.0.1:8000", "--model openai --model_args model=mine,base_url=http://127.0.0.1:8000/v1,"),
        ("http://127.0.0.1:8000/v1/", "--model openai --model_args model=mine,base_url=http://127.0.0.1:8000/v1,"),
        ("s3://bucket/bundles/demo", "--model blip3o --model_args bundle=s3://bucket/bundles/demo "),
    ],
)
def test_a_url_is_a_server_and_all_else_is_a_bundle(tmp_path, target, expected):
    line = lmms_eval_command(target, model="mine", tasks=["mme", "vqav2"], folder=tmp_path, out=tmp_path, limit=3)
    assert expected in shlex.join(line)
    assert "--tasks mme,vqav2" in shlex.join(line)
    assert line[-2:] == ["--limit", "3"]


def test_without_lmms_eval_the_way_to_get_it_is_named(tmp_path, capsys):
    assert lmms.main(["--target", "http://127.0.0.1:1", "--out", str(tmp_path)]) != 0
    assert "make lmms" in capsys.readouterr().err
