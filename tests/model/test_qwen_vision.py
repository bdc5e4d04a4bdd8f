"""Our Qwen2.5-VL tower against that of `transformers`: values, gradients, names, and how it is launched."""

import pytest
import torch
from torch.nn import functional as F

from blip3o.config.backbone import VisionConfig
from blip3o.model import vision as towers_code
from blip3o.model.encoder import normalize_pixels
from blip3o.model.vision import QwenVision, patchify, window_layout
from tests.model.families import transformers_tower
from tests.model.helpers import randomise

OUT = 24
SIZES = {"patch_size": 4, "merge": 2, "width": 32, "layers": 3, "heads": 2, "mlp_width": 48}
TOWERS = {
    "windows": VisionConfig(image_size=32, window=16, full_layers=(1,), **SIZES),
    "whole": VisionConfig(image_size=32, **SIZES),
    # 5 x 5 tokens in windows of 2 x 2: those at the edge are smaller.
    "edges": VisionConfig(image_size=40, window=16, full_layers=(2,), **SIZES),
}
# Relative. The same arithmetic; norms and the first projection are other kernels. Measured: 3e-7, gradients 1e-6.
EXACT, GRADIENTS = 1e-5, 1e-5


@pytest.fixture(params=TOWERS)
def towers(request):
    """Config, our tower, and that of `transformers` with the same weights."""
    vision = TOWERS[request.param]
    ours, theirs = QwenVision(vision, out_width=OUT), transformers_tower(vision, OUT)
    randomise(ours)
    theirs.load_state_dict(ours.state_dict())  # strict: every name and shape is the other's
    return vision, ours, theirs


def images_for(vision, count=3):
    shape = (count, vision.image_size, vision.image_size, 3)
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(4))
    return normalize_pixels(pixels)


def their_tokens(theirs, vision, images):
    side = vision.grid * vision.merge
    grid_thw = torch.tensor([[1, side, side]]).expand(len(images), 3)
    tokens = theirs(patchify(images, vision.patch_size, vision.merge), grid_thw=grid_thw).pooler_output
    return tokens.view(len(images), -1, OUT)


def relative(found, expected):
    found, expected = found.detach(), expected.detach()
    return float((found - expected).abs().max() / expected.abs().max())


def test_values_and_gradients_are_those_of_transformers(towers):
    vision, ours, theirs = towers
    images = images_for(vision)
    weight = torch.randn(len(images), vision.num_tokens, OUT, generator=torch.Generator().manual_seed(3))
    found, expected = ours(images), their_tokens(theirs, vision, images)
    assert relative(found, expected) <= EXACT
    for tokens in (found, expected):
        (tokens * weight).sum().backward()
    gradients = {name: parameter.grad for name, parameter in theirs.named_parameters()}
    assert gradients.keys() == dict(ours.named_parameters()).keys()
    for name, parameter in ours.named_parameters():
        assert relative(parameter.grad, gradients[name]) <= GRADIENTS, name


def test_bf16_differs_from_transformers_by_its_rounding(towers):
    """Relative; bf16 keeps 8 bits, and three blocks round a few times each."""
    vision, ours, theirs = towers
    images = images_for(vision)
    expected = ours(images)
    found = [tower.bfloat16() for tower in (ours, theirs)]
    errors = [
        relative(tokens, expected) for tokens in (found[0](images), their_tokens(found[1], vision, images.bfloat16()))
    ]
    assert errors[0] <= 2 * max(errors[1], 2**-8)


def test_the_windows_of_all_images_are_one_call_of_attention(towers, monkeypatch):
    vision, ours, _ = towers
    calls = []
    attention = F.scaled_dot_product_attention

    def counted(query, *others, **options):
        calls.append(tuple(query.shape))
        return attention(query, *others, **options)

    monkeypatch.setattr(F, "scaled_dot_product_attention", counted)
    ours(images_for(vision, count=3))
    groups = window_layout(vision, torch.device("cpu")).groups
    head = vision.width // vision.heads
    windowed = [(3 * count, vision.heads, size, head) for count, size in groups]
    whole = [(3, vision.heads, vision.num_tokens * vision.merge**2, head)]
    expected = [whole if number in vision.full_layers else windowed for number in range(vision.layers)]
    assert calls == [shape for shapes in expected for shape in shapes]
    assert len(groups) == (3 if vision.image_size == 40 else 1)


def test_an_image_does_not_depend_on_those_beside_it(towers):
    vision, ours, _ = towers
    images = images_for(vision)
    changed = images.clone()
    changed[1:] = 0
    with torch.no_grad():
        assert torch.equal(ours(images)[0], ours(changed)[0])


def test_layouts_made_while_sampling_serve_training():
    vision = TOWERS["windows"].model_copy(update={"image_size": 48})
    tower = QwenVision(vision, out_width=OUT)
    randomise(tower)
    with torch.inference_mode():
        tower(images_for(vision))
    tower(images_for(vision)).sum().backward()
    assert tower.blocks[0].attn.qkv.weight.grad is not None


def test_the_rotation_by_whole_rows_gives_the_bits_of_the_rotation_of_halves():
    angles = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))
    cos, sin = angles.cos()[:, None], angles.sin()[:, None]
    found = []
    for whole in (True, False):
        x = torch.randn(2, 16, 3, 8, generator=torch.Generator().manual_seed(2)).requires_grad_()
        first, second = x.chunk(2, dim=-1)
        halves = torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
        result = towers_code._rotate_halves(x, angles.cos(), angles.sin()) if whole else halves
        result.square().sum().backward()
        found.append((result, x.grad))
    assert torch.equal(found[0][0], found[1][0])
    assert torch.equal(found[0][1], found[1][1])
