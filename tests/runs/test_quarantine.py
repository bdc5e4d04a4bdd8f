"""Quarantine: from a given micro-batch on, and not before, a sample is replaced by a rule that depends on its uid."""

import numpy as np

from blip3o.config.objectives import Task
from blip3o.data.batches import build_micro_batches
from blip3o.data.inputs import StageInputs
from blip3o.data.shards.ledger import read_ledger
from blip3o.runs.quarantine import Entry, Quarantine, read_quarantine, write_quarantine
from tests.data.test_batches import PASS, B, equal, recipe, root  # noqa: F401 - a fixture

BAD = 1  # the micro-batch whose samples are put in quarantine


def test_a_sample_in_quarantine_is_replaced_from_its_micro_batch_on_and_named(root):  # noqa: F811
    made = recipe(root)
    run = f"{made.run.storage}/{made.run.name}"
    before = build_micro_batches(StageInputs(made), Task.GENERATE)
    uids = before.uids(BAD)
    assert len(set(uids)) == B
    bad, since = uids[3], BAD + 1
    entry = Entry(step=5, reason="quarantined: the loss is nan", since=since, uids=(bad,))
    write_quarantine(made, read_quarantine(made).with_entry(entry))
    assert read_quarantine(made).entries == (entry,)
    after = build_micro_batches(StageInputs(made), Task.GENERATE)
    for number in range(2 * PASS):
        whole, changed = before(number), after(number)
        if number < since or bad not in before.uids(number):
            assert equal(whole, changed)
        else:
            rows = [row for row in range(B) if whole["draw_key"][row] != changed["draw_key"][row]]
            assert [before.uids(number)[row] for row in rows] == [bad]
            assert bad not in after.uids(number)
            assert np.array_equal(after(number)["draw_key"], changed["draw_key"])
    [recorded] = read_ledger(f"{run}/ledger")
    assert (recorded.uid, recorded.reason) == (bad, "quarantined: the loss is nan")
    assert recorded.size > 0


def test_without_entries_nothing_is_left_out():
    assert Quarantine().reason("scenes/0/0", 10**9) is None
