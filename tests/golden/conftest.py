"""The golden scenes, rendered once for each layout."""

import pytest
from golden.scenes import RESOLUTION_PX, WRITERS, Sample, read_sample

from data_pipeline.contract import RenderSpec, UserError
from data_pipeline.render.command import find_blender_python, render_assets
from data_pipeline.sources import Asset
from data_pipeline.staging import Staging


@pytest.fixture(scope="session", params=["ortho6", "pinhole4"])
def samples(request, tmp_path_factory) -> dict[str, Sample]:
    try:
        find_blender_python(None)
    except UserError as error:
        pytest.skip(str(error))
    root = tmp_path_factory.mktemp(request.param)
    assets = []
    for uid, write in WRITERS.items():
        write(root / f"{uid}.glb")
        assets.append(Asset(uid=uid, path=root / f"{uid}.glb", captions=(uid,)))
    spec = RenderSpec(
        layout=request.param,
        resolution_px=RESOLUTION_PX,
        samples=16,
        surface_points=4096,
        sdf_points=1024,
    )
    summary = render_assets(assets, root / "staging", spec, workers=1)
    assert summary.failures == {}
    staging = Staging(root / "staging")
    return {asset.uid: read_sample(staging.read(asset.uid)) for asset in assets}
