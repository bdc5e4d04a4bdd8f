"""The layouts all-in-one and split side by side: `python -m benchmarks.serve_load.layouts`.

A client asks for one image after the other, each of one denoising step of a model so small that its arithmetic hardly
counts: so the ratio of the medians says what the way through the processes of the stages costs. Then the weights that
each stage loads, of the presets in the released sizes, in bf16; those are counted, not loaded.
"""

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks._measure import RESULTS, keep
from benchmarks.serve_load.bundles import write_untrained
from blip3o import log, settings
from blip3o.config.model import ModelConfig
from blip3o.config.presets.models import PRESETS
from blip3o.model.empty_weights import init_empty_weights
from blip3o.model.unified import UnifiedModel
from cluster.ports import free_ports
from jobs.serve import start
from serve.config.options import STAGES
from serve.split.loading import parts_of, parts_to_serve

SIZES = ("4b", "8b")
BYTES = 2  # of a parameter
WARM_UP = 10
PROMPT, SAMPLER = "a red circle", {"num_inference_steps": 1, "guidance_scale": 1}


def seconds_per_image(bundle: str, layout: str, count: int) -> list[float]:
    """How long each of `count` requests took, one after the other."""
    import openai

    handle = start(bundle, port=free_ports(1)[0], options={"layout": layout})
    seconds = []
    try:
        with openai.OpenAI(base_url=f"{handle.url}/v1", api_key="none") as client:
            for number in range(WARM_UP + count):
                began = time.perf_counter()
                client.images.generate(prompt=PROMPT, extra_body=SAMPLER | {"seed": number})
                seconds.append(time.perf_counter() - began)
    finally:
        handle.stop()
    return seconds[WARM_UP:]


def gigabytes(preset: str) -> dict[str, float]:
    """The weights of each stage, and of a replica that does everything."""
    config = ModelConfig.model_validate(PRESETS[preset])
    parts = {stage: parts_of(stage, config) for stage in STAGES} | {"all-in-one": parts_to_serve(config)}
    found = {}
    for name, needed in parts.items():
        with init_empty_weights():
            model = UnifiedModel(config, image_token_id=0, parts=needed, max_length=1)
        found[name] = round(sum(parameter.numel() for parameter in model.parameters()) * BYTES / 1e9, 1)
    return found


def main(argv: list[str] | None = None) -> int:
    """Prints both tables, and the result as a line of JSON, which it keeps in a file."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--count", type=int, default=100, help="requests to each layout")
    parser.add_argument(
        "--sizes", nargs="*", choices=sorted(PRESETS), default=SIZES, help="presets to count weights of"
    )
    parser.add_argument("--results", type=Path, default=RESULTS)
    chosen = parser.parse_args(argv)
    log.configure()
    settings.configure_ray()
    medians: dict[str, float] = {}
    with tempfile.TemporaryDirectory() as folder:
        bundle = write_untrained(f"{folder}/bundle", "nano")
        for layout in ("all-in-one", "split"):
            medians[layout] = round(1000 * statistics.median(seconds_per_image(bundle, layout, chosen.count)), 1)
            print(f"{layout:10}  {medians[layout]:6.1f} ms", flush=True)
    weights: dict[str, Any] = {}
    for size in chosen.sizes:
        weights[size] = gigabytes(size)
        print(f"{size}: " + ", ".join(f"{name} {found} GB" for name, found in weights[size].items()), flush=True)
    ours, other = medians["split"], medians["all-in-one"]
    result = {"ratio": round(other / ours, 2), "ours": ours, "other": other, "unit": "ms", "n": chosen.count}
    keep("serve_layouts", {**result, "weights_gb": weights}, chosen.results)
    return 0


if __name__ == "__main__":
    sys.exit(main())
