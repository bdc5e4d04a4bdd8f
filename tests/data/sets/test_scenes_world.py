"""The closed world: what is held out, GenEval's relation rule, and colours that a threshold can tell apart."""

from itertools import combinations, product

import numpy as np
import pytest

from blip3o.data.sets.scenes_world import (
    COLORS,
    GROUNDS,
    HELDOUT_PAIRS,
    SHAPES,
    is_heldout,
    relations,
)

FREE = [pair for pair in product(SHAPES, COLORS) if pair not in HELDOUT_PAIRS]

INVERSE = {"left of": "right of", "right of": "left of", "above": "below", "below": "above"}


def test_held_out_pairs_leave_every_shape_and_colour_to_training():
    assert len(HELDOUT_PAIRS) == len(SHAPES) == len({c for _, c in HELDOUT_PAIRS})
    assert {s for s, _ in FREE} == set(SHAPES) and {c for _, c in FREE} == set(COLORS)
    assert all(is_heldout([pair]) for pair in HELDOUT_PAIRS) and not any(is_heldout([pair]) for pair in FREE)


def test_about_an_eighth_of_the_combinations_is_held_out_in_whichever_order():
    heldout = [pair for pair in combinations(FREE, 2) if is_heldout(pair)]
    assert 0.08 < len(heldout) / (len(FREE) * (len(FREE) - 1) / 2) < 0.17
    assert all(is_heldout([b, a]) for a, b in heldout)
    assert not any(is_heldout([pair] * 3) for pair in FREE)


def box(x: float, y: float, width: float = 10, height: float = 10) -> tuple[float, float, float, float]:
    return (x - width / 2, y - height / 2, x + width / 2, y + height / 2)


@pytest.mark.parametrize(
    ("at", "expected"),
    [
        ((-30, 0), {"left of"}),
        ((30, 3), {"right of"}),
        ((0, -30), {"above"}),
        ((-2, 30), {"below"}),
        ((30, 30), {"right of", "below"}),
        ((0, 0), set()),
        ((1.9, 1.9), set()),  # shortened by 0.1 * (10 + 10) = 2 on each axis, nothing remains
        ((4, 0), set()),  # (4 - 2) / 4 is a half exactly, and must be more
        ((4.01, 0), {"right of"}),
        ((17, 30), {"below"}),  # (17 - 2) / 34.5 = 0.43, (30 - 2) / 34.5 = 0.81
    ],
)
def test_relations_follow_the_rule(at, expected):
    assert relations(box(*at), box(0, 0)) == expected
    assert relations(box(0, 0), box(*at)) == {INVERSE[name] for name in expected}


def test_larger_boxes_shorten_the_offset_more():
    assert relations(box(8, 0), box(0, 0)) == {"right of"}
    assert relations(box(8, 0, width=40), box(0, 0)) == set()  # (8 - 0.1 * 50) / 8 = 0.38


def test_colours_and_grounds_are_far_apart():
    def distance(a, b):
        return np.linalg.norm(np.subtract(a, b))

    assert min(distance(a, b) for a, b in combinations(COLORS.values(), 2)) > 100
    assert min(distance(a, b) for a, b in product(COLORS.values(), GROUNDS.values())) > 120
