"""The page in light, in dark and on a phone; with a keyboard; and by a screen reader."""

import pytest

from tests.serve.page.page import ask, generate, picker, wait_for_images

LOOKS = {
    "light": {"viewport": {"width": 1280, "height": 900}},
    "dark": {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
    "phone": {"viewport": {"width": 360, "height": 740}, "has_touch": True, "is_mobile": True},
}
# The texts whose contrast with the ground below them is less than 4.5 (WCAG 2.2, 1.4.3), with the contrast.
FAINT = """() => {
    const channels = color => color.match(/[0-9.]+/g).map(Number);
    const light = value => (value /= 255) <= 0.04045 ? value / 12.92 : ((value + 0.055) / 1.055) ** 2.4;
    const luminance = ([r, g, b]) => 0.2126 * light(r) + 0.7152 * light(g) + 0.0722 * light(b);
    const ground = element => {
        for (; element; element = element.parentElement) {
            const color = channels(getComputedStyle(element).backgroundColor);
            if (color.length < 4 || color[3] > 0) return color;
        }
        return [255, 255, 255];
    };
    const faint = [];
    for (const element of document.querySelectorAll("body *")) {
        const text = [...element.childNodes].some(node => node.nodeType === 3 && node.textContent.trim());
        if (!text || !element.checkVisibility() || element.matches(":disabled, .unseen, noscript")) continue;
        const pair = [channels(getComputedStyle(element).color), ground(element)].map(luminance).sort((a, b) => b - a);
        const contrast = (pair[0] + 0.05) / (pair[1] + 0.05);
        if (contrast < 4.5) faint.push([element.textContent.slice(0, 40), contrast]);
    }
    return faint;
}"""
# The controls that a finger cannot hit: smaller than 24 pixels (WCAG 2.2, 2.5.8).
CONTROLS = "button, input:not(.unseen), select, textarea, a[download], .button, .color"
SMALL = f"""() => [...document.querySelectorAll("{CONTROLS}")].filter(each => each.checkVisibility())
    .map(each => [each.textContent || each.name, each.getBoundingClientRect()])
    .filter(([, box]) => box.width < 24 || box.height < 24).map(([name, box]) => [name, box.width, box.height])"""


@pytest.mark.parametrize("look", LOOKS)
def test_everything_can_be_read_and_reached_in_every_look(open_page, server, keep, look):
    page = open_page(server, **LOOKS[look])
    generate(page, "a red circle above a blue square", Images=3, Steps=2)
    wait_for_images(page, 3)
    page.get_by_role("button", name="Ask about the image").first.click()
    ask(page, "What colour is it?")
    picker(page).get_by_role("button", name="Draw one").click()
    generate(page, "a " * 500)
    page.get_by_role("alert").filter(visible=True).wait_for()
    assert page.evaluate(FAINT) == []
    assert page.evaluate(SMALL) == []
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    keep(page, look)


def test_every_control_and_picture_has_a_name(page):
    generate(page, "a red circle", Images=1, Steps=2)
    wait_for_images(page, 1)
    page.get_by_role("button", name="Ask about the image").click()
    picker(page).get_by_role("button", name="Draw one").click()
    nodes = page.context.new_cdp_session(page).send("Accessibility.getFullAXTree")["nodes"]
    roles = {"button", "textbox", "spinbutton", "combobox", "image", "radio", "slider", "link", "log", "application"}
    told = [(node["role"]["value"], node.get("name", {}).get("value", "")) for node in nodes if not node["ignored"]]
    assert roles - {role for role, _ in told} == {"combobox"}  # the choice of a model, where there are several
    assert [role for role, name in told if role in roles and not name.strip()] == []


def test_all_of_it_works_without_a_mouse(page):
    """From the top of the page by Tab: the link, the key, then the prompt; Enter generates, and the cards follow."""
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.textContent.trim() || document.activeElement.name"))
        if reached[-1] == "prompt":
            break
    assert reached[0] == "Skip to the prompt" and reached[-1] == "prompt"
    page.keyboard.type("a red circle")
    page.keyboard.press("Enter")
    wait_for_images(page, 4)
    for _ in range(40):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.textContent") == "Ask":
            break
    page.keyboard.press("Enter")
    page.keyboard.type("hi")
    page.keyboard.press("Enter")
    page.get_by_role("log").and_(page.locator("[aria-busy=false]")).wait_for()
    assert page.locator("#talk .assistant").text_content()
