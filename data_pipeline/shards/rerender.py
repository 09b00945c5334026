"""Render again the samples that a damaged set of shards has lost, exactly as they were."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from data_pipeline.contract import RenderSpec, UserError
from data_pipeline.render.command import (
    RENDERER_VERSION,
    blender_version,
    find_blender_python,
    render_assets,
)
from data_pipeline.sources import Asset


def rerender(
    uids: Sequence[str],
    manifest: dict[str, Any],
    staging_root: Path,
    source: Callable[[], Sequence[Asset]],
    **how: Any,
) -> None:
    """Render the samples of `uids` into the staging folder.

    Args:
        uids: which.
        manifest: of the set; says how the samples were rendered.
        staging_root: the staging folder.
        source: gives the assets that the set was made from.
        how: as for `render_assets`.

    Raises:
        UserError: source, renderer or Blender are not those of the set, or an asset fails.
    """
    spec = _spec_of(manifest, blender_version(find_blender_python(how.get("blender_python"))))
    wanted = set(uids)
    assets = [asset for asset in source() if asset.uid in wanted]
    if unknown := sorted(wanted - {asset.uid for asset in assets}):
        raise UserError(
            f"the source has no asset {', '.join(unknown[:5])}: give the source=... keys with "
            "which the set was rendered"
        )
    summary = render_assets(assets, staging_root, spec, **how)
    print(f"{staging_root}: {summary}")
    if summary.num_rendered < len(assets):
        raise UserError(
            f"{len(assets) - summary.num_rendered} lost samples could not be rendered again: "
            f"python -m data_pipeline stats out={staging_root} says why; then repair again"
        )


def _spec_of(manifest: dict[str, Any], version: str) -> RenderSpec:
    """Return the set's render spec, or raise UserError if this code renders otherwise."""
    ours = (version, RENDERER_VERSION)
    try:
        spec = RenderSpec.from_mapping(manifest["render_spec"])
        same = spec.config_hash(*ours) == manifest["config_hash"]
    except (KeyError, TypeError):  # keys of another version of the code
        same, spec = False, RenderSpec()
    if not same:
        raise UserError(
            f"the set was rendered by renderer {manifest['renderer']} with Blender "
            f"{manifest['blender']}, this is renderer {ours[1]} with Blender {ours[0]}: check out "
            "the code that made it, or render and pack a new set"
        )
    return spec
