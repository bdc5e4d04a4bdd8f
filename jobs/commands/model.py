"""`blip3o model …`: the parts of a preset's model, and what they cost. Nothing is downloaded or allocated."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs.commands import diagram
from jobs.common import new_app

if TYPE_CHECKING:
    from collections.abc import Iterable

    from blip3o.model.describe import ParameterCount
    from blip3o.model.flops.counted import Cost

app = new_app(help="Look at a model preset without allocating it.")


@app.command("describe")
def model_describe(
    preset: Annotated[str, typer.Argument(help="Name of a preset, e.g. 4b or 8b.")],
    prompt_tokens: Annotated[int, typer.Option(min=1, help="Tokens of the prompt, template included.")] = 136,
    depth: Annotated[int, typer.Option(min=0, max=3, help="Depth of the listed modules; 0 lists only the parts.")] = 3,
) -> None:
    """Print the parameters of every module, and floating-point operations per image."""
    from blip3o.config.load import preset_model
    from blip3o.model import describe
    from blip3o.model.flops import counted as costs

    model = describe.build_on_meta(preset_model(preset))
    print("\n".join(_weight_lines(preset, list(describe.parameter_counts(model)), depth)))
    work = {
        "generating one image": costs.generation(model, prompt_tokens),
        "training on one image (stage generate)": costs.training(model, prompt_tokens),
        "reading one image": costs.image_prefill(model),
    }
    for title, rows in work.items():
        print("\n".join(_cost_lines(title, rows)))
    full = costs.full_pass(model, prompt_tokens)
    print(
        f"\nwithout the frozen prefix, training runs {full.name}: {_flops(full.total)} in place of prompt and queries"
    )


@app.command("draw")
def model_draw(
    preset: Annotated[str, typer.Argument(help="Name of a preset, e.g. 4b or 8b.")],
    out: Annotated[Path, typer.Option("-o", "--out", help="SVG file to write.")] = Path("model.svg"),
) -> None:
    """Draw the model as a diagram, with its sizes."""
    out.write_text(svg(preset), encoding="utf-8")
    print(f"wrote {out}")


def svg(preset: str) -> str:
    """The diagram of a preset as SVG. Raises `ConfigError` for an unknown one."""
    from blip3o.config.load import preset_model
    from blip3o.model import describe

    config = preset_model(preset)
    weights = describe.parameter_counts(describe.build_on_meta(config))
    return diagram.render(config, {weight.name: weight.parameters for weight in weights if weight.depth == 0})


def _weight_lines(preset: str, weights: "list[ParameterCount]", depth: int) -> list[str]:
    total = sum(weight.parameters for weight in weights if weight.depth == 0)
    lines = [f"{preset}: {total:,} parameters", ""]
    for weight in weights:
        if weight.depth <= depth:
            each = f"  {weight.count} x {weight.parameters // weight.count:,}" if weight.count > 1 else ""
            lines.append(f"{'  ' * weight.depth + weight.name:<64}{weight.parameters:>16,}{each}")
    return lines


def _cost_lines(title: str, costs: "Iterable[Cost]") -> list[str]:
    rows = list(costs)
    total = sum(cost.total for cost in rows)
    lines = ["", f"{title}: {_flops(total)}" if rows else f"{title}: this backbone sees none", ""]
    for cost in rows:
        each = f"  {cost.calls} x {_flops(cost.flops)}" if cost.calls > 1 else ""
        lines.append(f"  {cost.name:<62}{_flops(cost.total):>16}{each}")
    return lines


def _flops(count: int) -> str:
    """Floating-point operations with a prefix: 12.3 TFLOP."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M")):
        if count >= factor:
            return f"{count / factor:.3g} {unit}FLOP"
    return f"{count} FLOP"
