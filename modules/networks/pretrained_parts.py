"""Parts of pretrained models of transformers, loaded whole or refused."""

import os
from pathlib import Path
from typing import Any

import torch

from data_pipeline.contract import UserError


def locate(source: str, advice: str) -> str:
    """Return the absolute path of a local source, found from any folder; a hub id as it is.

    Args:
        source: hub id or local path.
        advice: what to give where it is a path with nothing there.

    Raises:
        UserError: it can only be a path (it starts with `/`, `./` or `../`, or has several slashes)
            and there is nothing.
    """
    if Path(source).exists():
        return os.path.abspath(source)
    if source.startswith(("/", "./", "../")) or source.count("/") > 1:
        raise UserError(f"cannot load {source} (there is no such file or folder): {advice}")
    return source


def load_part(
    kind: str,
    source: str,
    *,
    advice: str,
    subfolder: str = "",
    revision: str | None = None,
    dtype: torch.dtype | None = None,
) -> Any:
    """Load a model, of which no weight may be missing, or a tokenizer.

    Args:
        kind: class of transformers.
        source: hub id or local folder.
        advice: what to give where this cannot be loaded.
        subfolder: of the source.
        revision: of the hub repository.
        dtype: of a model's weights; None for a tokenizer.

    Raises:
        UserError: it cannot be loaded.
    """
    import transformers  # its models take seconds, which a small text encoder need not wait for

    located = {"subfolder": subfolder, "revision": revision}
    part = f"{subfolder} of {source}" if subfolder else source
    loader = getattr(transformers, kind)
    try:
        if dtype is None:
            return loader.from_pretrained(source, **located)
        model, report = loader.from_pretrained(
            source, **located, dtype=dtype, use_safetensors=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, ImportError) as error:
        raise UserError(f"cannot load {part} ({error}): {advice}") from error
    if missing := sorted(report["missing_keys"]):  # of which transformers only warns
        raise UserError(f"{part} holds no weights of {', '.join(missing[:3])}: {advice}")
    return model
