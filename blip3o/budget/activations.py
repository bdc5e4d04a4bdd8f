"""The memory of a micro-batch's forward and backward pass, by running them on the meta device and following tensors.

Every tensor's storage is counted from its allocation to its release, as an allocator does; nothing is computed or
allocated. Attention has no fused kernel on the meta device, so the CPU's takes its place. It keeps what those of GPUs
keep (queries, keys, values, output and the logarithms of the sums), not the matrix of scores.

Layers of a tower are equal, so memory grows linearly with their number: deeper models than `DEPTH` layers are run at
that depth and with one layer more, and continued in a straight line.
"""

import weakref
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx.experimental import _config as shapes
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from blip3o.budget.micro_batch import IMAGE_TOKEN, PAD, make_micro_batch
from blip3o.config.recipe import Recipe
from blip3o.model.activation_checkpointing import checkpoint_activations
from blip3o.model.describe import META
from blip3o.train.objectives import StageModule, build_stage_module, to_device
from blip3o.train.stages import freeze, stage_of

DEPTH = 3
DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}
Tower = Literal["backbone", "dit", "encoder"]
TOWERS: tuple[Tower, ...] = ("backbone", "dit", "encoder")


@dataclass(frozen=True, kw_only=True)
class Activations:
    """Bytes of one micro-batch besides weights and sums of gradients.

    `stored` are kept by the forward pass for the backward pass. `forward` and `backward` are the most at any time of
    each, and `backward_all` the most together with the gradients of trained parameters that exist by then.
    """

    stored: int
    forward: int
    backward: int
    backward_all: int

    @property
    def peak(self) -> int:
        """The most at any time, without gradients of parameters."""
        return max(self.forward, self.backward)

    @property
    def with_gradients(self) -> int:
        """The most at any time, gradients of parameters included."""
        return max(self.forward, self.backward_all)

    def extended(self, start: "Activations", longer: "Activations", layers: int) -> "Activations":
        """With `layers` layers more than `start`, where `longer` has one more."""
        values = zip(astuple(self), astuple(start), astuple(longer), strict=True)
        stored, forward, backward, backward_all = (own + layers * (more - one) for own, one, more in values)
        return Activations(stored=stored, forward=forward, backward=backward, backward_all=backward_all)


def measure_activations(recipe: Recipe, *, recompute: bool, tokens: int | None = None) -> Activations:
    """Activations of the recipe's micro-batch, with or without recomputation in the backward pass.

    Where the loss selects supervised tokens, all tokens count as supervised. Raises `ConfigError` as `freeze`.
    """
    depths = {name: _depth(recipe, name) for name in TOWERS}
    base = {name: min(depth, DEPTH) for name, depth in depths.items()}
    start = found = _run(recipe, base, recompute=recompute, tokens=tokens)
    for name in TOWERS:
        if more := depths[name] - base[name]:
            longer = _run(recipe, base | {name: base[name] + 1}, recompute=recompute, tokens=tokens)
            found = found.extended(start, longer, more)
    return found


def _depth(recipe: Recipe, tower: Tower) -> int:
    return int(getattr(recipe.model, tower).layers)


def _run(recipe: Recipe, depths: dict[Tower, int], *, recompute: bool, tokens: int | None) -> Activations:
    towers: dict[str, Any] = {
        name: getattr(recipe.model, name).model_copy(update={"layers": n}) for name, n in depths.items()
    }
    shallow = recipe.model_copy(update={"model": recipe.model.model_copy(update=towers)})
    module = build_for_counting(shallow, recompute=recompute)
    batch = to_device(module.prepare(make_micro_batch(shallow, tokens=tokens)), META)
    tracker = StorageTracker([*module.parameters(), *module.buffers(), *batch.values()])
    with _fused_attention(), shapes.patch(meta_nonzero_assume_all_nonzero=True), tracker:
        loss = torch.stack(list(module(batch).values())).sum()
        stored, forward = tracker.live, tracker.peak()
        middle = tracker.changes
        torch.autograd.backward([loss])
    gradients = {_key(p.grad) for p in module.parameters() if p.grad is not None}
    return Activations(
        stored=stored,
        forward=forward,
        backward=tracker.peak(start=middle, without=gradients),
        backward_all=tracker.peak(start=middle),
    )


def build_for_counting(recipe: Recipe, *, recompute: bool) -> StageModule:
    """The stage's module on the meta device, as its engine has it: frozen parts, dtype, recomputation."""
    with META:
        module = build_stage_module(recipe, image_token_id=IMAGE_TOKEN, pad_id=PAD)
    for parameter in module.parameters():  # as the engine: buffers stay fp32
        parameter.data = parameter.data.to(DTYPES[recipe.parallel.precision])
    freeze(module.model, stage_of(recipe))
    if recompute:
        checkpoint_activations(module.model)
    return module.train()


def _key(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)


class StorageTracker(TorchDispatchMode):
    """Follows the storages that operations allocate, except those of `known` tensors."""

    def __init__(self, known: Sequence[Tensor]) -> None:
        super().__init__()
        self._known = known  # kept, so that none of their keys is used again
        self._keys = {_key(tensor) for tensor in known}
        self._changes: list[tuple[int, int]] = []  # of a storage: its key and bytes, negative for a release
        self.live = 0

    @property
    def changes(self) -> int:
        """The number of allocations and releases so far."""
        return len(self._changes)

    def peak(self, *, start: int = 0, without: Collection[int] = ()) -> int:
        """The most bytes after `start` changes, leaving out storages that live to the end under one of these keys."""
        last = {key: number for number, (key, size) in enumerate(self._changes) if size > 0 and key in without}
        left_out = set(last.values())
        live = most = 0
        for number, (_, size) in enumerate(self._changes):
            live += 0 if number in left_out else size
            most = max(most, live) if number >= start - 1 else 0
        return most

    def _release(self, key: int, size: int) -> None:
        self._keys.discard(key)
        self._changes.append((key, -size))
        self.live -= size

    def _add(self, tensor: Tensor) -> None:
        storage = tensor.untyped_storage()
        key, size = int(storage._cdata), storage.nbytes()
        if key in self._keys:
            return
        self._keys.add(key)
        self._changes.append((key, size))
        self.live += size
        weakref.finalize(storage, self._release, key, size).atexit = False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # noqa: ANN401
        """Runs an operation, and notes what it allocates."""
        out = function(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else (out,):
            if isinstance(value, Tensor) and value.is_meta:
                self._add(value)
        return out


@contextmanager
def _fused_attention() -> Iterator[None]:
    """On the meta device, the CPU's fused attention in place of separate products and softmax."""
    original = F.scaled_dot_product_attention

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,  # noqa: FBT001, FBT002 - torch's signature
        **options: Any,  # noqa: ANN401 - torch's
    ) -> Tensor:
        if not query.is_meta:
            return original(query, key, value, attn_mask, dropout_p, is_causal, **options)
        mask = attn_mask if attn_mask is None or attn_mask.is_floating_point() else attn_mask.to(query.dtype)
        fused = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
        return fused(query, key, value, dropout_p, is_causal, attn_mask=mask)[0]

    F.scaled_dot_product_attention = attention  # type: ignore[assignment]  # with fewer keywords spelt out
    try:
        yield
    finally:
        F.scaled_dot_product_attention = original
