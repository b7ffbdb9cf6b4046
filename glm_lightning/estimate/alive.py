"""Count the bytes that are alive while torch runs, stage by stage, and the operations of its matrix products."""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterable
from typing import Any, final

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_DEVICE = torch.ops.prim.device.default

_LEFT = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1, "_grouped_mm": 0}
"""Matrix products, and which of their arguments is the left factor."""

_READS = ("_local_scalar_dense", "is_nonzero", "equal")
"""Operations that read contents."""


@final
class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that are made while it is entered, until they are freed.

    Tensors may be real ones or torch's fake ones, which have no contents: where these are read, ``answer`` is.
    """

    def __init__(self, known: Iterable[Tensor] = (), *, answer: bool | None = None, counts_casts: bool = True) -> None:
        """Args:
        known: tensors whose bytes do not count.
        answer: what is read of contents; None reads them.
        counts_casts: whether the bytes of a known tensor in another type count.
        """
        super().__init__()  # type: ignore[no-untyped-call]
        self.now = self.flops = 0
        self.answer = answer
        self._counts_casts = counts_casts
        self.peaks: dict[Any, int] = {}
        """The most bytes alive in each stage."""
        self._known = {tensor.untyped_storage()._cdata for tensor in known}
        # the weak references must live as long as what they watch
        self._sizes: dict[int, tuple[int, weakref.ref[torch.UntypedStorage]]] = {}
        self.enter_stage(None)

    def enter_stage(self, name: Any) -> None:
        """From now on, what is alive counts for the stage ``name``, which may have been entered before."""
        self._stage = name
        self.peaks[name] = max(self.now, self.peaks.get(name, 0))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run the operation and count what it has made; views share the bytes of what they look at."""
        if func is _DEVICE and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # asked for more often than anything is computed
        name = func._opname
        if self.answer is not None and name in _READS:
            return self.answer
        fake = self.answer is not None and name == "_grouped_mm"
        result = _grouped(*args, **(kwargs or {})) if fake else func(*args, **(kwargs or {}))
        counts = self._counts_casts or name != "_to_copy" or args[0].untyped_storage()._cdata not in self._known
        for tensor in (result,) if isinstance(result, Tensor) else tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._count(tensor.untyped_storage(), counts=counts)
        self.flops += _flops(name.rstrip("_"), args, result)
        return result

    def _count(self, storage: torch.UntypedStorage, *, counts: bool) -> None:
        key = storage._cdata
        if key in self._known or key in self._sizes:
            return
        size = storage.nbytes() if counts else 0
        self._sizes[key] = (size, weakref.ref(storage, lambda _: self._free(key)))
        self.now += size
        self.peaks[self._stage] = max(self.peaks[self._stage], self.now)

    def _free(self, key: int) -> None:
        self.now -= self._sizes.pop(key)[0]


def _grouped(left: Tensor, right: Tensor, offs: Tensor, *_: Any, **__: Any) -> Tensor:
    """What a product of groups of rows looks like: torch says it for bfloat16 only, and computes it in float32, too."""
    groups = () if right.ndim == 3 else (len(offs),)
    return left.new_empty((*groups, left.shape[0], right.shape[-1]))


def _flops(name: str, args: tuple[Any, ...], result: Any) -> int:
    """Multiplications and additions of a matrix product, or of attention without regard to what it leaves out."""
    if name in _LEFT:
        return int(2 * result.numel() * args[_LEFT[name]].shape[-1])
    if "attention" not in name:
        return 0
    backward = "backward" in name
    query, key = args[1:3] if backward else args[:2]
    # two products forwards, five backwards (Dao et al. 2022, arXiv:2205.14135)
    return int((5 if backward else 2) * 2 * math.prod(query.shape) * key.shape[2])
