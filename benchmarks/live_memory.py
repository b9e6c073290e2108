"""Bytes of tensors that are alive at once, on any device: the same number on every machine and in every run."""

import weakref
from collections.abc import Iterable
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class LiveBytes(TorchDispatchMode):
    """While active, counts the memory behind every tensor that an operation makes, until the last one lets go of it.

    `live` is what there is now, `peak` the most there was at once without the gradients of `models`, in bytes. What was
    there before is not in them (weights), nor is what a kernel allocates for itself.
    """

    def __init__(self, models: Iterable[torch.nn.Module] = ()):
        super().__init__()
        self.live = self.peak = 0
        self._bytes: dict[int, int] = {}  # by storage
        self._weights = [weight for model in models for weight in model.parameters()]

    def __torch_dispatch__(self, operation: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        older = {storage._cdata for storage in _storages((args, kwargs))}  # what a view or an in-place result shares
        result = operation(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in older:
                self._made(storage)
        if self.live > self.peak:
            grads = {weight.grad.untyped_storage()._cdata for weight in self._weights if weight.grad is not None}
            self.peak = max(self.peak, self.live - sum(self._bytes.get(grad, 0) for grad in grads))
        return result

    def _made(self, storage: torch.UntypedStorage) -> None:
        name, size = storage._cdata, storage.nbytes()
        if name not in self._bytes:
            self._bytes[name] = size
            self.live += size
            weakref.finalize(storage, self._freed, name)

    def _freed(self, name: int) -> None:
        self.live -= self._bytes.pop(name)


def _storages(values: Any) -> list[torch.UntypedStorage]:
    return [each.untyped_storage() for each in tree_leaves(values) if isinstance(each, torch.Tensor)]
