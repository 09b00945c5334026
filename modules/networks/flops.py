"""What one training step costs, found by a dry run on the meta device: no weights, no data, no GPU.

The step runs, forward and backward, on tensors that have shapes but no memory. Every product of
matrices that the real step would make is counted (n x k by k x m is 2 n k m FLOPs), and so is every
byte that would be allocated. Attention counts as a fused kernel: 4 q k d FLOPs forward for q
queries, k keys and width d, twice that backward, and no matrix of scores in memory.
"""

import weakref
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

IN_PLACE = {
    torch.ops.aten.addmm_: torch.ops.aten.addmm,
    torch.ops.aten.baddbmm_: torch.ops.aten.baddbmm,
}
"""Products that PyTorch's own counter does not know, and what they cost as much as."""


@dataclass(frozen=True, kw_only=True)
class StepCost:
    """FLOPs and memory of one step.

    Args:
        forward: FLOPs of the forward pass.
        backward: FLOPs of the gradients of inputs and of trainable weights; 0 without a backward.
        attention: FLOPs of attention's scores and weighted sums, contained in both of the above.
        peak_bytes: most memory held at one time by tensors that the step made: activations and
            their gradients. Gradients of parameters are not in it: each is let go when complete.
    """

    forward: int
    backward: int
    attention: int
    peak_bytes: int

    @property
    def total(self) -> int:
        """FLOPs of the whole step."""
        return self.forward + self.backward


def dry_run(step: Callable[[], Tensor], networks: Iterable[nn.Module]) -> StepCost:
    """Run a step on the meta device and count.

    What gradient checkpointing computes anew is counted like everything else: switch it off to
    count the FLOPs of a step as model FLOPs utilisation (MFU) is defined, on to learn its memory.

    Args:
        step: returns the loss, or any result that needs no gradient; its tensors are on meta.
        networks: all networks that it uses, on meta. Their parameters are not counted as memory,
            and hold no gradients afterwards.
    """
    networks = list(networks)
    owned = [t for network in networks for t in (*network.parameters(), *network.buffers())]
    handles = [
        parameter.register_post_accumulate_grad_hook(_let_go)
        for parameter in owned
        if isinstance(parameter, nn.Parameter) and parameter.requires_grad
    ]
    attention = _FusedAttention()
    replaced = mock.patch.object(F, "scaled_dot_product_attention", attention)
    ledger = _Ledger(owned)
    try:
        with replaced, ledger:
            loss = step()
            forward = ledger.flops + attention.flops
            if loss.requires_grad:
                loss.sum().backward()
    finally:
        for handle in handles:
            handle.remove()
    return StepCost(
        forward=forward,
        backward=ledger.flops + attention.flops - forward,
        attention=attention.flops,
        peak_bytes=ledger.peak,
    )


def _let_go(parameter: Tensor) -> None:
    parameter.grad = None


class _FusedAttention:
    """Stands in for `scaled_dot_product_attention`, and costs what a fused kernel costs."""

    def __init__(self) -> None:
        self.flops = 0

    def __call__(self, query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        return _FusedAttentionFunction.apply(self, query, key, value)

    def add(self, query: Tensor, key: Tensor, width: int) -> None:
        """Count products with a matrix of scores whose other side sums up to `width`."""
        self.flops += 2 * query.shape[:-1].numel() * key.shape[-2] * width


class _FusedAttentionFunction(torch.autograd.Function):
    """Keeps what flash attention keeps for its backward: inputs, output, one number per query."""

    @staticmethod
    def forward(ctx: Any, counter: _FusedAttention, query: Tensor, key: Tensor, value: Tensor):
        counter.add(query, key, query.shape[-1] + value.shape[-1])
        # As the kernels lay it out: heads inside tokens, so that joining the heads is a view.
        *batch, heads, tokens, _ = query.shape
        output = query.new_empty(*batch, tokens, heads, value.shape[-1]).transpose(-3, -2)
        logsumexp = query.new_empty(query.shape[:-1], dtype=torch.float32)
        ctx.counter = counter
        ctx.save_for_backward(query, key, value, output, logsumexp)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Any:
        query, key, value, *_ = ctx.saved_tensors
        _, of_query, of_key, of_value = ctx.needs_input_grad
        from_values = of_value + (of_query or of_key)  # of the weights as well
        width = from_values * value.shape[-1] + (of_query + of_key) * query.shape[-1]
        ctx.counter.add(query, key, width)
        # The kernels sum up the gradient of queries in float32.
        _sums = query.new_empty(query.shape, dtype=torch.float32)
        return None, *(torch.empty_like(each) for each in (query, key, value))


class _Ledger(TorchDispatchMode):
    """Counts matrix products, and follows every storage that is made from its birth to its end."""

    def __init__(self, ignored: Iterable[Tensor]) -> None:
        super().__init__()
        self.flops = self.held = self.peak = 0
        self._seen = weakref.WeakSet(tensor.untyped_storage() for tensor in ignored)

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operation = func._overloadpacket
        if count := flop_registry.get(IN_PLACE.get(operation, operation)):
            self.flops += count(*args, **kwargs, out_val=result)
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._add(tensor.untyped_storage())
        self.peak = max(self.peak, self.held)
        return result

    def _add(self, storage: torch.UntypedStorage) -> None:
        if storage in self._seen:
            return
        self._seen.add(storage)
        self.held += storage.nbytes()
        weakref.finalize(storage, self._remove, storage.nbytes())

    def _remove(self, num_bytes: int) -> None:
        self.held -= num_bytes
