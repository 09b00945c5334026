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
               "The same of whole images, whose background flatters small objects."),
    FigureNote("ssim_masked", "Colour SSIM, masked", "higher", 3,
               "Structural similarity in the same views, over the same pixels as the masked PSNR."),
    FigureNote("ssim_unmasked", "Colour SSIM, whole image", "higher", 3,
               "The same of whole images."),
    FigureNote("lpips_masked", "Colour LPIPS, masked", "lower", 3,
               "How different the views look to AlexNet (LPIPS v0.1), over the same pixels as the "
               "masked PSNR."),
    FigureNote("lpips_unmasked", "Colour LPIPS, whole image", "lower", 3,
               "The same of whole images, as it is commonly given."),
    FigureNote("mask_iou", "Silhouette overlap", "higher", 3,
               "Intersection over union of the silhouettes in the unseen views."),
    FigureNote("input_view_psnr_masked", "Colour PSNR in the input views (dB)", "higher", 1,
               "As above, in the views that the mesh was rebuilt from.", short="in input views"),
    FigureNote("input_view_ssim_masked", "Colour SSIM in the input views", "higher", 3,
               "Masked, in the views that the mesh was rebuilt from."),
    FigureNote("input_view_normal_deg", "Normals in the input views (degrees)", "lower", 1,
               "Mean angle between the mesh's normals and those of the input images."),
    FigureNote("excess_input_view_normal_deg", "The same, excess (degrees)", "lower", 1,
               "By how much that exceeds the angle of the true mesh's own normals to the images'."),
    FigureNote("watertight", "Watertight", "higher", 2,
               "Share of meshes whose every edge joins exactly two faces, texture seams welded."),
    FigureNote("manifold", "Manifold", "higher", 2,
               "Share of meshes without edges of three faces or surfaces that touch at a vertex."),
    FigureNote("category_right", "Category right", "higher", 2,
               "Whether the classifier sees the category that the caption names."),
    FigureNote("colour_right", "Colour right", "higher", 2,
               "Whether most of the mesh has the named colour (nearest of the palette in CIELAB)."),
    FigureNote("pattern_right", "Pattern right", "higher", 2,
               "Whether the classifier sees the pattern that the caption names."),
    FigureNote("attributes_right", "Attributes right", "higher", 2,
               "Mean of the three."),
    FigureNote("all_right", "All three right", "higher", 2,
               "Whether category, colour and pattern are all right."),
    FigureNote("image_category_right", "Category right, generated images", "higher", 2,
               "The same of the generated images, before any mesh was made of them."),
    FigureNote("image_colour_right", "Colour right, generated images", "higher", 2,
               "The same of colour."),
    FigureNote("image_pattern_right", "Pattern right, generated images", "higher", 2,
               "The same of pattern."),
    FigureNote("nearest_distance", "Distance to nearest training asset", "", 3,
               "Root mean squared difference of the views to those of the nearest training asset: "
               "near 0 is a copy."),
    FigureNote("seconds_generate", "Seconds to generate images", "lower", 1,
               "Wall clock of sampling, for one result at a time."),
    FigureNote("seconds_reconstruct", "Seconds to make the mesh", "lower", 1,
               "Wall clock from images to the written file."),
    FigureNote("seconds_encode", "Seconds to encode", "lower", 2,
               "Wall clock of all images of one asset through the encoder."),
    FigureNote("seconds_decode", "Seconds to decode", "lower", 2,
               "The same back through the decoder."),
    FigureNote("memory_mb_encode", "Memory to encode (MB)", "lower", 0,
               "Peak resident memory of the process meanwhile, libraries included."),
    FigureNote("memory_mb_decode", "Memory to decode (MB)", "lower", 0,
               "The same."),
    FigureNote("gpu_memory_mb_encode", "GPU memory to encode (MB)", "lower", 0,
               "Peak of what PyTorch held on the GPU."),
    FigureNote("gpu_memory_mb_decode", "GPU memory to decode (MB)", "lower", 0,
               "The same."),
    FigureNote("memory_mb_generate", "Memory to generate (MB)", "lower", 0,
               "Peak resident memory of the process meanwhile, libraries included."),
    FigureNote("memory_mb_reconstruct", "Memory to make the mesh (MB)", "lower", 0,
               "The same."),
    FigureNote("gpu_memory_mb_generate", "GPU memory to generate (MB)", "lower", 0,
               "Peak of what PyTorch held on the GPU."),
    FigureNote("gpu_memory_mb_reconstruct", "GPU memory to make the mesh (MB)", "lower", 0,
               "The same."),
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
    FigureNote("self_intersecting_faces", "Self-intersecting faces", "lower", 0,
               "Faces that meet another outside of the corners that both have."),
    FigureNote("faces", "Faces", "", 0, "Triangles."),
    FigureNote("true_images_f_score_0.01", "F-score @ 0.01, true images", "higher", 3,
               "The same rebuild without the autoencoder in between."),
    FigureNote("true_images_f_score_0.02", "F-score @ 0.02, true images", "higher", 3,
               "What the autoencoder's is to be held against.", short="true images'"),
    FigureNote("true_images_outer_recall_0.02", "Outer recall @ 0.02, true images", "higher", 3,
               "As above, of the rebuild from the true images."),
    FigureNote("true_images_normal_consistency", "Normal consistency, true images",
               "higher", 3, "As above, of the rebuild from the true images."),
    FigureNote("decoded_psnr_inside", "Decoded rgb, inside (dB)", "higher", 1,
               "PSNR of the images after the round trip, more than two pixels inside the "
               "silhouettes.", short="rgb PSNR"),
    FigureNote("decoded_psnr_band", "Decoded rgb, band (dB)", "higher", 1,
               "The same in the two pixels on either side of the silhouettes."),
    FigureNote("decoded_normal_deg_inside", "Decoded normals, inside (degrees)", "lower", 1,
               "Mean angle between true and decoded normals.", short="normals (degrees)"),
    FigureNote("decoded_normal_p95_deg_inside", "Decoded normals, inside, p95 (deg)", "lower", 1,
               "The angle that one pixel in twenty exceeds."),
    FigureNote("decoded_normal_deg_band", "Decoded normals, band (degrees)", "lower", 1,
               "Mean angle on the asset's side of the band."),
    FigureNote("decoded_normal_p95_deg_band", "Decoded normals, band, p95 (degrees)", "lower", 1,
               "The angle that one pixel in twenty exceeds there."),
    FigureNote("decoded_position_inside", "Decoded positions, inside", "lower", 4,
               "Mean distance of decoded coords from the true ones, in units of the longest side.",
               short="positions"),
    FigureNote("decoded_position_band", "Decoded positions, band", "lower", 4,
               "The same on the asset's side of the band."),
    FigureNote("decoded_depth_inside", "Decoded depth, inside", "lower", 4,
               "The part of that distance along the view's axis: all that a rebuild reads."),
    FigureNote("decoded_depth_band", "Decoded depth, band", "lower", 4,
               "The same on the asset's side of the band."),
    FigureNote("decoded_mask_iou", "Decoded silhouettes", "higher", 3,
               "Overlap of the true silhouettes with those that the hit rule finds in the decoded "
               "images.", short="mask IoU"),
    FigureNote("decoded_mask_iou_inside", "Decoded silhouettes, inside", "higher", 3,
               "The same inside, where it is below 1 for holes alone."),
    FigureNote("decoded_mask_iou_band", "Decoded silhouettes, band", "higher", 3,
               "The same in the band."),
    *(FigureNote(f"excess_{key}", f"Excess: {label}", "lower", digits,
                 "By how much the decoded images' figure of coherence exceeds the true images'.")
      for key, label, digits in (
          ("normal_coord_deg", "normals against coords (degrees)", 1),
          ("cross_view_position", "positions across views", 4),
          ("cross_view_normal_deg", "normals across views (degrees)", 1),
          ("cross_view_rgb", "rgb across views", 3),
          ("cross_view_conflict", "conflicts across views", 3),
          ("reprojection_px", "coords off their rays (px)", 2),
          ("edge_distance_px", "edges of rgb from outlines (px)", 2))),
    *(FigureNote(f"latent_{statistic}_{modality}", f"Latents of {modality}: {statistic}", "", 2,
                 "Over all cells and channels; as the autoencoder gives them, or normalised by the "
                 "statistics that it carries (FLUX.2).")
      for modality in ("rgb", "normal", "coord") for statistic in ("mean", "std")),
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
