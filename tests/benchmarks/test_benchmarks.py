"""Each benchmark of the model runs at a tiny size; its last line is the result, which is also kept."""

import json

import pytest

from benchmarks import data_cache, frozen_prefix, sampler

TINY = {
    data_cache: ["--scenes", "16", "--batch", "4", "--steps", "1"],
    frozen_prefix: ["--prompt", "12", "--queries", "4", "--layers", "1", "--width", "64", "--batch", "2"],
    sampler: ["--steps", "2", "--layers", "1", "--width", "448", "--batch", "1"],
}


@pytest.mark.parametrize("benchmark", TINY, ids=lambda module: module.__name__.split(".")[-1])
def test_the_last_line_is_the_result(benchmark, tmp_path, capsys):
    benchmark.main([*TINY[benchmark], "--rounds", "2", "--results", str(tmp_path)])
    line = capsys.readouterr().out.splitlines()[-1]
    result = json.loads(line)
    assert {"name", "ratio", "ours", "other", "unit", "n"} <= set(result)
    assert (result["n"], result["unit"]) == (2, "s")
    assert result["ratio"] == pytest.approx(result["other"] / result["ours"], rel=0.2)  # of rounded seconds
    kept = tmp_path / f"{result['name']}-{result['date'][:10]}.json"
    assert kept.read_text() == line + "\n"


def test_two_ways_that_differ_are_not_compared(tmp_path, monkeypatch):
    monkeypatch.setattr(frozen_prefix, "TOLERANCE", -1.0)
    with pytest.raises(SystemExit, match="nothing to compare"):
        frozen_prefix.main([*TINY[frozen_prefix], "--rounds", "1", "--results", str(tmp_path)])
    assert not list(tmp_path.iterdir())
