"""Published figures of other models, verbatim, each with what sets it apart. Data.

They are shown next to a score for orientation. Figures of different judges, prompt lists or protocols cannot be
compared: independent repetitions of one model differ by up to 16 GenEval points from its paper. None of these was
measured by this project.
"""

from collections.abc import Mapping
from dataclasses import dataclass

REWRITTEN = "rewritten prompts"
QUOTED = "quoted by another paper or README"
RECALLED = "recalled, unconfirmed"
OTHER_JUDGE = "judge Qwen2.5-VL-72B instead of the official one"
RETEST = "independent repetition"
PROPRIETARY = "trained on 30M proprietary images; not the released weights"
WITH_THINKING = "with thinking before drawing"
MATCHING_FID = "FID by torchmetrics at 256, centre crop"

# The protocol that a suite's figures follow unless a flag says otherwise.
PROTOCOLS = {
    "geneval": "official prompts, Mask2Former + CLIP",
    "dpg": "official scorer with its faults, mPLUG",
    "wise": "legacy WiScore, GPT-4o",
    "wise-verified": "verified list, Qwen3.5-35B-A3B",
    "mjhq": "FID, three protocols in use",
    "imgedit": "GPT-4o, 1 to 5",
    "gedit": "English, GPT-4.1, 0 to 10",
    "vqa": "VQAv2 val, lmms-eval",
    "mmbench": "English",
    "seed": "image items",
    "mm-vet": "GPT judge",
    "mme": "perception, lmms-eval",
    "mme-cognition": "lmms-eval",
    "mmmu": "val",
    "realworldqa": "lmms-eval",
    "textvqa": "val, lmms-eval",
}


@dataclass(frozen=True, kw_only=True)
class PublishedScore:
    """One published figure: `value` of `model` on `suite`, its `source`, and the `flags` that set it apart."""

    model: str
    suite: str
    value: float
    source: str
    flags: tuple[str, ...] = ()


# A value, or a value and its flags.
_Cell = float | tuple[float | str, ...]


def _peers(model: str, source: str, cells: Mapping[str, _Cell]) -> list[PublishedScore]:
    found = []
    for suite, cell in cells.items():
        value, *flags = cell if isinstance(cell, tuple) else (cell,)
        found.append(
            PublishedScore(model=model, suite=suite, value=float(value), source=source, flags=tuple(map(str, flags)))
        )
    return found


_GENERATION = (
    _peers("BLIP3-o 4B (open)", "model card", {"geneval": 0.81, "dpg": 79.36, "wise": 0.50}),
    _peers("BLIP3-o 4B (open)", "its authors, again", {"dpg": (79.47, RETEST)}),
    _peers("BLIP3-o 8B (open)", "model card", {"geneval": 0.83, "dpg": 80.73, "wise": 0.52}),
    _peers(
        "BLIP3-o 8B (paper)",
        "model card",
        {"geneval": (0.84, PROPRIETARY), "dpg": (81.60, PROPRIETARY), "wise": (0.62, PROPRIETARY)},
    ),
    _peers("BLIP3o-NEXT-SFT-3B", "a user, #84", {"geneval": (0.814, RETEST), "dpg": (82.36, RETEST)}),
    _peers("BLIP3o-NEXT-GRPO-Geneval-3B", "a user, #84", {"geneval": (0.907, RETEST), "dpg": (81.92, RETEST)}),
    _peers(
        "Janus-Pro-7B",
        "MetaQuery and BAGEL READMEs",
        {"geneval": 0.80, "dpg": 84.19, "wise": 0.35, "mjhq": (13.48, MATCHING_FID)},
    ),
    _peers(
        "MetaQuery-XL",
        "its README",
        {"geneval": (0.80, REWRITTEN), "dpg": 82.05, "wise": (0.55, QUOTED), "mjhq": (6.02, MATCHING_FID)},
    ),
    _peers("BAGEL 7B+7B", "its README; DPG by Ovis-U1", {"geneval": 0.82, "dpg": 85.07, "wise": 0.52, "gedit": 6.52}),
    _peers("BAGEL 7B+7B", "its README", {"geneval": (0.88, REWRITTEN), "wise": (0.70, WITH_THINKING), "imgedit": 3.20}),
    _peers("Show-o2-7B", "other papers", {"geneval": (0.76, QUOTED), "dpg": (86.14, QUOTED), "wise": (0.39, QUOTED)}),
    _peers(
        "OmniGen2",
        "Ovis-U1 README",
        {"geneval": (0.80, QUOTED), "dpg": (83.57, QUOTED), "imgedit": 3.44, "gedit": 6.42},
    ),
    _peers("OmniGen2", "Ovis-U1 README", {"geneval": (0.86, REWRITTEN, QUOTED)}),
    _peers(
        "UniWorld-V1",
        "Ovis-U1 README",
        {"geneval": 0.80, "dpg": 81.38, "wise": (0.55, RECALLED), "imgedit": 3.26, "gedit": 4.85},
    ),
    _peers("Ovis-U1 3B", "its README", {"geneval": 0.89, "dpg": 83.72, "imgedit": 4.00, "gedit": 6.42}),
    _peers(
        "UniPic2",
        "another paper",
        {
            "geneval": (0.90, REWRITTEN, QUOTED),
            "dpg": (83.79, QUOTED),
            "imgedit": (4.06, QUOTED),
            "gedit": (7.10, QUOTED),
        },
    ),
    _peers("LightFusion", "its paper", {"geneval": (0.91, REWRITTEN), "dpg": 82.16, "imgedit": 3.77, "gedit": 6.06}),
    _peers("OpenUni-B", "another paper", {"geneval": (0.84, QUOTED), "wise": (0.43, QUOTED)}),
    _peers("OpenUni-L", "another paper", {"geneval": (0.85, QUOTED), "wise": (0.52, QUOTED)}),
    _peers("UniLIP-3B", "its README", {"geneval": 0.90, "dpg": 84.63, "wise": 0.63, "imgedit": 3.94}),
    _peers("DeepGen 1.0 5B", "TorchUMM; its paper", {"geneval": 0.866, "dpg": 87.44, "wise": (0.72, QUOTED)}),
    _peers("InternVL-U 4B", "another paper", {"geneval": (0.85, QUOTED)}),
    _peers("LLaDA2.0-Uni 16B MoE", "another paper", {"geneval": (0.89, QUOTED), "dpg": (87.76, QUOTED)}),
    _peers("LLaDA2.0-Uni 16B MoE", "another paper", {"wise": (0.68, QUOTED)}),
    _peers("MammothModa2 8B+5B", "its README", {"geneval": 0.87, "dpg": 87.2}),
    _peers("Emu3.5 34B", "TorchUMM", {"geneval": (0.818, RETEST), "dpg": (72.5, RETEST)}),
    _peers(
        "GPT-4o",
        "Ovis-U1 and MammothModa READMEs",
        {"geneval": (0.84, QUOTED), "dpg": (86.23, QUOTED), "wise": (0.80, RECALLED), "imgedit": 4.20, "gedit": 7.53},
    ),
    _peers("GPT-4o", "BLIP3-o's paper", {"mjhq": (30.0, QUOTED)}),
    _peers("MetaQuery-B", "MetaQuery README", {"mjhq": (6.28, MATCHING_FID)}),
    _peers("SANA-1.6B", "its authors", {"mjhq": (5.76, "protocol of its own")}),
    _peers(
        "BAGEL 7B+7B", "TorchUMM", {"geneval": (0.788, RETEST), "dpg": (84.1, RETEST), "wise": (0.399, OTHER_JUDGE)}
    ),
    _peers(
        "Janus-Pro-7B", "TorchUMM", {"geneval": (0.789, RETEST), "dpg": (83.7, RETEST), "wise": (0.381, OTHER_JUDGE)}
    ),
    _peers("OmniGen2", "TorchUMM", {"geneval": (0.785, RETEST), "dpg": (84.5, RETEST), "wise": (0.403, OTHER_JUDGE)}),
    _peers("Show-o2-7B", "TorchUMM", {"geneval": (0.599, RETEST), "dpg": (82.8, RETEST), "wise": (0.360, OTHER_JUDGE)}),
    _peers("BLIP3o-NEXT-SFT-3B", "TorchUMM", {"dpg": (61.5, RETEST, "cut at the wrong tile size")}),
    _peers("NanoBanana-Pro", "WISE repository", {"wise-verified": 0.876}),
    _peers("GPT-Image-1.5", "WISE repository", {"wise-verified": 0.825}),
    _peers("BAGEL 7B+7B", "WISE repository", {"wise-verified": (0.628, WITH_THINKING)}),
    _peers("DeepGen 1.0 5B", "WISE repository", {"wise-verified": 0.570}),
    _peers("BAGEL 7B+7B", "WISE repository", {"wise-verified": 0.352}),
    _peers("Janus-Pro-7B", "WISE repository", {"wise-verified": 0.334}),
)
_UNDERSTANDING_COLUMNS = (
    "vqa",
    "mmbench",
    "seed",
    "mm-vet",
    "mme",
    "mme-cognition",
    "mmmu",
    "realworldqa",
    "textvqa",
)
# In the order of the columns; None: not given; a string: recalled. Source: each model's own table unless flagged.
_UNDERSTANDING: dict[str, tuple[float | str | None, ...]] = {
    "BLIP3-o 4B (open)": ("75.9", 78.6, "73.8", 60.1, "1527.7", "632.9", 46.6, "60.4", "78.0"),
    "BLIP3-o 8B (open)": (83.1, 83.5, 77.5, 66.6, 1682.6, 647.1, 50.6, 69.0, 83.1),
    "Janus-Pro-7B": (None, 79.2, 72.1, 50.0, 1567.1, None, 41.0, None, None),
    "MetaQuery-XL": (None, 83.5, 76.9, 66.6, 1685.2, None, 58.6, None, None),
    "BAGEL 7B+7B": (None, 85.0, None, 67.2, None, None, 55.3, None, None),
    "Show-o2-7B": (None, 79.3, None, None, None, None, 48.9, None, None),
    "OmniGen2": (None, 79.1, None, 61.8, None, None, 53.1, None, None),
    "UniWorld-V1": (None, 83.5, None, 67.1, None, None, 58.6, None, None),
    "Ovis-U1 3B": (None, 77.8, None, 66.7, None, None, 51.1, None, None),
    "EMU3 8B": (75.1, 58.5, 68.2, 37.2, 1243.8, 266.1, 31.6, 57.4, 64.7),
    "TokenFlow-XL 14B": (77.6, 76.8, 72.6, 48.2, 1551.1, 371.1, 43.2, 56.6, 77.6),
    "GPT-4o": (None, 86.0, None, 76.9, None, None, 72.9, None, None),
}


def _answers(model: str, row: tuple[float | str | None, ...]) -> list[PublishedScore]:
    cells: dict[str, _Cell] = {}
    for suite, value in zip(_UNDERSTANDING_COLUMNS, row, strict=True):
        if value is not None:
            cells[suite] = (float(value), RECALLED) if isinstance(value, str) else value
    return _peers(model, "its authors' table", cells)


PEERS: tuple[PublishedScore, ...] = tuple(
    peer for peers in (*_GENERATION, *(_answers(model, row) for model, row in _UNDERSTANDING.items())) for peer in peers
)


def scores_of(suite: str) -> tuple[PublishedScore, ...]:
    """The published figures on a suite, in their order; none where it is this project's own."""
    return tuple(peer for peer in PEERS if peer.suite == suite)
