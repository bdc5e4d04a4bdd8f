"""The page of benchmarks: figures on their own scale, refused scores as dashes, and nothing from outside as markup."""

from PIL import Image

from blip3o.evaluate.reports.suites import Example, PublishedRow, SuiteResult, number, render_suites

COVERAGE = {"n_expected": 4, "n_scored": 3, "n_missing": 0, "n_parse_failed": 1}


def score(suite="geneval", *, overall=0.5, best=1.0, **changes):
    judge = {"id": "<judge>", "version": "7"}
    return {
        "suite": suite, "protocol": "official", "judge": judge, "coverage": COVERAGE, "overall": overall, "best": best,
        "categories": {"colors": overall}, "comparable": False, "why_not": ["few items"], "interval": None, **changes,
    }  # fmt: skip


def page(*results):
    return render_suites(results, target={"target": "bundle"})


def result(row, **more):
    return SuiteResult(score=row, cost={"files": 4, "seconds": 8.0, "wall_seconds": 9.0}, **more)


def test_scales_are_the_suites_own():
    assert (number(0.5), number(None), number(81.25, 100.0), number(12.5, None)) == ("50.0 %", "–", "81.25", "12.5")
    html = page(result(score(overall=50.0, best=100.0)), result(score("mjhq", overall=12.5, best=None)))
    assert "<strong>50</strong>" in html and 'style="width:50.0%"' in html
    assert "<strong>12.5</strong>" in html and html.count('class="bar"') == 2


def test_a_refused_score_is_a_dash_with_its_counts():
    html = page(result(score(overall=None)))
    assert "<strong>–</strong>" in html and "3 of 4" in html and "few items" in html


def test_controls_examples_peers_and_curves_are_shown_and_escaped():
    example = Example(prompt="<b>", reason="expected 1", right=False, image=Image.new("RGB", (8, 8)))
    peer = PublishedRow(model="Other", value="0.8", protocol="rewritten prompts", source="its paper")
    row = score(controls={"upper_bound": 0.9, "shuffled": 0.25})
    history = (("first", score(overall=0.1)), ("second", score(overall=None)))
    html = page(result(row, worst=(example,), published=(peer,), history=history))
    assert "upper bound 90.0 %" in html and "left:25.0%" in html
    assert "&lt;b&gt;" in html and "&lt;judge&gt;" in html and "<b>" not in html.replace('<b style="left', "")
    assert "rewritten prompts" in html and "<svg" in html and "first; second" in html
    assert "2.00" in html


def test_a_part_may_have_another_best_than_the_whole():
    html = page(result(score("mme", overall=1000.0, best=2000.0, categories={"count": 150.0}), best_category=200.0))
    assert "width:75.0%" in html and "width:50.0%" in html
