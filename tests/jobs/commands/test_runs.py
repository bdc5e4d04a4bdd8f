"""Runs as a storage shows them: listed, compared, and one of them as a page. Their files are made by those who write
them."""

import io
import json
import re

import pytest
from PIL import Image
from typer.testing import CliRunner

from blip3o import storage
from blip3o.errors import StorageError
from blip3o.evaluate.reports.curves import COLORS
from blip3o.runs.listing import list_runs, read_history
from blip3o.runs.paths import ATTEMPTS, EVENTS, evaluation_uri, final_uri, recipe_uri, validation_uri
from blip3o.runs.recipes import diff_recipes, diff_values
from blip3o.runs.results import write_final
from blip3o.runs.rows import read_rows, with_rates
from blip3o.train.metrics.trackers import open_trackers
from jobs.cli import app
from tests.recipes import recipe
from tests.train.events import read_scalars

STEPS = 6


def rows(count, *, begin=0):
    for step in range(begin, count):
        row = {"step": step, "loss": 1 / (step + 1), "loss/flow": 1 / (step + 1), "grad_norm": 1.0, "lr": 0.1}
        work = {"samples": 8, "tokens": 90, "flops/dit": 3e9, "flops/prompt": 1e9}
        clock = {"time": 1e9 + step, "seconds": 0.5, "data_wait": 0.1, "checkpoint_stall": 0.1, "memory_bytes": 2e9}
        yield with_rates({**row, **work, **clock}, peak_flops=1e11)


def write(base, name, groups=(), **sections):
    made = recipe(run={"name": name, "storage": base}, optim={"steps": STEPS}, **sections)
    storage.write_bytes(recipe_uri(base, name), json.dumps(made.model_dump(mode="json")).encode())
    for sink in open_trackers(made):
        for group in groups:
            sink.write(group)


@pytest.fixture
def base(tmp_path):
    uri = str(tmp_path / "runs")
    write(uri, "whole", [list(rows(4)), list(rows(6, begin=4))])
    write_final(final_uri(uri, "whole"), {}, {})
    write(uri, "going", [list(rows(3))], parallel={"threads": 3})
    write(uri, "begun")
    storage.write_bytes(f"{uri}/a-pipeline/snapshot.json", b"{}")  # a folder of Ray Train's, and no run
    return uri


def add_history(base, run):
    for step, flow in ((2, 0.7), (4, 0.5)):
        bins = {"validation/flow/0-0.5": flow - 0.1, "validation/flow/0.5-1": flow + 0.1}
        found = {"step": step, "validation/flow": flow, "validation/loss": flow, **bins}
        storage.write_bytes(validation_uri(base, run, step), json.dumps(found).encode())
        buffer = io.BytesIO()
        Image.new("RGB", (4, 4)).save(buffer, "PNG")
        storage.write_bytes(validation_uri(base, run, step, suffix="png"), buffer.getvalue())
    event = {"time": 1e9 + 2, "kind": "checkpoint", "step": 3, "message": "shard <0> is missing"}
    attempt = {"step": 1, "workers": 2, "began": 1e9, "first_step": 1e9 + 4.25}
    storage.write_bytes(f"{base}/{run}/{EVENTS}/1.json", json.dumps(event).encode())
    storage.write_bytes(f"{base}/{run}/{ATTEMPTS}/1.json", json.dumps(attempt).encode())


def run_cli(*arguments):
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return result.output


def test_runs_are_listed_with_how_far_they_are(base):
    found = {state.run: state for state in list_runs(base)}
    assert sorted(found) == ["begun", "going", "whole"]
    assert [(it.finished, it.done, it.steps) for it in found.values()] == [(False, 0, 6), (False, 3, 6), (True, 6, 6)]
    assert found["going"].loss == pytest.approx(1 / 3)
    assert (found["begun"].loss, found["begun"].age) == (None, None)
    lines = run_cli("runs", "--storage", base).splitlines()
    assert lines[0].split() == ["begun", "generate", "unfinished", "0/6"]
    assert re.fullmatch(r"going +generate +unfinished +3/6  loss 0.3333  \d+ d ago", lines[1])
    assert lines[2].split() == ["whole", "generate", "finished", "6/6", "loss", "0.1667"]
    assert json.loads(run_cli("runs", "--storage", base, "--json"))[2]["run"] == "whole"
    assert "no runs under" in run_cli("runs", "--storage", f"{base}-of-nobody")


def test_two_runs_are_compared_by_their_recipes(base):
    differing = diff_recipes(base, "whole", "going")
    assert differing == {"run.name": ("whole", "going"), "parallel.threads": (1, 3)}
    assert "parallel.threads: 1 → 3" in run_cli("runs", "--storage", base, "--diff", "whole", "going")
    assert diff_recipes(base, "whole", "whole") == {}


def source(name, **settings):
    return {"name": name, "shards": f"{name}/*.tar", **settings}


@pytest.mark.parametrize(
    ("one", "other", "differing"),
    [
        (
            {"sources": [source("a"), source("b", weight=1.0)]},
            {"sources": [source("a"), source("b", weight=2.0)]},
            {"data.sources[1].weight": (1.0, 2.0)},
        ),
        (
            {"sources": [source("a")]},
            {"sources": [source("a"), {"name": "b"}]},
            {"data.sources[1].name": (None, "b")},
        ),
        ({"sources": []}, {"sources": [{"name": "b"}]}, {"data.sources[0].name": (None, "b")}),
        ({"names": ["a", "b"]}, {"names": ["b"]}, {"data.names": (["a", "b"], ["b"])}),
        ({"names": "ab"}, {"names": ["a"]}, {"data.names": ("ab", ["a"])}),
        ({"limits": None}, {"limits": {"size": 3}}, {"data.limits.size": (None, 3)}),
        ({"limits": {}}, {}, {"data.limits": ({}, None)}),
        ({"limits": {"size": None}}, {}, {}),
    ],
)
def test_values_inside_lists_are_compared_one_by_one(one, other, differing):
    found = diff_values({"data": one}, {"data": other})
    assert found == differing
    assert diff_values({"data": other}, {"data": one}) == {key: (b, a) for key, (a, b) in differing.items()}
    three = {key: (a, b, a) for key, (a, b) in differing.items()}
    assert diff_values({"data": one}, {"data": other}, {"data": one}) == three


def test_rows_that_were_written_in_two_cuts_count_once_the_newest_first(base):
    again = [row | {"time": row["time"] + 50} for row in rows(5, begin=2)]
    write(base, "whole", [again])
    found = read_rows(base, "whole")
    assert [row["step"] for row in found] == list(range(6))
    assert [row["time"] - 1e9 for row in found] == [0, 1, 52, 53, 54, 5]


def test_the_page_of_a_run_stands_alone_and_tells_its_history(base, tmp_path):
    add_history(base, "whole")
    out = tmp_path / "pages" / "whole.html"
    assert "wrote" in run_cli("report", "whole", "--storage", base, "--out", str(out))
    page = out.read_text()
    assert "Stage generate, 6 of 6 steps, finished." in page
    titles = re.findall(r"<h2>(.*?)</h2>", page)
    assert titles == ["Drawings", "Training", "Speed", "Where the operations go", "Validation", "Events"]
    assert re.findall(r"<summary>(.*?)</summary>", page) == ["Recipe"]
    assert page.count("<svg") == 3
    assert "flow by noise level" in page
    assert "0.5-1" in page
    assert page.index("after 4 steps") < page.index("after 2 steps")
    assert "75.0 %" in page  # the DiT's share of operations
    assert "2 workers; step 1 done 4.2 s later" in page
    assert "shard &lt;0&gt; is missing" in page
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


EVALUATED = {
    "understanding": {"accuracy": 0.8125, "two_way": {"accuracy": None}},
    "generation": {"r1": 0.25, "r5": None},
    "scenes": None,
}


def cells(page, heading):
    """The rows of the table below a heading: its first cell → the others."""
    section = re.search(f"<h2>{heading}</h2>.*?</section>", page).group()
    rows = [re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row) for row in re.findall(r"<tr>(.*?)</tr>", section)]
    return {row[0]: row[1:] for row in rows}


def test_several_runs_are_compared_on_one_page(base, tmp_path):
    add_history(base, "whole")
    storage.write_bytes(f"{evaluation_uri(base, 'whole')}/evaluation.json", json.dumps(EVALUATED).encode())
    source = {"name": "scenes", "shards": "scenes/train-*.tar", "weight": 2.0}
    write(
        base, "slow", [[row | {"samples_per_second": 4.0, "loss": 2.0} for row in rows(3)]], data={"sources": [source]}
    )
    out = tmp_path / "both.html"
    assert run_cli("report", "whole", "slow", "begun", "--storage", base, "-o", str(out)) == f"wrote {out}\n"
    page = out.read_text()
    assert re.findall(r"<h2>(.*?)</h2>", page) == ["Figures", "Training", "Validation", "Recipes"]
    figures = cells(page, "Figures")
    assert figures[""] == ["whole", "slow", "begun"]
    assert figures["steps"] == ["6 of 6, finished", "3 of 6, not finished", "0 of 6, not finished"]
    assert figures["loss"] == ["0.1667", "2", "–"]
    assert figures["samples a second"] == ["16.0", "4.0", "–"]
    assert figures["seconds of all steps"] == ["3", "2", "–"]
    assert figures["validation/flow"] == ["0.5 after 4 steps", "–", "–"]
    assert figures["answers, three or more choices"] == ["81.2 %", "–", "–"]
    assert figures["own image found first (R@1)"] == ["25.0 %", "–", "–"]
    assert "own image among five (R@5)" not in figures  # no run has it
    assert cells(page, "Recipes") == {
        "": ["whole", "slow", "begun"], "data.sources[0].weight": ["1.0", "2.0", "1.0"]
    }  # fmt: skip
    svg = re.search(r"<svg.*?</svg>", page, re.DOTALL).group()
    assert [svg.count(f"stroke: {color}") > 0 for color in COLORS[:3]] == [True, True, False]
    assert all(f'<b style="color:{color}">' in page for color in COLORS[:3])
    assert not re.search(r'(?:src|href)="(?!data:|#)', page)


def test_a_run_is_compared_with_others_only(base):
    result = CliRunner().invoke(app, ["report", "whole", "whole", "--storage", base])
    assert "whole, whole: name each run once, and 8 at most" in str(result.exception)


@pytest.mark.parametrize("in_a_store", [False, True])
def test_a_pulled_run_is_the_run_without_its_weights(base, request, tmp_path, monkeypatch, in_a_store):
    add_history(base, "whole")
    storage.write_bytes(f"{base}/whole/evaluation/evaluation.json", b"{}")
    source = base
    if in_a_store:
        source = f"{request.getfixturevalue('s3')}/pulled"
        for file in storage.list_files(base):
            storage.write_bytes(f"{source}{file.uri.removeprefix(base)}", storage.read_bytes(file.uri))
    for weights in ("whole/final/weights.safetensors", "whole/shards/whole-step-00000004/model.pt"):
        storage.write_bytes(f"{source}/{weights}", b"of gigabytes")
    monkeypatch.chdir(tmp_path)
    files = [
        file.uri
        for file in storage.list_files(f"{base}/whole")
        if "weights" not in file.uri and "/shards/" not in file.uri
    ]
    said = run_cli("runs", "--storage", source, "--pull", "whole", "here")
    assert said == f"wrote {len(files)} files to here/whole: tensorboard --logdir here\n"
    copied = {
        file.uri.removeprefix(f"{tmp_path}/here"): storage.read_bytes(file.uri) for file in storage.list_files("here")
    }
    assert copied == {uri.removeprefix(base): storage.read_bytes(uri) for uri in files}
    assert list(read_scalars("here/whole/tensorboard"))
    assert read_history("here", "whole") == read_history(base, "whole")


def test_a_run_that_has_just_begun_has_a_page_too(base, tmp_path):
    out = tmp_path / "begun.html"
    run_cli("report", "begun", "--storage", base, "-o", str(out))
    assert re.findall(r"<(?:h2|summary)>(.*?)</", out.read_text()) == ["Recipe"]


def test_a_page_goes_to_a_uri_and_is_named_as_given(base, s3):
    assert run_cli("report", "begun", "--storage", base, "--out", f"{s3}/pages/begun.html") == (
        f"wrote {s3}/pages/begun.html\n"
    )
    assert b"<summary>Recipe</summary>" in storage.read_bytes(f"{s3}/pages/begun.html")


@pytest.mark.parametrize("out", ["{folder}", "/proc/x/y.html", "{folder}/file/y.html"])
def test_a_page_that_cannot_be_written_is_an_error_of_one_line(base, tmp_path, out):
    storage.write_bytes(f"{tmp_path}/folder/file", b"")
    uri = out.format(folder=tmp_path / "folder")
    result = CliRunner().invoke(app, ["report", "begun", "--storage", base, "--out", uri])
    assert isinstance(result.exception, StorageError)
    assert re.fullmatch(f"{uri}: .+", str(result.exception))


def test_a_run_that_is_not_there_is_named(base):
    for command in (["report", "nobody"], ["runs", "--pull", "nobody", "x"]):
        result = CliRunner().invoke(app, [*command, "--storage", base])
        assert "has no run 'nobody'" in str(result.exception)
