"""What the joint denoiser needs of a pretrained transformer: the interface of every backbone."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from data_pipeline.contract import UserError
from modules.networks.adapters import (
    DTYPES,
    AdaptedLinear,
    MixtureOfLoRA,
    Route,
    Router,
    Stream,
    adapted_layers,
    install_adapters,
)
from modules.networks.pretrained_parts import locate
from modules.networks.weights_fingerprint import check_fingerprint, weights_fingerprint

CONFIG_NAME = "config.json"
ADVICE = (
    "give the folder of a diffusers pipeline or of its transformer, or a hub model that this "
    "machine can reach and may read (denoiser.backbone.source)"
)


class Backbone(nn.Module, ABC):
    """A diffusers transformer whose blocks are run one by one, each modality at its own timestep.

    A subclass owns what differs between models: how packed latents become tokens, the scheme of
    positions, what the text is made of, guidance embeddings. One slot is one image of a modality:
    slot i < num_views is view i of the layout, references have the slots behind the views.

    Args:
        transformer: of `transformer_class`.
        origin: arguments by which `from_pretrained` loads the same again, and makes sure that it
            does; none if it did not.
    """

    transformer_class: ClassVar[Any]

    def __init__(self, transformer: Any, origin: Mapping[str, Any] | None = None) -> None:
        super().__init__()
        self.transformer = transformer
        self.origin = dict(origin or {})
        self.router = Router()
        self.adapters: MixtureOfLoRA | None = None

    @property
    @abstractmethod
    def channels(self) -> int:
        """Channels of packed latents."""

    @property
    @abstractmethod
    def width(self) -> int:
        """Width of image tokens."""

    @property
    @abstractmethod
    def text_width(self) -> int:
        """Width of text embeddings, one per text token."""

    @property
    def pooled_width(self) -> int | None:
        """Width of the one embedding of the whole text; None where the model takes none."""
        return None

    @abstractmethod
    def run(
        self,
        latents: Float[Tensor, "b m v c h w"],
        timesteps: Float[Tensor, "b m"],
        text: Float[Tensor, "b k e"],
        *,
        text_timesteps: Float[Tensor, " b"],
        pooled: Float[Tensor, "b p"] | None,
        embedding: Float[Tensor, "#b m v d"] | None,
        slots: Int[Tensor, "#b v"],
        references: Float[Tensor, "b r c hr wr"] | None,
        reference_slots: Int[Tensor, " r"],
    ) -> Float[Tensor, "b m v c h w"]:
        """Return the prediction for packed latents.

        Args:
            latents: packed and normalised.
            timesteps: noise level of each modality, 0 = clean, 1 = pure noise.
            text: embeddings of the text; all rows have the same length, padding included.
            text_timesteps: what text and references are modulated by; the pretrained model when
                equal to all others of the row.
            pooled: embedding of the whole text, where `pooled_width` says so.
            embedding: added to all tokens of an image, to tell modalities and views apart.
            slots: of the views; one row stands for all.
            references: packed latents of clean images that are looked at and not predicted.
            reference_slots: of the references.
        """

    @abstractmethod
    def sampling_shift(self, num_tokens: int, num_steps: int) -> float:
        """Return the shift of the sampler's timesteps that the model was pretrained with.

        As in diffusers' `FlowMatchEulerDiscreteScheduler(shift=...)`: above 1 takes finer steps
        where noise is strong. Models that name `mu` instead mean its logarithm.

        Args:
            num_tokens: of one image.
            num_steps: of the sampler.
        """

    @abstractmethod
    def streams(self) -> Mapping[str, Stream]:
        """Return the names of the blocks' linear layers, and what tokens each sees."""

    def adapt(self, spec: MixtureOfLoRA) -> "Backbone":
        """Freeze the transformer and install experts beside its linear layers."""
        install_adapters(self.transformer, self.streams(), spec, self.router)
        self.adapters = spec
        return self

    @property
    def adapted(self) -> dict[str, AdaptedLinear]:
        """The adapted layers by their name in the transformer."""
        return adapted_layers(self.transformer)

    def call(self, route: Route, block: nn.Module, *arguments: Any) -> Any:
        """Run a block with its tokens routed; checkpointed where the transformer says so."""
        self.router.route = route
        if not (torch.is_grad_enabled() and self.transformer.gradient_checkpointing):
            return block(*arguments)
        if torch.compiler.is_compiling():  # recomputed within the same graph
            return checkpoint(block, *arguments, use_reentrant=False)

        def routed(*arguments: Any) -> Any:
            self.router.route = route  # recomputed later: other passes may have run since
            return block(*arguments)

        return checkpoint(routed, *arguments, use_reentrant=False)

    @classmethod
    def from_pretrained(
        cls,
        source: str,
        *,
        revision: str | None = None,
        dtype: str = "bfloat16",
        config: Mapping[str, Any] | None = None,
        gradient_checkpointing: bool = False,
        fingerprint: str | None = None,
        **options: Any,
    ) -> "Backbone":
        """Load the transformer of a model on the hub or in a folder.

        Under `torch.device("meta")` nothing but the configuration is read, so that plans need
        neither weights nor memory.

        Args:
            source: hub id, folder of a whole pipeline, or folder of its transformer alone.
            revision: of the hub repository.
            dtype: of the weights, `float32` or `bfloat16`.
            config: what the hub's configuration holds; builds on the meta device then need no
                network. A folder's own comes first.
            gradient_checkpointing: whether blocks are computed again in the backward pass.
            fingerprint: that the weights must have (see `weights_fingerprint`); None: any.
            options: further keyword arguments of the backbone.

        Raises:
            UserError: the source cannot be read, or holds a transformer of another class, or other
                weights.
        """
        source = locate(source, ADVICE)
        located = _locate(source, revision)
        if not Path(source).exists() and config is not None and _on_meta():
            found = {"_class_name": cls.transformer_class.__name__, **config}
        else:
            found = _read_config(cls, located)
        if found.get("_class_name") != cls.transformer_class.__name__:
            raise UserError(
                f"{source} holds a {found.get('_class_name', 'model of no known class')}, and "
                f"{cls.__name__} runs a {cls.transformer_class.__name__}: choose the denoiser "
                "config of that model, or another denoiser.backbone.source"
            )
        transformer: Any
        if _on_meta():
            transformer = nn.Module.to(cls.transformer_class.from_config(found), DTYPES[dtype])
        else:
            transformer = _load(cls, located, DTYPES[dtype])
        if gradient_checkpointing:
            transformer.enable_gradient_checkpointing()
        found = weights_fingerprint(transformer)
        check_fingerprint(found, fingerprint, source)
        origin = {"source": source, "revision": revision, "dtype": dtype, **options}
        origin["fingerprint"] = found
        return cls(transformer, origin=origin, **options)


def _on_meta() -> bool:
    return torch.get_default_device().type == "meta"


def _locate(source: str, revision: str | None) -> dict[str, Any]:
    """Return the arguments by which diffusers finds the transformer of a source."""
    if not Path(source).exists():
        return {"pretrained_model_name_or_path": source, "subfolder": "transformer",
                "revision": revision}  # fmt: skip
    for folder in (Path(source) / "transformer", Path(source)):
        if (folder / CONFIG_NAME).is_file():
            return {"pretrained_model_name_or_path": str(folder), "local_files_only": True}
    raise UserError(
        f"{source} holds no transformer: give the folder of a diffusers pipeline (with "
        f"transformer/{CONFIG_NAME}) or of its transformer"
    )


def _read_config(cls: type[Backbone], located: dict[str, Any]) -> dict[str, Any]:
    try:
        return dict(cls.transformer_class.load_config(**located))
    except (OSError, ValueError) as error:
        raise _unreadable(located, error) from error


def _load(cls: type[Backbone], located: dict[str, Any], dtype: torch.dtype) -> Any:
    try:
        transformer, report = cls.transformer_class.from_pretrained(
            **located, torch_dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError) as error:
        raise _unreadable(located, error) from error
    if report["missing_keys"]:  # of which diffusers only warns
        raise _unreadable(located, f"no weights of {', '.join(sorted(report['missing_keys'])[:3])}")
    return transformer


def _unreadable(located: dict[str, Any], error: object) -> UserError:
    return UserError(
        f"cannot load {located['pretrained_model_name_or_path']} ({error}): it is neither a "
        "complete local folder nor a hub model that this machine can reach and may read"
    )
