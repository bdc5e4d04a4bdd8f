"""The published figures lie in their suites' ranges and say what sets them apart."""

import pytest

from blip3o.evaluate.reports.published_scores import PEERS, PROTOCOLS, REWRITTEN, scores_of

RANGES = {
    "geneval": (0, 1),
    "dpg": (0, 100),
    "wise": (0, 1),
    "wise-verified": (0, 1),
    "mjhq": (0, 100),
    "imgedit": (1, 5),
    "gedit": (0, 10),
    "mme": (0, 2000),
    "mme-cognition": (0, 800),
}


def test_every_figure_is_possible_and_of_a_known_protocol():
    assert {peer.suite for peer in PEERS} == set(PROTOCOLS)
    for peer in PEERS:
        low, high = RANGES.get(peer.suite, (0, 100))
        assert low <= peer.value <= high, peer


def test_no_figure_is_there_twice():
    places = [(peer.model, peer.suite, peer.flags, peer.source) for peer in PEERS]
    assert len(set(places)) == len(places)


@pytest.mark.parametrize(
    ("model", "suite", "value"),
    [
        ("BLIP3-o 4B (open)", "geneval", 0.81),
        ("BLIP3-o 8B (open)", "dpg", 80.73),
        ("BLIP3-o 8B (open)", "mmmu", 50.6),
        ("EMU3 8B", "textvqa", 64.7),
    ],
)
def test_some_figures_by_name(model, suite, value):
    assert value in [peer.value for peer in scores_of(suite) if peer.model == model]


def test_rewritten_prompts_are_flagged():
    [bagel] = [p for p in scores_of("geneval") if p.model.startswith("BAGEL") and p.value == 0.88]
    assert bagel.flags == (REWRITTEN,)
    assert scores_of("scenes") == ()
