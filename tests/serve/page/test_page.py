"""A visitor generates, asks, draws, cancels and meets errors, in a real browser against a real server."""

import asyncio
import threading
from itertools import pairwise

import pytest
from PIL import Image

from serve.api import build_api, build_models_api
from serve.engine.engine import Engine
from serve.engine.local import LocalBackend
from serve.http.config import HttpConfig
from serve.protocol import ChatDelta
from tests.serve.client import Server, data_url, question, serving
from tests.serve.page.page import alert, ask, cards, generate, picker, pixels, shown, wait_for_images, watch, watched

PICTURE = Image.radial_gradient("L").convert("RGB")
ADDED_IMAGES = "[...record.addedNodes].filter(node => node.tagName === 'IMG').map(node => [node.alt, node.src])"


@pytest.fixture
def picture_file(tmp_path):
    PICTURE.save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


def test_previews_come_and_then_the_pipelines_images(page, talking):
    watch(page, "#gallery", ADDED_IMAGES)
    prompt = "a <b>red</b> circle & a blue square"
    generate(page, prompt, Images=2, Seed=5, Steps=4, Guidance=2)
    wait_for_images(page, 2)
    expected = talking.generate([prompt] * 2, seed=[5, 6], num_inference_steps=4, guidance_scale=2.0)
    assert [pixels(shown(card)).tobytes() for card in cards(page).all()] == [image.tobytes() for image in expected]
    assert (
        prompt in cards(page).first.inner_text() and "seed 5 · 4 steps · guidance 2" in cards(page).first.inner_text()
    )
    seen = watched(page)
    previews = [url for alt, url in seen if alt == f"Preview: {prompt}"]
    # A busy decoder leaves previews out, but an idle one has room for the first of all.
    assert 1 <= len(previews) <= 2 * 3 and len(seen) == len(previews) + 2
    assert {pixels(url).size for url in previews} == {expected[0].size}


def test_progress_rises_and_is_told(page):
    watch(page, "#generate", "record.target.id === 'generate-progress' ? [record.target.value] : []")
    generate(page, "a red circle", Images=2, Steps=4, Previews=1)
    wait_for_images(page, 2)
    rising = watched(page)
    assert rising == sorted(rising) and len({*rising}) >= 3 and rising[-1] == 1
    assert page.get_by_role("progressbar").is_hidden()


def test_an_image_is_run_again_copied_saved_and_removed(page, tmp_path):
    generate(page, "a red circle", Images=1, Steps=3, **{"Negative prompt": "a blue square"})
    wait_for_images(page, 1)
    card, url = cards(page).first, shown(cards(page).first)
    seed = page.evaluate("document.querySelector('figcaption .hint').textContent").split()[1]
    card.get_by_role("button", name="Copy seed").click()
    card.get_by_text("Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == seed
    with page.expect_download() as download:
        card.get_by_role("link", name="Download").click()
    assert download.value.suggested_filename == f"blip3o-{seed}.png"
    assert Image.open(download.value.path()).convert("RGB").tobytes() == pixels(url).tobytes()
    page.get_by_label("Prompt", exact=True).fill("something else")
    page.get_by_label("Negative prompt").fill("")
    page.get_by_label("Steps").fill("9")
    card.get_by_role("button", name="Re-run").click()
    cards(page).nth(1).wait_for()
    wait_for_images(page, 1)
    assert shown(cards(page).first) == url
    assert page.get_by_label("Negative prompt").input_value() == "a blue square"
    cards(page).first.get_by_role("button", name="Remove").click()
    assert cards(page).count() == 1


def test_a_chosen_picture_is_asked_about_and_the_reply_is_streamed(page, talking, picture_file):
    picker(page).get_by_label("Choose a picture").set_input_files(picture_file)
    watch(page, "#talk", "record.target.className === 'assistant' ? [record.target.textContent] : []")
    first = ask(page, "What colour is it?")
    asked = question("What colour is it?", data_url(PICTURE))
    assert first == talking.chat(asked, max_tokens=64)
    pieces = [text for text in watched(page) if text]
    assert len({*pieces}) > 2 and all(later.startswith(earlier) for earlier, later in pairwise(pieces))
    second = ask(page, "Is it green?")
    messages = [*asked, {"role": "assistant", "content": first}, {"role": "user", "content": "Is it green?"}]
    assert second == talking.chat(messages, max_tokens=64)


def test_a_generated_image_is_asked_about(page, talking):
    generate(page, "a red circle", Images=1, Steps=2)
    wait_for_images(page, 1)
    url = shown(cards(page).first)
    cards(page).first.get_by_role("button", name="Ask").click()
    assert shown(picker(page)) == url
    assert page.get_by_label("Question").evaluate("field => field === document.activeElement")
    assert ask(page, "hi") == talking.chat(question("hi", url), max_tokens=64)
    page.get_by_role("button", name="Start over").click()
    assert picker(page).get_by_role("img").count() == 0 and page.get_by_role("log").inner_text() == ""


def test_a_picture_is_drawn_with_the_mouse_and_with_the_keyboard(page, server):
    picker(page).get_by_role("button", name="Draw one").click()
    canvas = picker(page).get_by_role("application")
    picker(page).get_by_title("green").click()
    box = canvas.bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.2, box["y"] + box["height"] * 0.2)
    page.mouse.down()
    page.mouse.move(box["x"] + box["width"] * 0.8, box["y"] + box["height"] * 0.2)
    page.mouse.up()
    canvas.focus()
    page.keyboard.press("Space")
    for _ in range(8):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("Space")
    page.keyboard.press("ArrowDown")
    picker(page).get_by_role("button", name="Use drawing").click()
    drawn = pixels(shown(picker(page)))
    green, white = (47, 158, 68), (255, 255, 255)
    # Along the mouse's way, along that of the keys from where the mouse was, and not beyond it.
    places = [(64, 51), (128, 51), (192, 51), (205, 100), (205, 140), (128, 128)]
    assert [drawn.getpixel(place) for place in places] == [green] * 4 + [white] * 2
    ask(page, "What is it?")
    [sent] = server.seen[-1].images
    assert sent.getcolors() and any(color[1] > color[0] + 50 for _, color in sent.getcolors())


def test_a_format_that_the_server_does_not_take_is_converted_and_text_is_refused(page, tmp_path):
    PICTURE.save(tmp_path / "picture.gif")
    (tmp_path / "notes.txt").write_text("no picture")
    picker(page).get_by_label("Choose a picture").set_input_files(tmp_path / "picture.gif")
    picker(page).get_by_role("img").wait_for()
    assert shown(picker(page)).startswith("data:image/jpeg")
    picker(page).get_by_label("Choose a picture").set_input_files(tmp_path / "notes.txt")
    picker(page).get_by_role("alert").wait_for()
    assert "notes.txt is not a picture" in alert(page)


FILE_EVENT = """([kind, place, data]) => {
    const bytes = Uint8Array.from(atob(data), each => each.charCodeAt(0));
    const files = new DataTransfer();
    files.items.add(new File([bytes], "picture.png", {type: "image/png"}));
    const options = {bubbles: true, cancelable: true, clipboardData: files, dataTransfer: files};
    const event = kind === "paste" ? new ClipboardEvent(kind, options) : new DragEvent(kind, options);
    document.querySelector(place).dispatchEvent(event);
    return event.defaultPrevented;
}"""


@pytest.mark.parametrize(("kind", "place"), [("paste", "#prompt"), ("drop", "#chat-picker")])
def test_a_picture_is_pasted_or_dropped(page, kind, place):
    url = data_url(PICTURE)
    assert page.evaluate(FILE_EVENT, [kind, place, url.partition(",")[2]])
    picker(page).get_by_role("img").wait_for()
    assert shown(picker(page)) == url


def test_one_of_several_models_is_chosen(open_page, talking):
    engine = Engine(talking)
    engine.start()
    backends = dict.fromkeys(("one", "two"), LocalBackend(engine))
    with Server(build_models_api(backends, HttpConfig())) as server:
        page = open_page(server)
        page.get_by_label("Model").select_option("two")
        page.get_by_text("two · 32 × 32 pixels").wait_for()
        generate(page, "a red circle", Images=1, Steps=2)
        wait_for_images(page, 1)
        page.get_by_label("Model").select_option("one")
        with page.expect_request("**/v1/images/generations") as request:
            cards(page).first.get_by_role("button", name="Re-run").click()
        assert request.value.post_data_json["model"] == page.get_by_label("Model").input_value() == "two"
    engine.close()


@pytest.mark.parametrize("how", ["Stop", "Escape"])
def test_stopping_ends_the_request_and_the_next_one_works(open_page, pipeline, monkeypatch, how):
    stepping, go_on, original = threading.Event(), threading.Event(), pipeline.model.dit.forward

    def forward(*args, **kwargs):
        stepping.set()
        assert go_on.wait(60)
        return original(*args, **kwargs)

    with serving(pipeline) as server:
        monkeypatch.setattr(pipeline.model.dit, "forward", forward)  # the engine has warmed up
        page = open_page(server)
        generate(page, "a red circle", Steps=200)
        assert stepping.wait(60)
        if how == "Stop":
            page.get_by_role("button", name="Stop").click()
        else:
            page.keyboard.press("Escape")
        page.get_by_text("Stopped.").wait_for()
        assert cards(page).count() == 0 and page.get_by_role("button", name="Generate").is_enabled()
        go_on.set()
        generate(page, "a red circle", Images=1, Steps=2)
        wait_for_images(page, 1)
        assert cards(page).count() == 1


class Hesitating(LocalBackend):
    """Says two words of a reply and no more; `left` is set once nobody listens."""

    def __init__(self, engine):
        super().__init__(engine)
        self.left = threading.Event()

    async def stream_chat(self, _):
        try:
            yield ChatDelta(text="It is")
            await asyncio.Event().wait()
        finally:
            self.left.set()


@pytest.mark.parametrize("how", ["Stop", "Start over"])
def test_a_reply_is_stopped_and_the_next_question_can_be_asked(open_page, talking, how):
    engine = Engine(talking)
    engine.start()
    backend = Hesitating(engine)
    with Server(build_api(backend, "nano")) as server:
        page = open_page(server)
        for text in ("What is it?", "And now?"):
            backend.left.clear()
            page.get_by_label("Question").fill(text)
            page.keyboard.press("Enter")
            page.locator("#talk .assistant").last.get_by_text("It is").wait_for()
            page.get_by_role("button", name=how).and_(page.locator("#chat button")).click()
            assert backend.left.wait(60)
        said = ["What is it?", "It is", "And now?", "It is"] if how == "Stop" else []
        assert page.locator("#talk p").all_inner_texts() == said
    engine.close()
