"""Training objectives: one class in one file each. `blip3o.config.objectives` has a row for each of them.

The loop, the engine and validations call `StageModule`, which finds the class. To add an objective, write a class as in
`blip3o.train.objectives.regression`, and add a row that names it.
"""

from blip3o.train.objectives.base import Batch, Objective, to_device
from blip3o.train.objectives.draws import Draw, FlowDraws, drawn, flow_draws
from blip3o.train.objectives.joint import split_tasks
from blip3o.train.objectives.module import StageModule, build_stage_module

__all__ = [
    "Batch",
    "Draw",
    "FlowDraws",
    "Objective",
    "StageModule",
    "build_stage_module",
    "drawn",
    "flow_draws",
    "split_tasks",
    "to_device",
]
