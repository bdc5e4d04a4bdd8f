"""Widths at which a row's bits are its own: what fails the trial is not used, and what is left gives the same bytes."""

from dataclasses import replace

import pytest
import torch

from blip3o.bundle.reading import load_bundle
from blip3o.errors import ConfigError
from blip3o.inference.widths import exact_widths
from blip3o.model.language.replies import ReplyCache
from tests.bundles import write_nano_bundle


@pytest.fixture(scope="module")
def reference(tmp_path_factory):
    uri = str(tmp_path_factory.mktemp("bundle"))
    write_nano_bundle(uri)
    return load_bundle(uri)


def _run(*, by_place=(), by_width=()):
    """Rows are their numbers, but for an error where the width is one of `by_place` (in its last row) or `by_width`."""

    def run(rows):
        result = rows.double()
        if len(rows) in by_place:
            result[-1] += 1e-9
        return result + 1e-9 * (len(rows) in by_width)

    return run


@pytest.mark.parametrize(
    ("fault", "largest", "widths"),
    [
        ({}, 6, (1, 2, 4, 6)),
        ({"by_width": [1, 4]}, 8, (2, 8)),
        ({"by_width": [8]}, 8, (8,)),
        ({"by_place": [8]}, 8, (1, 2, 4)),
        ({"by_place": [2, 4, 8]}, 8, (1,)),
        ({"by_place": [4], "by_width": [1]}, 6, (2, 6)),
    ],
)
def test_a_width_counts_if_a_row_has_one_result_at_every_place_and_width(fault, largest, widths):
    assert exact_widths(largest, _run(**fault), what="a network") == widths


def test_shapes_that_were_compiled_are_tried_too_and_refused_if_none_counts():
    assert exact_widths(8, _run(by_width=[4]), what="a network", among=(4, 8)) == (8,)
    assert exact_widths(8, _run(by_place=[8]), what="a network", among=(4, 8)) == (4,)
    with pytest.raises(ConfigError, match="other bits at another place of a batch.*use another precision"):
        exact_widths(8, _run(by_place=[4, 8]), what="a network", among=(4, 8))


def test_the_denoiser_is_tried_at_its_compiled_shapes_only(reference, monkeypatch):
    seen, original = set(), reference.model.denoiser.forward
    monkeypatch.setattr(reference.model.denoiser, "forward", lambda *args: seen.add(len(args[0])) or original(*args))
    assert replace(reference, execution="compile").denoiser_widths == (4, 8)
    assert seen == {4, 8}


@pytest.mark.parametrize("rows", [1, 2, 4])
def test_fewer_replies_are_written_together_if_more_depend_on_their_row(reference, monkeypatch, rows):
    step = ReplyCache.step

    def uneven(cache, tokens, active):
        logits = step(cache, tokens, active)
        if len(tokens) > rows:
            logits[-1] += 1e-3
        return logits

    monkeypatch.setattr(ReplyCache, "step", uneven)
    pipeline = replace(reference)
    assert pipeline.reply_rows == rows == len(pipeline.reply_batch().replies)


def test_rows_that_depend_on_their_company_are_refused(reference, monkeypatch):
    noise = torch.Generator().manual_seed(0)
    step = ReplyCache.step
    monkeypatch.setattr(
        ReplyCache,
        "step",
        lambda *args: (logits := step(*args)) + torch.rand(logits.shape, generator=noise),
    )
    with pytest.raises(ConfigError, match="use another precision"):
        _ = replace(reference).reply_rows
