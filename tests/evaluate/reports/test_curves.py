"""Curves: a panel a stage, the page's own ink, and a running mean that is one."""

from xml.etree import ElementTree

import numpy as np
import pytest

from blip3o.evaluate.reports.curves import loss_curves, smoothed


def rows(losses):
    return [{"step": step, "loss": loss} for step, loss in enumerate(losses)]


def test_one_panel_a_stage_and_none_without_rows():
    svg = loss_curves({"encoder": rows([3, 2, 1]), "generate": rows([1.0, 0.9]), "decoder": []})
    titles = [node.text for node in ElementTree.fromstring(svg).iter("{http://www.w3.org/2000/svg}text")]
    assert [title for title in titles if title in ("encoder", "generate", "decoder")] == ["encoder", "generate"]
    assert titles.count("loss") == 2
    assert "currentColor" in svg
    assert loss_curves({"decoder": []}) == ""


def test_only_a_wide_range_is_logarithmic():
    narrow, wide = (loss_curves({"s": rows(np.linspace(top, 1, 8))}) for top in (7, 9000))
    assert all(f">{tick}<" in wide for tick in (10, 20, 50, 100, 200, 500, 1000))
    assert ">20<" not in narrow
    assert ">2000<" not in loss_curves({"s": rows([9000.0, 4000.0])})  # a linear axis of thousands starts at 4000


def test_equal_metrics_give_equal_bytes():
    metrics = {"s": rows([3, 2, 1])}
    assert loss_curves(metrics) == loss_curves(metrics)


def test_the_running_mean():
    assert smoothed(np.full(100, 2.5)) == pytest.approx(2.5)
    assert smoothed(np.array([0.0, 3.0, 6.0])) == pytest.approx([1.5, 3.0, 4.5])
    line = np.arange(400.0)
    assert smoothed(line)[20:-20] == pytest.approx(line[20:-20])
