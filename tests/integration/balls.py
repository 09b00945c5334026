"""Assets for tests of rendering: coloured balls of 8 x 8 faces as GLB files."""

from pathlib import Path

from golden.glb import GlbBuilder, uv_sphere, y_up

from data_pipeline.sources import Asset


def asset(path: Path) -> Asset:
    return Asset(uid=path.name.replace(".", "_"), path=path, captions=("a thing",))


def write_ball(path: Path, stretch: float = 1.0) -> Asset:
    triangles, normals = uv_sphere(1.0, 8)
    builder = GlbBuilder()
    colour = {"baseColorFactor": [0.2, 0.5, stretch / 4, 1.0]}
    material = builder.add_material(pbrMetallicRoughness=colour)
    builder.add_mesh(y_up(triangles * (1, 1, stretch)), normals=y_up(normals), material=material)
    return asset(builder.write(path))
