"""Mixture of LoRA: beside each adapted linear layer a shared low-rank expert and one per modality.

Image tokens pass the shared expert and that of their modality; text and reference tokens pass the
shared one only. Modalities are contiguous slices, so each expert is one product with its slice: no
mask, no gather, no weight per token. Every second matrix is zero at first, and so is the change.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from data_pipeline.contract import MODALITIES, UserError

Stream = Literal["image", "text", "joint"]
"""Tokens that a layer sees: image and reference; text; or text, then image and reference."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


@dataclass(frozen=True, slots=True, kw_only=True)
class MixtureOfLoRA:
    """Which linear layers are adapted, and how.

    Args:
        shared_rank: rank of the shared expert; 0 leaves it out (experts per modality only).
        modality_rank: rank of each modality's expert; 0 leaves them out (plain LoRA).
        scale: factor of all changes: `alpha / rank` in the words of other LoRA code.
        targets: shell patterns of names of linear layers inside the blocks, such as `*.attn.*`.
        dtype: of the experts, `float32` or `bfloat16`; they compute in that of their input.
    """

    shared_rank: int = 64
    modality_rank: int = 64
    scale: float = 1.0
    targets: Sequence[str] = ("*",)
    dtype: str = "float32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "targets", tuple(self.targets))  # a list where YAML or JSON says
        if min(self.shared_rank, self.modality_rank) < 0 or self.dtype not in DTYPES:
            raise UserError(
                f"adapters: ranks ({self.shared_rank}, {self.modality_rank}) must not be negative, "
                f"dtype ({self.dtype}) must be {' or '.join(DTYPES)}"
            )
        if self.shared_rank == self.modality_rank == 0:
            raise UserError("adapters of rank 0 train nothing: set adapters=null to train it all")


@dataclass(frozen=True, slots=True, kw_only=True)
class Route:
    """Where the tokens of each modality are in the sequences of one pass.

    Args:
        num_modalities: modalities of the pass, in the order of the contract.
        num_tokens: tokens of each modality, all its views.
        num_text: text tokens, which come first where a layer sees both.
        in_rows: whether each modality has a batch row of its own (`(b m) s d`, modalities fastest)
            instead of a slice of the sequence (`b (m n) d`).
    """

    num_modalities: int
    num_tokens: int
    num_text: int
    in_rows: bool = False

    def map(
        self, change: "Change", sequence: Float[Tensor, "rows s d"], stream: Stream
    ) -> Float[Tensor, "rows s d2"]:
        """Return what a function makes of every stretch of tokens of one modality, in their order.

        Args:
            change: takes the modality, None for text and references, and the tokens.
            sequence: of all tokens.
            stream: what tokens these are.
        """
        start = self.num_text if stream == "joint" else 0

        def in_order(tokens: Tensor, modalities: Iterable[int]) -> Tensor:
            stretches = [(None, start), *((each, self.num_tokens) for each in modalities)]
            stretches.append((None, tokens.shape[1] - sum(length for _, length in stretches)))
            parts, first = [], 0
            for modality, length in stretches:
                if length:
                    parts.append(change(modality, tokens[:, first : first + length]))
                first += length
            return parts[0] if len(parts) == 1 else torch.cat(parts, dim=1)

        every = range(self.num_modalities)
        if not self.in_rows or not every:
            return in_order(sequence, every)
        rows = sequence.unflatten(0, (-1, len(every)))
        return torch.stack([in_order(rows[:, i], (i,)) for i in every], dim=1).flatten(0, 1)


Change = Callable[[int | None, Tensor], Tensor]


class Router:
    """Holds the route of the pass that is running, for all adapted layers of one backbone."""

    route: Route | None = None


class AdaptedLinear(nn.Linear):
    """A frozen linear layer with its experts; its own weight keeps its name.

    Args:
        linear: layer to adapt; its parameters are taken over and frozen.
        spec: ranks, scale, dtype.
        stream: what tokens the layer sees; one of text has no experts per modality.
        router: tells where the modalities are.
    """

    def __init__(
        self, linear: nn.Linear, spec: MixtureOfLoRA, stream: Stream, router: Router
    ) -> None:
        super().__init__(linear.in_features, linear.out_features, bias=False, device="meta")
        self.weight = linear.weight
        self.bias = linear.bias
        self.requires_grad_(False)
        self.scale, self.router = spec.scale, router
        self.stream: Stream = stream

        def expert(*lead: int, rank: int) -> tuple[nn.Parameter, nn.Parameter]:
            placed = {"device": linear.weight.device, "dtype": DTYPES[spec.dtype]}
            down = torch.empty(*lead, rank, linear.in_features, **placed)
            nn.init.uniform_(down, -1.0, 1.0).div_(math.sqrt(linear.in_features))
            return (
                nn.Parameter(down),
                nn.Parameter(torch.zeros(*lead, linear.out_features, rank, **placed)),
            )

        self.has_shared = spec.shared_rank > 0
        self.has_modalities = spec.modality_rank > 0 and stream != "text"
        if self.has_shared:
            self.shared_down, self.shared_up = expert(rank=spec.shared_rank)
        if self.has_modalities:
            self.modality_down, self.modality_up = expert(len(MODALITIES), rank=spec.modality_rank)

    def forward(self, input: Float[Tensor, "rows s d"]) -> Float[Tensor, "rows s d2"]:
        """Return the layer's output and its experts' changes."""
        output = super().forward(input)
        if not self.has_modalities:
            return output + self._change(None, input.to(output.dtype))
        assert self.router.route is not None
        # Added once for all tokens: adding to slices in place copies whole gradients backward.
        return output + self.router.route.map(self._change, input.to(output.dtype), self.stream)

    def _change(
        self, modality: int | None, tokens: Float[Tensor, "b n d"]
    ) -> Float[Tensor, "b n d2"]:
        """Return what the experts of some tokens add: the shared one and their modality's as one.

        By `bmm`: `linear` would copy a slice of rows.
        """
        downs: list[Tensor] = [self.shared_down] if self.has_shared else []
        ups: list[Tensor] = [self.shared_up] if self.has_shared else []
        if modality is not None:
            downs.append(self.modality_down[modality])
            ups.append(self.modality_up[modality])
        if not downs:
            return tokens.new_zeros(*tokens.shape[:2], self.out_features)
        down, up = (
            torch.cat(each, dim=along).to(tokens.dtype).T.expand(len(tokens), -1, -1)
            for each, along in ((downs, 0), (ups, 1))
        )
        return torch.bmm(torch.bmm(tokens, down), self.scale * up)


def install_adapters(
    network: nn.Module, streams: Mapping[str, Stream], spec: MixtureOfLoRA, router: Router
) -> None:
    """Freeze a network and put experts beside its linear layers.

    Args:
        network: that holds the layers.
        streams: names of the linear layers that can be adapted, and what tokens each sees.
        spec: which of them, and how.
        router: that the network's passes will set.

    Raises:
        UserError: a target matches no layer.
    """
    for target in spec.targets:
        if not any(fnmatchcase(name, target) for name in streams):
            raise UserError(
                f"adapters.targets: {target!r} matches no linear layer; names look like "
                f"{', '.join(list(streams)[:3])}"
            )
    network.requires_grad_(False)
    for name, stream in streams.items():
        if any(fnmatchcase(name, target) for target in spec.targets):
            adapted = AdaptedLinear(network.get_submodule(name), spec, stream, router)  # pyright: ignore[reportArgumentType]
            network.set_submodule(name, adapted)


def adapted_layers(network: nn.Module) -> dict[str, AdaptedLinear]:
    """Return the adapted linear layers by name."""
    return {n: layer for n, layer in network.named_modules() if isinstance(layer, AdaptedLinear)}
