"""The suites by name."""

from blip3o.errors import ConfigError
from blip3o.evaluate.suites.dpg import Dpg
from blip3o.evaluate.suites.geneval.suite import GenEval
from blip3o.evaluate.suites.mjhq import Mjhq
from blip3o.evaluate.suites.ocr import Ocr
from blip3o.evaluate.suites.questions.choice import Choice
from blip3o.evaluate.suites.questions.mme import Mme
from blip3o.evaluate.suites.questions.vqa import VQA_LMMS, VQAV2, Vqa
from blip3o.evaluate.suites.scenes import Scenes
from blip3o.evaluate.suites.suite import Suite
from blip3o.evaluate.suites.wise.suite import WISE, WISE_VERIFIED


def suites() -> dict[str, Suite]:
    """Every suite under the name by which it is asked for."""
    drawn: tuple[Suite, ...] = (GenEval(), Dpg(), WISE, WISE_VERIFIED, Scenes(), Mjhq(), Ocr())
    asked: tuple[Suite, ...] = (Vqa(), VQAV2, VQA_LMMS, Mme(), Choice())
    return {suite.name: suite for suite in (*drawn, *asked)}


def suite(name: str) -> Suite:
    """The suite of that name. Raises `ConfigError` for an unknown one."""
    known = suites()
    if name not in known:
        raise ConfigError(f"unknown suite '{name}': choose from {', '.join(known)}")
    return known[name]
