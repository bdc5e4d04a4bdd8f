"""The task `blip3o_scenes` for lmms-eval: closed questions about held-out scenes, judged as `blip3o evaluate` does."""

import shutil
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from blip3o.data.sets.scenes import sample
from blip3o.evaluate.lmms import scenes_utils
from blip3o.evaluate.metrics.understanding import MIN_CHOICES

SCENES_TASK = "blip3o_scenes"
_TASK = """\
task: {name}
dataset_path: parquet
dataset_kwargs: {{data_files: {{test: {data}}}}}
test_split: test
output_type: generate_until
doc_to_visual: !function utils.pictures
doc_to_text: !function utils.question
doc_to_target: answer
generation_kwargs: {{max_new_tokens: 16, temperature: 0, do_sample: false}}
process_results: !function utils.judged
metric_list: [{{metric: accuracy, aggregation: mean, higher_is_better: true}}]
metadata: [{{version: 1.0}}]
"""


def write_scenes_task(folder: Path, *, scenes: int) -> int:
    """Writes the task `blip3o_scenes` over the first held-out scenes into a folder; returns its number of questions."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [
        {"image": drawn.image, "question": pair["question"], "answer": pair["answer"], "kind": pair["kind"]}
        for drawn in (sample(index, split="heldout") for index in range(scenes))
        for pair in drawn.record["qa"]
        if len(pair["choices"]) >= MIN_CHOICES
    ]
    data = (folder / "scenes.parquet").resolve()
    pq.write_table(pa.Table.from_pylist(rows), data)
    (folder / f"{SCENES_TASK}.yaml").write_text(_TASK.format(name=SCENES_TASK, data=data), encoding="utf-8")
    shutil.copy(scenes_utils.__file__, folder / "utils.py")
    return len(rows)
