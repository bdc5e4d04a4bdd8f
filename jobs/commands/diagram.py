"""A preset's model as one diagram: `blip3o model draw 8b -o docs/images/model.svg`.

Every size is read from the config, and every count of parameters from the modules.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from xml.sax.saxutils import escape

from blip3o.config.model import ModelConfig

WIDTH, HEIGHT, BOX = 1200, 520, 84
ROWS = (40, 210, 390)  # upper edges
FILL = {"trained": "#ffe3b3", "frozen": "#d6e6f5", "data": "#f4f4f4"}
HEAD = f"""\
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif">
<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" orient="auto">
<path d="M0 0L8 4L0 8z" fill="#444"/></marker></defs>
<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>"""
FAMILIES = {"qwen2_5_vl": "Qwen2.5-VL", "qwen3": "Qwen3", "llama": "Llama"}
ENCODERS = {"eva_clip": "EVA-CLIP", "siglip2": "SigLIP2"}
DECODERS = {"pixel": "pixel U-Net", "sdxl": "SDXL-type U-Net", "sana": "SANA", "autoencoder": "autoencoder"}


@dataclass(frozen=True, kw_only=True)
class Box:
    """A part of the model or a value: position, title, and smaller lines below it."""

    x: int
    row: int
    width: int
    kind: str
    title: str
    lines: tuple[str, ...]

    @property
    def left(self) -> tuple[int, int]:
        """Where an arrow from the left ends."""
        return self.x, ROWS[self.row] + BOX // 2

    @property
    def right(self) -> tuple[int, int]:
        """Where an arrow to the right begins."""
        return self.x + self.width, ROWS[self.row] + BOX // 2

    @property
    def top(self) -> tuple[int, int]:
        """The middle of the upper edge."""
        return self.x + self.width // 2, ROWS[self.row]

    @property
    def bottom(self) -> tuple[int, int]:
        """The middle of the lower edge."""
        return self.x + self.width // 2, ROWS[self.row] + BOX

    def svg(self) -> str:
        """The box and its text."""
        x, y = self.top
        words = [_text(x, y + 26, self.title, size=15)]
        words += [_text(x, y + 48 + 19 * number, line) for number, line in enumerate(self.lines)]
        shape = f'<rect x="{self.x}" y="{y}" width="{self.width}" height="{BOX}" rx="8" fill="{FILL[self.kind]}"'
        return "\n".join([f'{shape} stroke="#444"/>', *words])


def render(config: ModelConfig, parameters: Mapping[str, int]) -> str:
    """The diagram as SVG. `parameters` counts those of the parts `encoder`, `backbone`, `dit` and `decoder`."""
    boxes = {
        **_values(config),
        **_parts(config, {name: f"{n / 1e9:.2f} B parameters" for name, n in parameters.items()}),
    }
    return "\n".join([HEAD, *(box.svg() for box in boxes.values()), *_arrows(boxes), *_notes(config), "</svg>\n"])


def _values(config: ModelConfig) -> dict[str, Box]:
    size, shape = config.encoder.image_size, f"{config.encoder.num_tokens} x {config.encoder.channels}"
    drawn = f"{config.decoder.image_size} x {config.decoder.image_size}"
    seen = f"{config.backbone.image_size} x {config.backbone.image_size} pixels"
    return {
        "image": Box(x=20, row=0, width=150, kind="data", title="image", lines=(f"{size} x {size} pixels",)),
        "target": Box(x=740, row=0, width=180, kind="data", title="target", lines=(shape, "in training")),
        "prompt": Box(x=20, row=1, width=150, kind="data", title="prompt", lines=("token ids",)),
        "drawn": Box(x=1010, row=0, width=170, kind="data", title="image", lines=(drawn + " pixels",)),
        "shown": Box(x=20, row=2, width=150, kind="data", title="image", lines=(seen, "to talk about")),
        "reply": Box(x=500, row=2, width=150, kind="data", title="reply", lines=("token by token",)),
        "noise": Box(x=740, row=2, width=180, kind="data", title="noise", lines=(shape, "one seed, one image")),
    }


def _parts(config: ModelConfig, size: Mapping[str, str]) -> dict[str, Box]:
    encoder, backbone, dit = config.encoder, config.backbone, config.dit
    pooled = f"{encoder.patches**2} patches → {encoder.num_tokens}"
    tokens = f"{backbone.image_tokens} tokens an image"
    states = f"{config.num_queries} x {backbone.hidden_size} states"
    sampling = f"{config.sampler.num_inference_steps} steps, guidance {config.sampler.guidance_scale:g}"
    autoencoder = "" if config.decoder.refines_coarse else "with its autoencoder"
    name = {"encoder": ENCODERS[encoder.kind], "decoder": DECODERS[config.decoder.kind]}
    return {
        "encoder": Box(x=230, row=0, width=210, kind="frozen", title=name["encoder"], lines=(size["encoder"], pooled)),
        "backbone": Box(
            x=230,
            row=1,
            width=210,
            kind="frozen",
            title=FAMILIES[backbone.family],
            lines=(size["backbone"], "prompt → key/value cache"),
        ),
        "tower": Box(x=230, row=2, width=210, kind="frozen", title="its vision tower", lines=(tokens,)),
        "queries": Box(
            x=500,
            row=1,
            width=180,
            kind="trained",
            title=f"{config.num_queries} queries",
            lines=("behind the prompt", states),
        ),
        "dit": Box(
            x=740, row=1, width=180, kind="trained", title=f"DiT, {dit.layers} blocks", lines=(size["dit"], sampling)
        ),
        "decoder": Box(
            x=1010, row=1, width=170, kind="frozen", title=name["decoder"], lines=(size["decoder"], autoencoder)
        ),
    }


def _arrows(box: Mapping[str, Box]) -> list[str]:
    across = (
        ("image", "encoder"),
        ("encoder", "target"),
        ("prompt", "backbone"),
        ("backbone", "queries"),
        ("queries", "dit"),
    )
    pairs = [(box[a].right, box[b].left) for a, b in (*across, ("dit", "decoder"), ("shown", "tower"))]
    pairs += [(box["tower"].top, box["backbone"].bottom), (box["noise"].top, box["dit"].bottom)]
    pairs += [(box["decoder"].top, box["drawn"].bottom)]
    reply_x, reply_y = box["reply"].left
    exit_x, exit_y = box["backbone"].right[0], box["backbone"].bottom[1] - 16
    paths = [_path([*pair]) for pair in pairs]
    paths.append(_path([(exit_x, exit_y), (exit_x + 30, exit_y), (exit_x + 30, reply_y), (reply_x, reply_y)]))
    return [*paths, _path([box["target"].bottom, box["dit"].top], dashed=True)]


def _notes(config: ModelConfig) -> list[str]:
    loss = {
        "clip_mse": "squared error",
        "clip_flow": "flow matching: v = ε − x",
        "vae_flow": "flow matching: v = ε − x",
    }
    legend = [("trained", "trained in stage generate"), ("frozen", "frozen there"), ("data", "values")]
    notes = [_text(835, 172, loss[config.objective], anchor="start")]
    for number, (kind, words) in enumerate(legend):
        x = 990
        y = ROWS[2] + 12 + 26 * number
        notes.append(f'<rect x="{x}" y="{y}" width="18" height="14" fill="{FILL[kind]}" stroke="#444"/>')
        notes.append(_text(x + 26, y + 12, words, anchor="start"))
    return notes


def _text(x: int, y: int, words: str, *, size: int = 13, anchor: str = "middle") -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}" fill="#222">{escape(words)}</text>'


def _path(points: list[tuple[int, int]], *, dashed: bool = False) -> str:
    line = "M" + "L".join(f"{x} {y}" for x, y in points)
    dash = ' stroke-dasharray="6 5"' if dashed else ""
    return f'<path d="{line}" fill="none" stroke="#444" stroke-width="1.5"{dash} marker-end="url(#tip)"/>'
