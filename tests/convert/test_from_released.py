"""Released folders, read and written: every number arrives, every name is accounted for, and nothing is held twice."""

import hashlib
import json
import shutil
import tracemalloc

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file

import blip3o
from blip3o.bundle.reading import open_bundle
from blip3o.bundle.writing import write_bundle
from blip3o.config.load import preset_model
from blip3o.convert.from_released import import_released, plan_import, read_folder
from blip3o.convert.keys import to_here, to_released
from blip3o.convert.sizes import config_json
from blip3o.convert.to_released import export_released
from blip3o.data.text.templates import Turn
from blip3o.errors import BundleError, RequestError
from blip3o.model.backbone import Prompt
from blip3o.weights import safetensors_stream as tensorfile
from blip3o.weights.safetensors_stream import Slot, read_entries, read_in_order, write_tensors
from blip3o.weights.unpickle import unpickle_tensors
from jobs import cli
from tests.bundles import write_nano_bundle
from tests.convert import released_folder as toy

SHARDS = ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors")
VISION_SIZE = 56
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 256, (80, 60, 3), np.uint8))


def convert(source, out, **options):
    return import_released(str(source), str(out), vision_size=VISION_SIZE, **options)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """A released folder of a plain name, its tensors, the bundle made of it, and the report."""
    root = tmp_path_factory.mktemp("released")
    tensors = toy.write_folder(root / "a plain folder")
    report = convert(root / "a plain folder", root / "bundle")
    return root / "a plain folder", tensors, root / "bundle", report


@pytest.fixture(scope="module")
def pipeline(world):
    return blip3o.load(str(world[2]))


def test_names_of_the_published_checkpoints_have_one_place_each_and_back():
    published = {
        "lm_head.weight": "backbone.hf.lm_head.weight",
        "visual.patch_embed.proj.weight": "backbone.hf.model.visual.patch_embed.proj.weight",
        "visual.blocks.31.attn.qkv.bias": "backbone.hf.model.visual.blocks.31.attn.qkv.bias",
        "visual.merger.mlp.2.weight": "backbone.hf.model.visual.merger.mlp.2.weight",
        "model.embed_tokens.weight": "backbone.hf.model.language_model.embed_tokens.weight",
        "model.layers.27.self_attn.q_proj.bias": "backbone.hf.model.language_model.layers.27.self_attn.q_proj.bias",
        "model.norm.weight": "backbone.hf.model.language_model.norm.weight",
        "model.latent_queries": "queries",
        "model.dit.model.layers.3.attn2.to_out.0.weight": "dit.layers.3.attn2.to_out.0.weight",
        "model.gen_vision_tower.vision_tower.model.blocks.63.mlp.fc1.bias": "encoder.blocks.63.mlp.fc1.bias",
        "diffusion-decoder/unet/conv_in.weight": "decoder.unet.conv_in.weight",
    }
    for theirs, ours in published.items():
        assert (to_here(theirs), to_released(ours)) == (ours, theirs)
    assert to_here("model.visual.merger.ln_q.weight") == to_here("visual.merger.ln_q.weight")
    assert to_here("model.language_model.norm.weight") == to_here("model.norm.weight")
    older = [f"diffusion-decoder/vae/decoder.mid_block.attentions.0.{name}.bias" for name in ("query", "proj_attn")]
    assert [to_here(name) for name in older] == [
        "decoder.vae.decoder.mid_block.attentions.0.to_q.bias",
        "decoder.vae.decoder.mid_block.attentions.0.to_out.0.bias",
    ]
    assert to_here("model.vae.encoder.conv_in.weight") is None
    assert to_released("coarse.draw.weight") is None


def test_every_number_arrives(world, pipeline):
    _, tensors, _, report = world
    parameters = dict(pipeline.model.named_parameters())
    assert set(parameters) == set(report.mapped.values())
    for released, here in report.mapped.items():
        if released in tensors:
            assert torch.equal(parameters[here], tensors[released].float().view(parameters[here].shape))


def test_every_name_is_accounted_for(world):
    source, tensors, bundle, report = world
    decoder = {
        f"diffusion-decoder/{part}/{name}"
        for part in ("unet", "vae")
        for name in load_file(source / f"diffusion-decoder/{part}/diffusion_pytorch_model.bf16.safetensors")
    }
    assert report.mapped.keys() | report.ignored.keys() == tensors.keys() | decoder
    assert set(report.ignored) == {"model.vae.encoder.conv_in.weight", "model.dit.model.pad_token"}
    assert not report.unknown and not report.missing
    kept = open_bundle(str(bundle)).provenance["released"]
    assert (kept["keys"]["mapped"], kept["left_out"]) == (report.mapped, ["training_args.bin"])


def test_the_backbone_is_the_published_one(world, pipeline):
    model, backbone = toy.hf_model(), pipeline.model.backbone
    ids = torch.tensor([pipeline.chat_ids([Turn(role="user", text="a red circle?")], with_image=True)])
    pixels = torch.from_numpy(np.asarray(PICTURE.resize((VISION_SIZE, VISION_SIZE))).copy())[None]
    prompt = Prompt(input_ids=ids, attention_mask=torch.ones_like(ids), pixels=pixels)
    from transformers import Qwen2VLImageProcessor

    processed = Qwen2VLImageProcessor(min_pixels=1, max_pixels=10**6)(images=[pixels[0].numpy()], return_tensors="pt")
    expected = model(
        input_ids=ids,
        pixel_values=processed.pixel_values,
        image_grid_thw=processed.image_grid_thw,
        mm_token_type_ids=(ids == backbone.image_token_id).int(),
    ).logits
    assert torch.allclose(backbone.logits(backbone.hidden(prompt)), expected, atol=1e-4)
    assert backbone.config.positions == "upstream"


def test_a_shown_image_is_stretched_whole_to_the_square(pipeline):
    prompt = pipeline.chat_prompt([Turn(role="user", text="a circle?")], [PICTURE])
    expected = np.asarray(PICTURE.resize((VISION_SIZE, VISION_SIZE), Image.Resampling.BICUBIC)).astype(int)
    # Pillow may scale the columns first, ours never does: bytes between the passes are rounded elsewhere.
    assert np.abs(prompt.pixels[0].numpy() - expected).mean() < 1


def test_it_draws_chats_and_encodes(pipeline):
    images = pipeline.generate(["a red circle", "user"], seed=[1, 2], num_inference_steps=2)
    assert [image.size for image in images] == [(16, 16)] * 2
    assert np.asarray(images[0]).std() > 0
    assert pipeline.chat("a circle?", image=PICTURE, max_tokens=4)
    assert pipeline.encode([PICTURE]).shape == (1, 4, toy.TOWER)
    assert pipeline.model.queries.shape == (toy.QUERIES, toy.HIDDEN)


def test_it_computes_in_the_precision_of_its_weights_if_asked(world, pipeline):
    half = blip3o.load(str(world[2]), precision="bf16")
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.bfloat16}
    prompts, seeds = ["a red circle", "user"], [1, 2]
    ours, exact = (
        each.generate_features(prompts, seeds=seeds, num_inference_steps=4).float() for each in (half, pipeline)
    )
    # bf16 keeps 8 bits; guidance and four steps through random weights leave a few per cent (measured 0.012).
    assert (ours - exact).norm() < 0.05 * exact.norm()
    assert half.generate(prompts, seed=seeds, num_inference_steps=1)[0].size == (16, 16)
    assert isinstance(half.chat("a circle?", image=PICTURE, max_tokens=4), str)
    assert torch.allclose(half.encode([PICTURE]).float(), pipeline.encode([PICTURE]), atol=0.2)


def test_it_goes_back_to_the_bytes_it_came_from(world, tmp_path):
    source, tensors, bundle, report = world
    written = export_released(str(bundle), str(tmp_path))
    assert written.mapped == report.mapped
    ignored = set(report.ignored)
    back = {}
    for shard in SHARDS:
        with safe_open(tmp_path / shard, "pt") as file:
            back |= {name: file.get_tensor(name) for name in file.keys()}
    assert back.keys() == tensors.keys() - ignored
    for name, tensor in back.items():
        assert (tensor.dtype, tensor.shape) == (tensors[name].dtype, tensors[name].shape)
        assert tensor.view(torch.uint8).equal(tensors[name].contiguous().view(torch.uint8))
    # Whole files are as they were, but for those from which something was left out.
    changed = {SHARDS[1], "model.safetensors.index.json"}
    before = {path.relative_to(source) for path in source.rglob("*") if path.is_file()}
    after = {path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()}
    assert {str(path) for path in before - after} == {"training_args.bin"}
    assert after <= before
    for path in after:
        same = (source / path).read_bytes() == (tmp_path / path).read_bytes()
        assert same is (str(path) not in changed), path
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    assert index["weight_map"].keys() == back.keys()
    assert index["metadata"]["total_size"] == sum(tensor.nbytes for tensor in back.values())


def test_what_was_written_back_makes_the_same_bundle(world, tmp_path):
    export_released(str(world[2]), str(tmp_path / "folder"))
    convert(tmp_path / "folder", tmp_path / "bundle")
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        assert (tmp_path / "bundle" / name).read_bytes() == (world[2] / name).read_bytes()


def test_a_model_of_our_own_is_written_in_shards_that_read_back(world, tmp_path):
    sealed = open_bundle(str(world[2]))
    tensors = load_file(world[2] / "model.safetensors")
    write_bundle(
        str(tmp_path / "own"), config=sealed.config, tensors=tensors, tokenizer=sealed.tokenizer, provenance={}
    )
    export_released(str(tmp_path / "own"), str(tmp_path / "folder"), shard_bytes=200_000)
    shards = sorted(path.name for path in (tmp_path / "folder").glob("model-*.safetensors"))
    assert len(shards) > 3
    assert shards[-1] == f"model-{len(shards):05d}-of-{len(shards):05d}.safetensors"
    assert all((tmp_path / "folder" / name).stat().st_size < 230_000 for name in shards)
    convert(tmp_path / "folder", tmp_path / "back")
    assert open_bundle(str(tmp_path / "back")).config == sealed.config
    back = load_file(tmp_path / "back" / "model.safetensors")
    assert back.keys() == tensors.keys()
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())


def test_a_model_that_upstream_has_no_place_for_is_not_exported(tmp_path):
    write_nano_bundle(str(tmp_path / "nano"))
    with pytest.raises(BundleError, match="the released layout has no place for mapped or normalised features"):
        export_released(str(tmp_path / "nano"), str(tmp_path / "folder"))


@pytest.mark.parametrize(
    ("part", "changes"), [("sampler", {"shift": 3.0}), ("dit", {"norm_eps": 1e-6}), ("dit", {"patch_size": 2})]
)
def test_what_upstream_would_read_as_something_else_is_not_exported(part, changes):
    model = preset_model("8b")
    assert config_json(model, max_length=64)["n_query"] == 64
    other = model.model_copy(update={part: getattr(model, part).model_copy(update=changes)})
    with pytest.raises(BundleError, match="no place for sampler.shift"):
        config_json(other, max_length=64)


def test_the_command_accounts_for_every_tensor_and_refuses_in_one_line(world, tmp_path, capsys):
    def command(*argv):
        return cli.main(["convert", *argv])

    folder, bundle, report = (str(tmp_path / name) for name in ("folder", "bundle", "report.json"))
    assert command("to-released", str(world[2]), "--out", folder) == 0
    assert f"wrote {folder}: {len(world[3].mapped)} tensors mapped, 0 ignored, 0 unknown" in capsys.readouterr().out
    assert command("from-released", folder, "--out", bundle, "--vision-size", "56", "--report", report) == 0
    assert json.loads((tmp_path / "report.json").read_text())["mapped"] == world[3].mapped
    assert command("from-released", str(tmp_path / "none"), "--out", bundle) == 1
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/none holds no safetensors weights: give")


def test_newer_names_of_transformers_are_read(world, tmp_path):
    toy.write_folder(tmp_path / "newer", newer=True)
    convert(tmp_path / "newer", tmp_path / "bundle")
    ours, theirs = (load_file(folder / "model.safetensors") for folder in (tmp_path / "bundle", world[2]))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    export_released(str(tmp_path / "bundle"), str(tmp_path / "back"))
    assert (tmp_path / "back" / SHARDS[0]).read_bytes() == (tmp_path / "newer" / SHARDS[0]).read_bytes()


def with_head(folder, head):
    """The first shard of a tied folder with a head of its own."""
    shard = folder / SHARDS[0]
    tensors = load_file(shard)
    save_file(tensors | {"lm_head.weight": head(tensors["model.embed_tokens.weight"])}, shard)


@pytest.mark.parametrize(
    ("head", "tied"), [(None, True), (torch.Tensor.clone, True), (lambda embedding: embedding * 2, False)]
)
def test_a_head_that_is_tied_is_taken_once_and_one_that_is_not_is_kept(tmp_path, head, tied):
    toy.write_folder(tmp_path / "tied", tied=True, decoder=False, tower=False)
    if head is not None:
        with_head(tmp_path / "tied", head)
    report = convert(tmp_path / "tied", tmp_path / "bundle")
    loaded = blip3o.load(str(tmp_path / "bundle")).model.backbone
    assert loaded.config.tied is tied
    assert (loaded.hf.lm_head.weight is loaded.text.embed_tokens.weight) is tied
    assert ("lm_head.weight" in report.ignored) is (head is torch.Tensor.clone)


def test_a_tower_kept_apart_is_read_from_its_own_file(world, tmp_path):
    toy.write_folder(tmp_path / "folder", tower=False)
    torch.save({f"visual.{name}": tensor for name, tensor in toy.tower_tensors().items()}, tmp_path / "eva.bin")
    assert unpickle_tensors(tmp_path / "eva.bin", str(tmp_path / "eva.safetensors")) == len(toy.tower_tensors())
    report = convert(tmp_path / "folder", tmp_path / "bundle", tower=str(tmp_path / "eva.safetensors"))
    assert report.mapped == world[3].mapped
    assert torch.equal(
        blip3o.load(str(tmp_path / "bundle")).encode([PICTURE]), blip3o.load(str(world[2])).encode([PICTURE])
    )
    export_released(str(tmp_path / "bundle"), str(tmp_path / "back"))
    assert (tmp_path / "back" / SHARDS[0]).read_bytes() == (tmp_path / "folder" / SHARDS[0]).read_bytes()
    apart = load_file(tmp_path / "back" / "model-rest.safetensors")
    assert apart.keys() == {name for name in report.mapped if "gen_vision_tower" in name}


def test_a_pickle_of_anything_but_tensors_is_not_opened(tmp_path):
    out = str(tmp_path / "out.safetensors")
    torch.save({"step": 3}, tmp_path / "state.bin")
    torch.save({"a": torch.nn.Linear(1, 1)}, tmp_path / "module.bin")
    (tmp_path / "text.bin").write_text("not a pickle")
    for name, message in {
        "state.bin": "step is no tensor",
        "module.bin": "is not a pickle of tensors",
        "text.bin": "is not a pickle of tensors",
        "none.bin": "is not a pickle of tensors .*No such file",
    }.items():
        with pytest.raises(BundleError, match=message) as caught:
            unpickle_tensors(tmp_path / name, out)
        assert "\n" not in str(caught.value)
    strided = torch.arange(12.0).view(3, 4).T
    torch.save(
        {"a": strided, "b": torch.tensor(7), "c": torch.empty(0, 2, dtype=torch.bfloat16)}, tmp_path / "good.bin"
    )
    assert unpickle_tensors(tmp_path / "good.bin", out) == 3
    read = load_file(out)
    assert torch.equal(read["a"], strided) and read["b"] == 7 and read["c"].shape == (0, 2)


def test_without_tower_and_decoder_it_draws_features_and_says_what_it_cannot(world, pipeline, tmp_path):
    toy.write_folder(tmp_path / "folder", tower=False, decoder=False)
    convert(tmp_path / "folder", tmp_path / "bundle")
    bare = blip3o.load(str(tmp_path / "bundle"))
    assert bare.model.config.encoder.image_size == 448  # what is known of the tower that is not here
    assert bare.generate_features(["user"], seeds=[1], num_inference_steps=1).shape == (1, 64, toy.TOWER)
    with pytest.raises(RequestError, match="no decoder and generates features, but no images: convert the checkpoint"):
        bare.generate(["user"], seed=[1])
    with pytest.raises(RequestError, match="no encoder and generates and chats"):
        bare.encode([PICTURE])


@pytest.fixture
def bare(tmp_path):
    """A folder of its own, without decoder, to be damaged."""
    toy.write_folder(tmp_path / "folder", decoder=False)
    return tmp_path / "folder"


def change(shard, **changes):
    tensors = load_file(shard)
    save_file({name: t for name, t in (tensors | changes).items() if t is not None}, shard)


def test_what_is_wrong_with_a_folder_is_said_in_one_line(bare):
    def refused(message):
        with pytest.raises(BundleError, match=message) as caught:
            plan_import(read_folder(str(bare)), vision_size=VISION_SIZE)
        assert "\n" not in str(caught.value)

    intact = {path: path.read_bytes() for path in bare.iterdir()}

    def restore():
        for path, data in intact.items():
            path.write_bytes(data)

    (bare / SHARDS[1]).unlink()
    refused(r"model-00002-of-00002.safetensors has no model.dit.model.\S+ \(\d+ tensors that the index names")
    restore()
    (bare / SHARDS[0]).write_bytes(intact[bare / SHARDS[0]][:-1])
    refused("has .* bytes, its header describes")
    restore()
    change(bare / SHARDS[0], **{"model.latent_queries": torch.zeros(1, 8, 32)})
    refused(r"model.latent_queries has shape \(8, 32\), config.json makes it \(8, 64\)")
    restore()
    (bare / "model.safetensors.index.json").unlink()
    change(bare / SHARDS[0], **{"model.norm.weight": None})
    refused("1 tensors of the model are missing, e.g. backbone.hf.model.language_model.norm.weight: fetch all")
    restore()
    shutil.copy(bare / SHARDS[1], bare / "copy.safetensors")
    refused("two files hold model.dit.model.caption_projection.linear_1.bias")
    (bare / "copy.safetensors").unlink()
    (bare / "merges.txt").unlink()
    refused("neither tokenizer.json nor vocab.json with merges.txt")
    restore()
    (bare / "config.json").write_text("{")
    refused("config.json is missing or no JSON object")
    (bare / "config.json").write_text(json.dumps({**json.loads(intact[bare / "config.json"]), "gen_pooling": "all"}))
    refused("gen_pooling 'all' is none that this reads")


def test_an_unknown_tensor_is_reported_and_left_out(bare, tmp_path):
    change(bare / SHARDS[1], **{"model.new_part.weight": torch.zeros(2)})
    report = convert(bare, tmp_path / "bundle")
    assert report.unknown == ("model.new_part.weight",)
    assert "1 unknown" in report.summary


def test_a_tokenizer_of_parts_is_the_one_that_transformers_makes_of_them(pipeline):
    from transformers import Qwen2Tokenizer

    files = toy.slow_tokenizer_files()
    merges = [tuple(line.split()) for line in files["merges.txt"].decode().splitlines()[1:]]
    expected = Qwen2Tokenizer(vocab=json.loads(files["vocab.json"]), merges=merges)
    for text in ("a red circle, 1234!\n\n  I'm here", "Ünï cödé — 漢字 🦊", " \t tabs", "e\u0301"):
        assert pipeline.tokenizer.encode(text) == expected.encode(text, add_special_tokens=False)
    assert pipeline.tokenizer.ids["[IMG]"] == toy.vocabulary()["[IMG]"]


def test_copying_holds_a_few_pieces_of_a_large_tensor(tmp_path, monkeypatch):
    monkeypatch.setattr(tensorfile, "CHUNK_BYTES", 2**20)
    tensors = {"a": torch.randn(4 * 2**20), "b": torch.zeros(0, 3), "c": torch.arange(5)}
    save_file(tensors, tmp_path / "in.safetensors")
    entries = read_entries(str(tmp_path / "in.safetensors"))
    slots = [Slot(name=f"x.{entry.name}", shape=entry.shape, source=entry) for entry in entries]
    tracemalloc.start()
    digest = write_tensors(str(tmp_path / "out.safetensors"), slots)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 3 * 2**20  # of 16 MiB
    back = load_file(tmp_path / "out.safetensors")
    assert all(torch.equal(back[f"x.{name}"], tensor) for name, tensor in tensors.items())
    seen = hashlib.sha256()
    read = {entry.name: tensor for entry, tensor in read_in_order(str(tmp_path / "out.safetensors"), seen)}
    assert all(torch.equal(read[f"x.{name}"], tensor) for name, tensor in tensors.items())
    assert seen.hexdigest() == digest
