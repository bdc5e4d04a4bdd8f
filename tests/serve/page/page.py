"""What a visitor does on the page, and what one then sees. Everything is found by its role or label, as by a reader."""

import base64
import io
import json

from PIL import Image

NAMES = """element => element.closest("section").querySelector("h2").textContent"""


def generate(page, prompt, **fields):
    """Fills in the form, by label, and presses Enter."""
    for label, value in fields.items():
        page.get_by_label(label, exact=True).fill(str(value))
    page.get_by_label("Prompt", exact=True).fill(prompt)
    page.keyboard.press("Enter")


def wait_for_images(page, count):
    """Waits until a request for `count` images is done."""
    page.get_by_text(f"{count} image{'s' if count > 1 else ''} in ").wait_for()


def cards(page):
    """The images of the gallery, newest first."""
    return page.get_by_role("region", name="Gallery").get_by_role("figure")


def pixels(url):
    """The RGB image of a data URL."""
    return Image.open(io.BytesIO(base64.b64decode(url.partition(",")[2]))).convert("RGB")


def shown(card):
    """The URL of the image in a card, or in whatever holds one."""
    return card.get_by_role("img").get_attribute("src")


def picker(page):
    """The part of the chat that takes a picture."""
    return page.get_by_role("group", name="Picture to ask about")


def ask(page, text):
    """Asks, and returns the reply once it is complete."""
    page.get_by_label("Question").fill(text)
    page.keyboard.press("Enter")
    page.get_by_role("log").and_(page.locator("[aria-busy=false]")).wait_for()
    return page.locator("#talk .assistant").last.text_content()


def alert(page):
    """The words of the error that the page shows."""
    return page.get_by_role("alert").filter(visible=True).inner_text()


def watch(page, place, what):
    """From now on, collects `what` (JavaScript, of a changed `record`) of each change in a place."""
    page.evaluate(
        f"""place => {{
            window.seen = [];
            const note = records => {{ for (const record of records) window.seen.push(...[{what}].flat()); }};
            const options = {{subtree: true, childList: true, characterData: true, attributes: true}};
            new MutationObserver(note).observe(document.querySelector(place), options);
        }}""",
        place,
    )


def watched(page):
    """What `watch` has collected."""
    return json.loads(page.evaluate("JSON.stringify(window.seen)"))
