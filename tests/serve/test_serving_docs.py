"""Every example and every command of the pages about serving runs, or is named here with what runs it elsewhere."""

import os
import re
import shlex
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml
from PIL import Image

from cluster.validate import validate_serve
from jobs import cli
from jobs.serve import build_config
from serve.http.config import HttpConfig
from tests.docs_commands import ROOT, parse
from tests.serve.client import assert_refusal, output, raw, serving

URL = "http://127.0.0.1:8000"
PAGES = ("serving", "http-api", "deploying", "monitoring")
# Commands that are not run in this file, and why that is enough.
ELSEWHERE = {
    "make serve": "tests/jobs/test_serve.py",
    "blip3o bench-serve": "tests/jobs/loadtest/test_command.py",
    "python -m cluster.render": "tests/cluster/test_render.py",
    "python -m cluster.validate": "tests/cluster/test_validate.py",
    "python -m benchmarks.": "tests/serve/deployments/test_rollout.py",  # minutes; the tests have short forms
    "ray start": "cluster/aws-serve.yaml",  # a Ray that stays; of the nodes there
    "kubectl": "cluster/kuberay/serve/rayservice.yaml",  # needs a cluster; the file is validated
}


@dataclass(frozen=True)
class Block:
    """A block of code: its page, its language and its text."""

    page: str
    language: str
    text: str


def _blocks():
    for page in PAGES:
        found = re.findall(
            r"^```(\w+)\n(.*?)^```", (ROOT / "docs" / f"{page}.md").read_text(), re.MULTILINE | re.DOTALL
        )
        yield from (Block(page, language, text) for language, text in found)


BLOCKS = list(_blocks())


def code(language, page=None):
    """The texts in a language, of a page or of all."""
    return [block.text for block in BLOCKS if block.language == language and page in (None, block.page)]


def _lines(text):
    """The commands of a block, each with what it continues with."""
    return re.sub(r"(\\|\|)\n\s*", lambda match: match[1].removeprefix("\\") + " ", text).strip().splitlines()


COMMANDS = [line for block in code("bash") for line in _lines(block)]


def starting(*beginnings):
    """The commands that begin so, behind variables that they set."""
    return [line for line in COMMANDS if re.sub(r"^(\w+=\S+ )*", "", line).startswith(beginnings)]


@pytest.fixture(scope="module")
def server(talking):
    with serving(talking, "blip3o") as server:
        yield server


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def pixels(file):
    return Image.open(file).convert("RGB").tobytes()


def test_every_block_and_every_command_is_run():
    assert {block.language for block in BLOCKS} == {"bash", "python", "javascript", "yaml"}
    run = starting("curl", "blip3o generate --url", "blip3o chat --url", "blip3o serve --bundle", "blip3o deploy")
    assert not [line for line in COMMANDS if line not in run and line not in starting(*ELSEWHERE)]
    assert not [it for it, where in ELSEWHERE.items() if not (starting(it) and (ROOT / where).exists())]


def test_examples_in_python(server, talking, folder, capsys):
    """Those for the client: a page at a time, as a reader goes through it."""
    for page in ("serving", "http-api"):
        names = {}
        for text in code("python", page):
            if "client" in text:
                exec(text.replace(URL, server.url), names)
        names["client"].close()
    first, second = talking.generate("a red circle", seed=1, n=2)
    assert [pixels("circle-1.png"), pixels("circle-2.png")] == [first.tobytes(), second.tobytes()]
    said = capsys.readouterr().out.splitlines()
    reply = talking.chat("What is red?", max_tokens=64)
    short = talking.chat("What is red?", max_tokens=16)
    assert reply in said and said.count(short) == 2, "the chat's stream and the response"
    assert said[1].startswith("[1, 2] "), "the seeds"
    assert [line.split()[0] for line in said if "image_generation." in line][-1] == "image_generation.completed"
    assert "data:image/png;base64," in said and said[-1].startswith("400 invalid_value n req_")


def test_the_example_without_a_server(bundle, talking, reference, folder, capsys):
    Path("runs/demo").mkdir(parents=True)
    os.symlink(bundle.removeprefix("file://"), "runs/demo/bundle")
    [text] = [text for text in code("python", "serving") if "blip3o.load" in text]
    exec(text, {})
    assert pixels("circle.png") == reference.generate("a red circle", seed=1)[0].tobytes()
    assert capsys.readouterr().out == reference.chat("What is red?", max_tokens=64) + "\n"


def test_the_example_of_a_content_filter(talking, folder, monkeypatch):
    [text] = [text for text in code("python") if "check_text" in text]
    [name] = re.findall(r"class (\w+)", text)
    Path("filters_of_the_docs.py").write_text(text)
    monkeypatch.syspath_prepend(folder)
    with serving(talking, config=HttpConfig(content_filter=f"filters_of_the_docs:{name}")) as server:
        answer = raw("POST", server.url + "/v1/images/generations", {"prompt": "a square"})
        assert_refusal(answer, 400, code="content_policy_violation", param="prompt")
        assert raw("POST", server.url + "/v1/images/generations", {"prompt": "a circle"}).status == 200
    del sys.modules["filters_of_the_docs"]


def test_examples_in_javascript(server, talking, javascript):
    for text in code("javascript"):
        said = javascript(text.replace(URL, server.url))
        [expected] = talking.generate("a red circle", seed=1)
        assert pixels(javascript.folder / "circle.png") == expected.tobytes()
        assert said == talking.chat("What is red?", max_tokens=64) + "\n"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
def test_lines_for_curl(server, talking, folder):
    for line in starting("curl"):
        said = output(["bash", "-c", line.replace(URL, server.url)], folder)
        if "> circle.png" in line:
            assert pixels("circle.png") == talking.generate("a red circle", seed=1)[0].tobytes()
        else:
            assert talking.chat("What is red?", max_tokens=64) in said or "# TYPE blip3o_images_total counter" in said


def test_commands_that_ask_a_server(server, talking, folder, capsys):
    Image.new("RGB", (8, 8), "red").save("out.png")
    for line in starting("blip3o generate", "blip3o chat"):
        assert cli.main(shlex.split(line.replace(URL, server.url))[1:]) == 0
    row = Image.open("out.png")
    assert row.width == 4 * row.height
    first = row.crop((0, 0, row.height, row.height)).tobytes()
    assert first == talking.generate("a red circle", seed=1)[0].tobytes()


@pytest.mark.parametrize("line", starting("blip3o serve --bundle"))
def test_commands_that_start_a_server(talking, folder, monkeypatch, line):
    """The HTTP API that they describe; tests/jobs starts a whole server."""
    [keys] = [text for text in code("yaml", "serving") if "requests_per_minute" in text]
    Path("keys.yaml").write_text(keys)
    words = shlex.split(line, comments=True)
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        monkeypatch.setenv(name, value)
    values = parse(tuple(words))
    options = {name: value for name, value in values.items() if name not in ("demo", "folder", "port")}
    config = build_config(options).http
    needs_key = "KEY" in line or "keys" in line
    body = {"prompt": "x", "num_inference_steps": 1}
    with serving(talking, config=config) as server:
        for headers, status in (({}, 401 if needs_key else 200), ({"authorization": "Bearer KEY"}, 200)):
            sent = headers | {"content-type": "application/json"}
            assert raw("POST", server.url + "/v1/images/generations", body, sent).status == status


@pytest.mark.parametrize("line", starting("blip3o deploy"))
def test_commands_that_deploy(bundle, folder, capsys, line):
    """The Serve config that they send; tests/serve/deployments sends it to a real Serve."""
    words = [bundle if word.startswith("s3:") else word for word in shlex.split(line, comments=True)]
    assert cli.main([*words[words.index("blip3o") + 1 :], "--dry-run"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    validate_serve(config)
    host = "0.0.0.0" if "--url" in words else "127.0.0.1"
    assert config["http_options"]["host"] == host, "what others reach is said in the command"


def test_the_example_for_prometheus_names_files_that_exist():
    [text] = code("yaml", "monitoring")
    config = yaml.safe_load(text)
    assert [name for name in config["rule_files"] if not (ROOT / "serve" / "monitoring" / name).exists()] == []
    [job] = config["scrape_configs"]
    assert job["static_configs"][0]["targets"] and "metrics_path" not in job, "the default is /metrics"
