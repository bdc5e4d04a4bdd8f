"""Every way to ask a server gives the model's own image and reply: Python, JavaScript, curl and the command line."""

import base64
import io
import json
import shutil

import pytest
from PIL import Image

from jobs import cli
from jobs.commands.curl import examples
from tests.docs_commands import ROOT
from tests.serve.client import output, raw, serving

JSON = "-H 'Content-Type: application/json'"
README_URL = "http://127.0.0.1:8000"
CONTRACT = ROOT / "tests" / "serve" / "javascript" / "contract.mjs"


@pytest.fixture(scope="module")
def server(talking):
    with serving(talking) as server:
        yield server


def pixels(data):
    return Image.open(io.BytesIO(data)).convert("RGB").tobytes()


def readme_block(first_line, server):
    """The code block of the README that begins so, for this server."""
    lines = (ROOT / "README.md").read_text().splitlines()
    start = lines.index(f"    {first_line}")
    end = next(number for number in range(start, len(lines)) if not lines[number].startswith("    "))
    block = "\n".join(line.removeprefix("    ") for line in lines[start:end])
    assert README_URL in block
    return block.replace(README_URL, server.url)


def test_the_readmes_python_example(server, talking):
    names = {}
    exec(readme_block("from openai import OpenAI", server), names)
    names["client"].close()
    [expected] = talking.generate("a red circle", seed=1)
    assert pixels(base64.b64decode(names["image"])) == expected.tobytes()


def test_the_readmes_javascript_example(server, talking, javascript):
    said = javascript(readme_block('import OpenAI from "openai";', server))
    [expected] = talking.generate("a red circle", seed=1)
    assert pixels((javascript.folder / "circle.png").read_bytes()) == expected.tobytes()
    assert said == talking.chat("What is red and yellow mixed?", max_tokens=64) != ""


def test_the_javascript_client_gets_images_events_replies_and_errors(server, talking, javascript):
    found = json.loads(javascript(CONTRACT.read_text(), f"{server.url}/v1"))
    assert found["models"] == ["nano"]
    expected = talking.generate("a red circle", seed=5, n=2, num_inference_steps=3)
    assert [pixels(base64.b64decode(item)) for item in found["images"]] == [image.tobytes() for image in expected]
    kinds, numbers = zip(*[event[:2] for event in found["events"]], strict=True)
    assert {*kinds[:-1]} == {"image_generation.partial_image"} and kinds[-1] == "image_generation.completed"
    assert numbers in ((0, 1, None), (0, None), (1, None))  # a busy decoder leaves previews out
    assert pixels(base64.b64decode(found["events"][-1][2])) == expected[0].tobytes()
    assert found["reply"] == "".join(found["pieces"]) == talking.chat("What colour is it?", max_tokens=6)
    assert len(found["pieces"]) > 1
    assert found["errors"] == [["NotFoundError", 404, "model"], ["BadRequestError", 400, "n"]]
    metrics = raw("GET", server.url + "/metrics").text
    while "blip3o_cancelled_total" not in metrics:  # the stream that was stopped
        metrics = raw("GET", server.url + "/metrics").text


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed: apt-get install curl")
def test_the_lines_for_curl_that_are_printed_and_those_of_the_readme(server, talking, tmp_path):
    image, chat, models = examples(server.url)
    assert all(len(line) <= 80 for lines in examples(README_URL) for line in lines.splitlines())
    [expected] = talking.generate("a red circle", seed=1)
    in_readme = readme_block(f"curl -s {README_URL}/v1/images/generations {JSON} \\", server)
    for command in (image, in_readme):
        output(["bash", "-c", command], tmp_path)
        assert pixels((tmp_path / "circle.png").read_bytes()) == expected.tobytes()
        (tmp_path / "circle.png").unlink()
    events = [line.removeprefix("data: ") for line in output(["bash", "-c", chat], tmp_path).splitlines() if line]
    assert events.pop() == "[DONE]"
    pieces = [choice["delta"].get("content") or "" for event in events for choice in json.loads(event)["choices"]]
    assert "".join(pieces) == talking.chat("Hi", max_tokens=64)
    assert [model["id"] for model in json.loads(output(["bash", "-c", models], tmp_path))["data"]] == ["nano"]


def blip3o(capsys, *arguments):
    """(exit code, stdout, stderr) of a command."""
    code = cli.main(arguments)
    said = capsys.readouterr()
    return code, said.out, said.err


@pytest.mark.parametrize("suffix", ["", "/", "/v1"])
def test_generate_with_url_draws_what_the_bundle_draws(server, talking, tmp_path, capsys, suffix):
    """More images than one request may ask for, in one row."""
    options = ["--seed", "3", "-n", "11", "--num-inference-steps", "2", "--negative-prompt", "a blue square"]
    options += ["-o", str(tmp_path / "out.png")]
    code, out, _ = blip3o(capsys, "generate", "--url", server.url + suffix, "a red circle", *options)
    assert (code, out) == (0, f"wrote {tmp_path}/out.png (11 images, seed 3 to 13)\n")
    row = Image.open(tmp_path / "out.png")
    steered = {"num_inference_steps": 2, "negative_prompt": "a blue square"}
    expected = talking.generate("a red circle", seed=3, n=11, **steered)
    side = row.height
    drawn = [row.crop((side * i, 0, side * (i + 1), side)).tobytes() for i in range(11)]
    assert drawn == [image.tobytes() for image in expected]


def test_chat_with_url_answers_as_the_bundle_does(server, talking, tmp_path, capsys):
    picture = Image.radial_gradient("L").convert("RGB")
    picture.save(tmp_path / "picture.png")
    asked = ["chat", "--url", server.url, "What colour is it?", "--max-tokens", "9"]
    assert blip3o(capsys, *asked)[:2] == (0, talking.chat("What colour is it?", max_tokens=9) + "\n")
    expected = talking.chat("What colour is it?", image=picture, max_tokens=9)
    assert blip3o(capsys, *asked, "--image", str(tmp_path / "picture.png"))[:2] == (0, expected + "\n")


def test_a_server_with_keys_takes_that_of_the_environment(talking, monkeypatch, capsys):
    monkeypatch.setenv("BLIP3O_API_KEYS", "ann:secret")
    with serving(talking) as server:
        asked = ["chat", "--url", server.url, "hi"]
        code, _, error = blip3o(capsys, *asked)
        assert code == 1 and "refuses the key" in error and "set BLIP3O_API_KEY to one" in error
        monkeypatch.setenv("BLIP3O_API_KEY", "secret")
        assert blip3o(capsys, *asked)[0] == 0


def test_what_cannot_be_asked_is_told_in_one_line(server, talking, capsys):
    unused = "http://127.0.0.1:1"
    for arguments, code, words in (
        (["--url", unused, "x"], 1, f"{unused} does not answer"),
        (["--url", "runs/demo/bundle", "x"], 1, "is no address of a server"),
        (["--url", server.url, "a " * 500], 1, "tokens"),
        (["--url", server.url, "--bundle", "b", "x"], 2, "give none of them"),
        (["--url", server.url, "--precision", "bf16", "x"], 2, "give none of them"),
        (["x"], 2, "Missing option '--bundle' (or --url"),
    ):
        ended, _, error = blip3o(capsys, "generate", *arguments)
        assert ended == code and words in error and error.count("\n") == 1, error
