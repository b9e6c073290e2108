"""Bytes of tensors that are alive at once, on any device: the same number on every machine and in every run."""

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While active, counts the memory behind every tensor that an operation makes, until the last one lets go of it.

    `peak` is the most there was at once, in bytes. What was there before is not in it (weights), nor is what a kernel
    allocates for itself.
    """

    def __init__(self):
        super().__init__()
        self.live = self.peak = 0
        self._known: dict[int, weakref.ref] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        before = {tensor.untyped_storage()._cdata for tensor in tree_leaves((args, kwargs)) if _is_tensor(tensor)}
        found = func(*args, **(kwargs or {}))
        for tensor in filter(_is_tensor, tree_leaves(found)):
            storage = tensor.untyped_storage()
            name = storage._cdata
            if name not in before and name not in self._known:  # else a view, or an operation in place
                self._known[name] = weakref.ref(storage, self._let_go(name, storage.nbytes()))
                self.live += storage.nbytes()
        self.peak = max(self.peak, self.live)
        return found

    def _let_go(self, name: int, size: int) -> Any:
        def gone(_: weakref.ref) -> None:
            del self._known[name]
            self.live -= size

        return gone


def _is_tensor(value: Any) -> bool:
    return isinstance(value, torch.Tensor)
