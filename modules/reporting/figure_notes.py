"""What each figure means, in the order in which tables show them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class FigureNote:
    """How one figure is shown and explained.

    Args:
        key: name in report.json.
        label: name in tables.
        better: `higher` or `lower`; empty where neither is.
        digits: decimals shown.
        meaning: one sentence.
        short: name beside a picture, for the few that are shown there.
    """

    key: str
    label: str
    better: str
    digits: int
    meaning: str
    short: str = ""


FIGURE_NOTES = (
    FigureNote("f_score_0.005", "F-score @ 0.005", "higher", 3,
               "Harmonic mean of precision and recall at half a percent of the longest side."),
    FigureNote("f_score_0.01", "F-score @ 0.01", "higher", 3,
               "The same at one percent."),
    FigureNote("f_score_0.02", "F-score @ 0.02", "higher", 3,
               "The same at two percent: the headline figure for rebuilt shapes.", short="F@0.02"),
    FigureNote("f_score_0.05", "F-score @ 0.05", "higher", 3,
               "The same at five percent: the figure for generated shapes."),
    FigureNote("outer_recall_0.02", "Outer recall @ 0.02", "higher", 3,
               "Share of the truth's visible outside that is matched within two percent; what "
               "nobody can see does not count.", short="outer recall"),
    FigureNote("chamfer_l1", "Chamfer distance", "lower", 4,
               "Mean distance between the surfaces, both ways, in units of the longest side."),
    FigureNote("chamfer_l2", "Squared chamfer distance", "lower", 6,
               "The same of squared distances: far strays weigh more."),
    FigureNote("volume_iou", "Volume overlap", "higher", 3,
               "Intersection over union of the space inside; of pairs where both are watertight."),
    FigureNote("normal_consistency", "Normal consistency", "higher", 3,
               "Mean |cos| of the angle between the normals of matched points."),
    FigureNote("flipped_normals", "Flipped normals", "lower", 3,
               "Share of matched points whose normals oppose: faces that are inside out."),
    FigureNote("psnr_masked", "Colour PSNR, masked (dB)", "higher", 1,
               "Base colour re-rendered from unseen directions, over the union of both silhouettes "
               "grown by one pixel.", short="PSNR"),
    FigureNote("psnr_unmasked", "Colour PSNR, whole image (dB)", "higher", 1,
               "The same with the white background, which flatters small objects."),
    FigureNote("ssim_masked", "Colour SSIM, masked", "higher", 3,
               "Structural similarity in the same views, over the same pixels as the masked PSNR."),
    FigureNote("ssim_unmasked", "Colour SSIM, whole image", "higher", 3,
               "The same with the white background."),
    FigureNote("lpips_masked", "Colour LPIPS, masked", "lower", 3,
               "How different the views look to AlexNet (LPIPS v0.1), over the same pixels as the "
               "masked PSNR."),
    FigureNote("lpips_unmasked", "Colour LPIPS, whole image", "lower", 3,
               "The same with the white background, as it is commonly given."),
    FigureNote("mask_iou", "Silhouette overlap", "higher", 3,
               "Intersection over union of the silhouettes in the unseen views."),
    FigureNote("input_view_psnr_masked", "Colour PSNR in the input views (dB)", "higher", 1,
               "As above, in the views that the mesh was rebuilt from.", short="in input views"),
    FigureNote("input_view_ssim_masked", "Colour SSIM in the input views", "higher", 3,
               "Masked, in the views that the mesh was rebuilt from."),
    FigureNote("input_view_normal_deg", "Normals in the input views (degrees)", "lower", 1,
               "Mean angle between the mesh's normals and those of the input images."),
    FigureNote("watertight", "Watertight", "higher", 2,
               "Share of meshes whose every edge joins exactly two faces, texture seams welded."),
    FigureNote("manifold", "Manifold", "higher", 2,
               "Share of meshes without edges of three faces or surfaces that touch at a vertex."),
    FigureNote("clip_score", "CLIP score", "higher", 2,
               "100 times the cosine of an image with its prompt, negative ones as 0: mean over "
               "views."),
    FigureNote("r_precision", "R-precision", "higher", 3,
               "Share of views whose own prompt is the nearest of all prompts of the set."),
    FigureNote("fid", "FID", "lower", 2,
               "Fréchet distance of the sets' features of FID's own Inception."),
    FigureNote("kid", "KID", "lower", 5,
               "Unbiased squared MMD of the same features under a cubic kernel, over subsets."),
    FigureNote("cmmd", "CMMD", "lower", 3,
               "1000 times the squared MMD of CLIP embeddings under a Gaussian kernel."),
    FigureNote("fd_dinov2", "FD-DINOv2", "lower", 2,
               "Fréchet distance of the sets' class tokens of DINOv2."),
    FigureNote("components", "Parts", "", 0, "Connected parts."),
    FigureNote("spurious_components", "Spurious parts", "lower", 1,
               "Parts of over 1 % of the area that mostly lie further than 5 % off the truth."),
    FigureNote("genus", "Genus", "", 0,
               "Handles of all parts together; of meshes that are watertight and manifold."),
    FigureNote("uv_coverage", "Texture used", "higher", 3,
               "Share of the textures' area that faces cover."),
    FigureNote("uv_overlap", "Texture overlap", "lower", 3,
               "Share of the covered area that more than one face covers."),
    FigureNote("degenerate_faces", "Degenerate faces", "lower", 0, "Faces without area."),
    FigureNote("faces", "Faces", "", 0, "Triangles."),
)  # fmt: skip


def table_rows(
    summary: Mapping[str, Mapping[str, float]], floor: Mapping[str, Mapping[str, float]]
) -> list[dict[str, Any]]:
    """Return the rows of a table of figures: note, the four statistics, and the floor's median."""
    rows = []
    for note in FIGURE_NOTES:
        if note.key in summary:
            shown = {name: f"{value:.{note.digits}f}" for name, value in summary[note.key].items()}
            best = floor.get(note.key)
            shown["floor"] = "" if best is None else f"{best['median']:.{note.digits}f}"
            rows.append({"note": note, **shown})
    return rows
