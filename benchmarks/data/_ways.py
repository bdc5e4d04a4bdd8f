"""The ways from shards to batches: ours, and the common ones. Each is a function from a job to its batches.

A batch is what `SampleEncoder` makes of `BATCH` samples, stacked. The other ways run as their own pages advise: bytes
are decoded where they do it best, `cores` worker processes, prefetching on.
"""

import importlib
import importlib.machinery
import sys
import types
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.utils.data

from benchmarks.data._world import BATCH, BUCKET, SOURCE, Job
from blip3o import settings, storage
from blip3o.data.batches import SampleEncoder
from blip3o.data.stream import build_stream, iterate_micro_batches
from blip3o.storage.s3_connection import connection
from blip3o.types import RawSample

Arrays = dict[str, np.ndarray]
Tensors = dict[str, torch.Tensor]
# Modules, and the name that is taken from each.
_TORCHVISION = {
    "torchvision": "",
    "torchvision.datasets": "VisionDataset",
    "torchvision.transforms": "",
    "torchvision.transforms.functional": "to_tensor",
}
ENDLESS = 100_000  # micro-batches: more than any measurement reads


def stack(rows: list[Arrays]) -> Arrays:
    """Rows of arrays as one batch."""
    return {name: np.stack([row[name] for row in rows]) for name in rows[0]}


def tensors(rows: list[Arrays]) -> Tensors:
    """The same as tensors, which a DataLoader's worker passes on in shared memory."""
    return {name: torch.from_numpy(array) for name, array in stack(rows).items()}


def encode(encoder: SampleEncoder, key: str, image: bytes, caption: str) -> Arrays:
    """One sample's arrays."""
    return encoder(RawSample(uid=key, key=key, pass_index=0, image=image, caption=caption, meta={}))


def start_ray(job: Job) -> None:
    """Starts Ray in this process, on the cores that the process is pinned to."""
    settings.configure_ray()
    import ray

    ray.init("local", num_cpus=job.cores + 1, include_dashboard=False, log_to_driver=False, object_store_memory=10**9)


def ours(job: Job) -> Iterator[Arrays]:
    """Our stream: one decoding actor with a thread per core. It starts at the job's batch."""
    start_ray(job)
    stream = build_stream(numbers=range(job.start, ENDLESS), make_micro_batch_fn=job.builder, threads=job.cores)
    return iterate_micro_batches(stream.iterator())


def ray_webdataset(job: Job) -> Iterator[Arrays]:
    """Plain Ray Data: `read_webdataset` and `map_batches`; passes follow one another."""
    start_ray(job)
    import ray.data

    encoder = job.encoder()

    def collate(batch: dict[str, Any]) -> Arrays:
        rows = zip(batch["__key__"], batch["jpg"], batch["txt"], strict=True)
        return stack([encode(encoder, key, image, _text(caption)) for key, image, caption in rows])

    while True:
        samples = ray.data.read_webdataset(f"{job.root}/{SOURCE}/", decoder=None)
        samples.context.enable_progress_bars = False
        yield from samples.iter_batches(batch_size=BATCH, prefetch_batches=2, drop_last=True, _collate_fn=collate)


def webdataset(job: Job) -> Iterator[Tensors]:
    """`webdataset` over presigned URLs with a torch DataLoader of `cores` worker processes."""
    import webdataset as wds

    encoder = job.encoder()

    def row(sample: dict[str, Any]) -> Arrays:
        return encode(encoder, sample["__key__"], sample["jpg"], _text(sample["txt"]))

    urls = presigned(job)

    def collate(rows: list[Arrays]) -> Tensors:
        return tensors([{name: row[name] for name in row if name != "__key__"} for row in rows])

    samples = wds.WebDataset(urls, shardshuffle=len(urls), seed=0).repeat().shuffle(1000).map(row)
    loader = wds.WebLoader(samples.batched(BATCH, collation_fn=collate), batch_size=None, num_workers=job.cores)
    return iter(loader)


def presigned(job: Job) -> list[str]:
    """URLs from which anyone may fetch the shards for an hour."""
    client = connection().client
    keys = [file.uri.removeprefix(f"s3://{BUCKET}/") for file in shards(job)]
    return [client.generate_presigned_url("get_object", Params={"Bucket": BUCKET, "Key": key}) for key in keys]


def shards(job: Job) -> list[storage.FileInfo]:
    """The shards' files."""
    return storage.list_files(f"{job.root}/{SOURCE}", suffix=".tar")


def hf_datasets(job: Job) -> Iterator[Tensors]:
    """`datasets`, as upstream does: fetch all shards, convert them to Arrow files, then a shuffled DataLoader."""
    import datasets

    folder = Path(job.folder, "local")
    folder.mkdir(parents=True)
    for file in shards(job):
        (folder / file.uri.rsplit("/", 1)[1]).write_bytes(storage.read_bytes(file.uri))
    files = sorted(map(str, folder.glob("*.tar")))
    datasets.disable_progress_bars()
    table = datasets.load_dataset(
        "webdataset", data_files=files, split="train", cache_dir=f"{job.folder}/arrow", num_proc=job.cores
    )
    table = table.cast_column("jpg", datasets.Image(decode=False))
    encoder = job.encoder()

    def collate(rows: list[dict[str, Any]]) -> Tensors:
        return tensors([encode(encoder, row["__key__"], row["jpg"]["bytes"], _text(row["txt"])) for row in rows])

    loader = torch.utils.data.DataLoader(
        table, batch_size=BATCH, shuffle=True, drop_last=True, num_workers=job.cores, collate_fn=collate
    )
    return _endless(loader)


def mosaic(job: Job) -> Iterator[Tensors]:
    """`mosaicml-streaming`: shards are converted to its format in the store once, and kept on local disk as read.

    One worker process, whatever the cores: with two it returned bytes that are not images (seen twice, cause not
    found).
    """
    streaming = import_streaming()
    remote = f"s3://{BUCKET}/mds"
    if not storage.list_files(remote):
        _write_mds(job, streaming, remote)
    dataset = streaming.StreamingDataset(
        remote=remote, local=f"{job.folder}/mds-local", shuffle=True, batch_size=BATCH, shuffle_seed=0
    )
    encoder = job.encoder()

    def collate(rows: list[dict[str, Any]]) -> Tensors:
        return tensors([encode(encoder, row["key"], row["jpg"], row["txt"]) for row in rows])

    loader = torch.utils.data.DataLoader(dataset, batch_size=BATCH, num_workers=1, collate_fn=collate)
    return _endless(loader)


def _write_mds(job: Job, streaming: Any, remote: str) -> None:  # noqa: ANN401 - a module
    from blip3o.data.shards.fetch import ShardReader
    from blip3o.data.shards.manifest import read_manifest
    from blip3o.types import SampleRef

    manifest = read_manifest(f"{job.root}/manifests/{SOURCE}")
    reader = ShardReader([manifest])
    columns = {"key": "str", "jpg": "bytes", "txt": "str"}
    with streaming.MDSWriter(out=f"{job.folder}/mds", columns=columns, size_limit=2**24) as writer:
        for shard in manifest.shards:
            for raw in reader.fetch(
                [SampleRef(source=0, shard=shard.shard, row=row, pass_index=0) for row in range(shard.rows)]
            ):
                writer.write({"key": raw.key, "jpg": raw.image, "txt": raw.caption})
    for file in Path(job.folder, "mds").iterdir():
        storage.write_bytes(f"{remote}/{file.name}", file.read_bytes())


def import_streaming() -> Any:  # noqa: ANN401 - a module
    """The module `streaming`. Its vision part imports torchvision, which is not needed here and does not load
    with every build of torch: empty modules replace it during the import.
    """
    for name, attribute in _TORCHVISION.items():
        stand_in = types.ModuleType(name)
        stand_in.__spec__ = importlib.machinery.ModuleSpec(name, None)
        if attribute:
            setattr(stand_in, attribute, type(attribute, (), {}))
        sys.modules.setdefault(name, stand_in)
    try:
        return importlib.import_module("streaming")
    finally:
        for name in _TORCHVISION:
            sys.modules.pop(name)


def _endless(loader: Any) -> Iterator[Tensors]:  # noqa: ANN401 - a DataLoader
    if not len(loader):
        raise ValueError(f"a pass has less than a batch of {BATCH} samples: make more or larger shards")
    while True:
        yield from loader


def _text(caption: str | bytes) -> str:
    return caption.decode() if isinstance(caption, bytes) else caption


WAYS: dict[str, Callable[[Job], Iterator[Arrays] | Iterator[Tensors]]] = {
    "ours": ours,
    "datasets": hf_datasets,
    "webdataset": webdataset,
    "mosaicml-streaming": mosaic,
    "ray.data.read_webdataset": ray_webdataset,
}
