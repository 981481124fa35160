"""Exact attention with dropout on a CPU, in memory linear in the number of keys.

PyTorch's fused CPU kernel takes no dropout, and its fallback stores every weight. Here queries are taken in
blocks, and the backward pass computes a block's weights again instead of keeping them, drawing the same
dropout from a seed per block (recomputation as in FlashAttention, Dao et al. 2022, arXiv 2205.14135, without
its tiling of keys). Working memory is allocated once per pass: fresh temporaries for every block would leave
holes between the small results that stay, and memory would still grow with the square of the bag.

Shapes: G groups (batch x heads), Q queries, N keys, E numbers per head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

#: Attention weights that exist at a time (float32: 32 MiB a buffer). A quarter of it costs half as much time
#: again on bags of 16,000 tiles, because every block reads all keys.
WEIGHTS_AT_ONCE = 2**23

#: A weight is dropped by comparing 16 random bits, four weights to a draw: several times faster than a draw
#: for each. The probability is rounded to 1/65536 thereby; kept weights are rescaled by what it was rounded
#: to.
_LEVELS = 2**16


class BlockwiseAttention(torch.autograd.Function):
    """``dropout(softmax(q kᵀ / √E)) v``; call it as ``BlockwiseAttention.apply(q, k, v, mask, dropout)``.

    Parameters
    ----------
    q
        ``[G, Q, E]`` float32 or float64.
    k, v
        ``[G, N, E]``.
    mask
        ``[G, N]`` bool, True where a key exists, or None.
    dropout
        Probability of dropping a weight.
    """

    @staticmethod
    def forward(
        ctx: Any, q_GQE: Tensor, k_GNE: Tensor, v_GNE: Tensor, mask_GN: Tensor | None, dropout: float
    ) -> Tensor:
        """The only draw from the global generator is the seed of the blocks."""
        seed = int(torch.randint(2**62, ()))
        out_GQE = torch.empty_like(q_GQE)
        work = _Workspace(q_GQE, k_GNE, mask_GN, dropout, seed)
        for start in range(0, q_GQE.shape[1], work.size):
            block = slice(start, start + work.size)
            weights = work.weights(q_GQE[:, block])
            weights.masked_fill_(work.dropped(start, weights), 0).mul_(work.kept_scale)
            out_GQE[:, block] = weights @ v_GNE
        ctx.save_for_backward(q_GQE, k_GNE, v_GNE, mask_GN, out_GQE)
        ctx.draw = (dropout, seed)
        return out_GQE

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of q, k and v; with P the weights, A the dropped ones and dA = dO vᵀ:

        dv = Aᵀ dO, dS = P (dA ∘ A/P - rowsum(dO ∘ O)), dq = dS k / √E, dk = dSᵀ q / √E.
        """
        (grad_GQE,) = grads
        q_GQE, k_GNE, v_GNE, mask_GN, out_GQE = ctx.saved_tensors
        work = _Workspace(q_GQE, k_GNE, mask_GN, *ctx.draw)
        second = torch.empty_like(work.buffer)
        dq, dk, dv = torch.empty_like(q_GQE), torch.zeros_like(k_GNE), torch.zeros_like(v_GNE)
        row_GQ1 = (grad_GQE * out_GQE).sum(dim=-1, keepdim=True)
        for start in range(0, q_GQE.shape[1], work.size):
            block = slice(start, start + work.size)
            q, grad = q_GQE[:, block], grad_GQE[:, block]
            weights = work.weights(q)
            dropped = work.dropped(start, weights)
            scores = second[: weights.numel()].view_as(weights)
            torch.bmm(grad, v_GNE.transpose(1, 2), out=scores)
            scores.masked_fill_(dropped, 0).mul_(work.kept_scale).sub_(row_GQ1[:, block]).mul_(weights)
            dq[:, block] = (scores @ k_GNE).mul_(work.scale)
            dk.baddbmm_(scores.transpose(1, 2), q, alpha=work.scale)
            weights.masked_fill_(dropped, 0)
            dv.baddbmm_(weights.transpose(1, 2), grad, alpha=work.kept_scale)
        return dq, dk, dv, None, None


class _Workspace:
    """Buffers of a pass, and what both passes compute in the same way: weights of a block, and which are dropped."""

    def __init__(
        self, q_GQE: Tensor, k_GNE: Tensor, mask_GN: Tensor | None, dropout: float, seed: int
    ) -> None:
        groups, queries, width = q_GQE.shape
        keys = k_GNE.shape[1]
        self.size = min(queries, max(1, WEIGHTS_AT_ONCE // (groups * keys)))
        self.scale = width**-0.5
        self.buffer = q_GQE.new_empty(groups * self.size * keys)
        self._k_GEN = k_GNE.transpose(1, 2)
        self._absent = None if mask_GN is None else ~mask_GN[:, None, :]
        self._threshold = round(dropout * _LEVELS)
        self.kept_scale = _LEVELS / (_LEVELS - self._threshold)
        self._bits = torch.empty(len(self.buffer) // 4 + 1, dtype=torch.int64)
        self._dropped = torch.empty(len(self.buffer), dtype=torch.bool)
        self._generator = torch.Generator()
        self._seed = seed

    def weights(self, q_GQE: Tensor) -> Tensor:
        """Softmax weights ``[G, q, N]`` of a block of queries, in the buffer."""
        groups, queries, _ = q_GQE.shape
        keys = self._k_GEN.shape[2]
        weights = self.buffer[: groups * queries * keys].view(groups, queries, keys)
        torch.bmm(q_GQE, self._k_GEN, out=weights)
        weights.mul_(self.scale)
        if self._absent is not None:
            weights.masked_fill_(self._absent, -torch.inf)
        weights.sub_(weights.amax(dim=-1, keepdim=True)).exp_()
        return weights.div_(weights.sum(dim=-1, keepdim=True))

    def dropped(self, start: int, weights: Tensor) -> Tensor:
        """Which weights of the block that begins at query ``start`` are dropped, the same in both passes."""
        count = weights.numel()
        self._generator.manual_seed(self._seed + start)
        bits = self._bits[: count // 4 + 1].random_(-(2**63), None, generator=self._generator)
        levels = bits.view(torch.int16)[:count]  # uniform over -32768 … 32767
        dropped = self._dropped[:count]
        torch.lt(levels, self._threshold - _LEVELS // 2, out=dropped)
        return dropped.view_as(weights)
