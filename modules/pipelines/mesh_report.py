"""What a user wants to know of a mesh before opening it."""

from dataclasses import dataclass

import numpy as np

from data_pipeline.contract import SourceFrame
from modules.geometry.mesh import TexturedMesh
from modules.metrics.mesh_quality import mesh_quality


@dataclass(frozen=True, kw_only=True)
class MeshReport:
    """Counts and faults of a textured mesh, after texture seams are welded.

    Args:
        faces: triangles.
        vertices: as files hold them: those on a texture seam once per chart.
        watertight: no edge is on a border or shared by more than two faces.
        manifold: no edge is shared by more than two faces, no vertex joins separate surfaces.
        self_intersecting_faces: triangles that meet another outside of corners that both have.
        components: parts that hang together.
        size: of the bounding box, in the file's units, along the world's X, Y and Z.
        texture_px: side of the texture.
        texture_use: share of the texture that the charts cover.
    """

    faces: int
    vertices: int
    watertight: bool
    manifold: bool
    self_intersecting_faces: int
    components: int
    size: tuple[float, float, float]
    texture_px: int
    texture_use: float

    @classmethod
    def of(cls, mesh: TexturedMesh, frame: SourceFrame | None = None) -> "MeshReport":
        """Return the report of a mesh that is written in the source frame of `frame`, if given."""
        quality = mesh_quality(mesh.vertices, mesh.faces)
        extent = np.ptp(mesh.vertices, axis=0) / (1.0 if frame is None else frame.scale)
        a, b, c = np.moveaxis(mesh.corner_uv, 1, 0)
        (ux, uy), (vx, vy) = (b - a).T, (c - a).T
        return cls(
            faces=len(mesh.faces),
            vertices=len(mesh.vertices),
            watertight=quality["watertight"] == 1.0,
            manifold=quality["manifold"] == 1.0,
            self_intersecting_faces=int(quality["self_intersecting_faces"]),
            components=int(quality["components"]),
            size=(float(extent[0]), float(extent[1]), float(extent[2])),
            texture_px=len(mesh.texture),
            texture_use=float(np.abs(ux * vy - uy * vx).sum() / 2.0),
        )

    def __str__(self) -> str:
        parts = "component" if self.components == 1 else "components"
        return (
            f"{self.faces} faces, {self.components} {parts}, "
            f"{'' if self.watertight else 'not '}watertight, "
            f"{'' if self.manifold else 'not '}manifold, "
            f"{self.self_intersecting_faces or 'no'} self-intersecting faces, "
            f"{' x '.join(f'{side:.3g}' for side in self.size)}, "
            f"texture of {self.texture_px} px, {self.texture_use:.0%} of it used"
        )
