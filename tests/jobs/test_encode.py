"""Storing features on Ray, and training on them: the run is the online run, to the bit, wherever features come from."""

import threading
import zlib
from contextlib import contextmanager

import numpy as np
import psutil
import pytest

from blip3o import storage
from blip3o.config.objectives import Task
from blip3o.config.pipeline import TrainingPipeline
from blip3o.data.batches import build_micro_batches
from blip3o.data.features.files import FeatureFooter, record_range
from blip3o.data.features.records import CRC_BYTES, RecordFormat
from blip3o.data.inputs import StageInputs
from blip3o.data.sets.scenes import build_scenes
from blip3o.data.shards.ledger import read_ledger
from blip3o.errors import ConfigError, DataError
from blip3o.runs.quarantine import read_quarantine
from blip3o.runs.rows import reproducible, rows_of
from blip3o.train.features.encoder import FeatureCache
from jobs.commands.prepare import require_prepared
from jobs.commands.progress import show_shards
from jobs.encode import Pool, encode, main
from jobs.index import index
from jobs.training.run import train, train_pipeline
from tests.jobs import world

STEPS = 4
MANY = {"name": "many", "shards": "many/train-*.tar"}
SMALL = Pool(cpus=0.5)


def made(base, name="encode", *, features="cache", dtype=None, sources=None, **sections):
    data = {"root": f"{base}/data", "max_length": 96, "features": features, "feature_dtype": dtype}
    data |= {"sources": sources} if sources else {}
    parallel = {"workers": 2, "cpus_per_worker": 1, "cpus_per_data_actor": 0.5, "cpus_per_encoder_actor": 0.5}
    optim = {"steps": STEPS, "warmup_steps": 2, "micro_batch_size": 8, "micro_batches": 2}
    return world.recipe(base, run={"name": name}, data=data, parallel=parallel, optim=optim, **sections)


def figures(recipe):
    # Where the features come from decides how much is computed (and what share of it is padding), and nothing else.
    rows = map(reproducible, rows_of(recipe))
    return [{name: value for name, value in row.items() if name not in ("flops/encoder", "padding")} for row in rows]


def files(recipe):
    """Every file of a recipe's cache, by URI."""
    ((_, folder),) = FeatureCache.of(recipe).sources(StageInputs(recipe).manifests)
    return {file.uri: storage.read_bytes(file.uri) for file in storage.list_files(folder.uri, suffix=".bin")}


@pytest.fixture(scope="module")
def many(base, ray_cluster):
    """For a source of thirty shards, whose index and features `blip3o train --prepare` makes."""
    build_scenes(f"{base}/data/many", train=120, heldout=4, samples_per_shard=4)
    recipe = made(base, sources=[MANY])
    require_prepared(TrainingPipeline.of(recipe), "tiny", (), prepare=True)
    return recipe


def poison(recipe, uid):
    """Writes NaN over the stored features of one sample, with a checksum that fits: no encoder's, but a cache's."""
    ((manifest, folder),) = FeatureCache.of(recipe).sources(StageInputs(recipe).manifests)
    _, shard, row = uid.rsplit("/", 2)
    header = folder.header(manifest.shards[int(shard)])
    data = bytearray(storage.read_bytes(folder.file(int(shard))))
    record = header.record
    offset, size = record_range(record, int(row))
    payload = np.full((record.tokens, record.channels), np.nan, "<f4").tobytes()
    data[offset : offset + size] = payload + zlib.crc32(payload).to_bytes(CRC_BYTES, "little")
    storage.write_bytes(folder.file(int(shard)), bytes(data))


@contextmanager
def poisoned(recipe, uid):
    """The same for a while."""
    before = files(recipe)
    poison(recipe, uid)
    try:
        yield
    finally:
        for uri, data in before.items():
            storage.write_bytes(uri, data)


KINDS = ("online", "cache", "stream")
BLAMED = 5  # of the micro-batches: in step 2


@pytest.fixture(scope="module")
def trained(base, many):
    """Four stages of one fit, of which none starts from another, and their results.

    The first three differ in where their features come from, and in nothing else; the last one meets features that are
    no numbers. With them the samples of the micro-batch that holds these.
    """
    stages = [made(base, f"from-{kind}", features=kind) for kind in KINDS]
    (done,) = encode(stages[1], SMALL)
    good = world.SCENES - 1
    assert (done.source, done.shards, done.encoded, done.absent, done.relative_error) == ("scenes", 3, good, 1, 0)
    assert done.stored_bytes == world.SCENES * RecordFormat(dtype="fp32", tokens=4, channels=16).record_bytes
    last = made(base, "poisoned", sources=[MANY], checkpoint={"every": 2}, guard={"max_rewinds": 1})
    uids = build_micro_batches(StageInputs(last, features_sha256=FeatureCache.of(last).sha256), Task.GENERATE).uids(
        BLAMED
    )
    stages.append(last)
    with poisoned(last, uids[3]):
        results = train_pipeline(TrainingPipeline(name="features", stages=tuple(stages)))
    return dict(zip((*KINDS, "poisoned"), zip(stages, results, strict=True), strict=True)), uids


def test_training_on_stored_and_on_streamed_features_is_training_online(trained):
    runs, _ = trained
    (_, expected), *others = (runs[kind] for kind in KINDS)
    online = figures(runs["online"][0])
    assert len(online) == STEPS
    for recipe, result in others:
        assert figures(recipe) == online
        assert result["sha256"] == expected["sha256"]
        assert result["identity"] != expected["identity"]
    assert {name.split(".")[0] for name in expected["tensors"]} == {"queries", "dit"}


def test_a_sample_whose_features_are_no_numbers_is_put_in_quarantine_and_the_run_ends(trained):
    runs, blamed = trained
    recipe, result = runs["poisoned"]
    assert [row["step"] for row in figures(recipe)] == list(range(STEPS))
    assert all(np.isfinite(row["loss"]) for row in figures(recipe))
    run = f"{recipe.run.storage}/poisoned"
    [entry] = read_quarantine(recipe).entries
    assert (entry.step, entry.since, list(entry.uids)) == (2, 2 * recipe.optim.micro_batches, blamed)
    noted = {it.uid: it.reason for it in read_ledger(f"{run}/ledger")}
    assert set(noted) == set(blamed)
    assert all(reason.startswith("quarantined: the loss is nan at step 2") for reason in noted.values())
    assert result["summary"]["steps"] == STEPS


def test_training_on_features_that_are_not_stored_is_refused(base):
    with pytest.raises(DataError, match="source 'scenes' has no features for 3 of 3 shards: .* jobs.encode RECIPE"):
        train(made(base, "missing", dtype="int8"))


def test_the_job_resumes_where_it_stopped_also_when_its_actor_is_killed(base, many):
    whole = files(many)
    assert len(whole) == 30
    for uri in sorted(whole)[1:]:
        storage.delete(uri)
    truncated, *rest = sorted(whole)
    storage.write_bytes(truncated, whole[truncated][:-1])
    killed = []

    def kill():
        """The encoding actor, when it has written two files."""
        while len(storage.list_files(truncated.rpartition("/")[0], suffix=".bin")) < 3:
            threading.Event().wait(0.01)
        for process in psutil.Process().children(recursive=True):
            if "_Actor" in " ".join(process.cmdline()):
                killed.append(process.pid)
                process.kill()

    killer = threading.Thread(target=kill, daemon=True)
    killer.start()
    (done,) = encode(many, SMALL)
    killer.join(60)
    assert killed
    assert (done.shards, done.encoded) == (30, 120)
    assert files(many) == whole
    (again,) = encode(many, SMALL)
    assert (again.shards, again.encoded) == (0, 120)
    assert len(rest) == 29


def test_verifying_passes_whole_files_and_names_damaged_ones(base, many, tmp_path, caplog, capsys):
    recipe = made(base, dtype="int8", sources=[MANY])
    with pytest.raises(DataError, match="has no features for 30 of 30 shards: .* has stored {'dtype': 'fp32'"):
        encode(recipe, SMALL, verify=True)
    file = world.write_recipe(
        tmp_path / "recipe.yaml", base, data={"root": f"{base}/data", "max_length": 96, "sources": [MANY]}
    )
    options = [file, "--set", "data.features=cache", "--set", "data.feature_dtype=int8", "--num-cpus-per-actor", "0.5"]
    assert main([*options, "--actors", "1,2"]) == 0
    assert main([*options, "--verify"]) == 0
    (done,) = encode(recipe, SMALL, verify=True)
    assert 1e-3 < done.relative_error < 5e-3
    uri = sorted(files(recipe))[7]
    whole = bytearray(storage.read_bytes(uri))
    whole[4200] ^= 1  # of the first record
    storage.write_bytes(uri, bytes(whole))
    assert main([*options, "--verify"]) == 1
    assert f"error: {uri}: the features of row " in capsys.readouterr().err


def test_only_a_new_shard_is_encoded(base, many):
    before = files(many)
    build_scenes(f"{base}/data/more", train=8, heldout=4, samples_per_shard=4, seed=7)
    first, *_ = storage.list_files(f"{base}/data/more", suffix=".tar")
    storage.write_bytes(f"{base}/data/many/train-00099.tar", storage.read_bytes(first.uri))
    index(many)
    with pytest.raises(DataError, match="no features for 1 of 31 shards: .*/00030.bin is missing"):
        FeatureCache.of(many).require(StageInputs(many).manifests)
    (done,) = encode(many, SMALL)
    assert done.shards == 1
    after = files(many)
    assert len(after) == 31
    assert {uri: after[uri] for uri in before} == before


def test_what_cannot_be_done_is_refused_in_a_line(base, tmp_path, capsys):
    with pytest.raises(ConfigError, match="data.features is 'online', and this job stores them"):
        encode(made(base, features="online"))
    file = world.write_recipe(tmp_path / "recipe.yaml", base)
    assert main(["debug"]) == 1
    assert "error: no stage of pipeline 'debug' has data.features=cache: --set gen" in capsys.readouterr().err
    for actors in ("2,1", "0,1", "3"):
        assert main([file, "--set", "data.features=cache", "--actors", actors]) == 1
        assert f"error: --actors {actors} is no pair MIN,MAX" in capsys.readouterr().err


def test_an_actor_on_a_gpu_has_four_decoding_threads_unless_told_otherwise():
    assert [Pool().cpus_for(device) for device in ("cpu", "gpu")] == [1, 4]
    assert SMALL.cpus_for("gpu") == 0.5


def test_streamed_features_need_their_encoder_before_the_first_step(base):
    stage = {"name": "generate", "start_from": ["world-understand"]}
    with pytest.raises(ConfigError, match="'stream' needs the encoder's weights before training begins"):
        train(made(base, "no-encoder", features="stream", stage=stage))


def test_a_log_without_a_terminal_reports_shards_and_images_a_second(caplog):
    footers = [(n, FeatureFooter(encoded=3, absent=1, relative_error=0.0, largest_error=0.0)) for n in range(4)]
    with caplog.at_level("INFO", "jobs.commands.progress"):
        assert list(show_shards(footers, "encode many", 4)) == footers
        assert [line.partition(",")[0] for line in caplog.messages] == ["encode many: 4 of 4 shards"]
        list(show_shards(footers, "encode many", 4, every=0))
    lines = [line.partition(",")[0] for line in caplog.messages[1:]]
    assert lines == [f"encode many: {n} of 4 shards" for n in range(1, 5)]
    assert caplog.messages[-1].endswith(" images/s")
