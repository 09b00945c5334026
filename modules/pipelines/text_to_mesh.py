"""What generate.py does: prompt, images or rendered sample to textured mesh files."""

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from tqdm import tqdm

from data_pipeline.contract import SourceFrame, UserError, layout_cameras, view_layout
from modules.pipelines.device import inference_device
from modules.pipelines.export import (
    IN_WORLD,
    ExportOptions,
    MeshMaker,
    export,
    file_digest,
    model_digest,
)
from modules.pipelines.generation import TextTo25D
from modules.pipelines.reconstruction import Reconstructor
from modules.pipelines.reference_images import fit_reference, images_digest, read_references
from modules.pipelines.sampling_options import Sampling
from modules.pipelines.texturing import GivenMesh

LAYOUT = "ortho6"


def check_layout(num_views: int, checkpoint: Path) -> None:
    """Raise UserError unless a pipeline makes as many views as the layout that meshes need."""
    needed = len(view_layout(LAYOUT))
    if num_views != needed:
        raise UserError(
            f"{checkpoint} makes {num_views} views, meshes are made of the {needed} of {LAYOUT}: "
            f"train it on samples rendered with layout={LAYOUT}"
        )


def check_outputs(out: str, seeds: Sequence[int], options: ExportOptions) -> dict[int, Path]:
    """Return the output path of every seed, after making sure that it can be written.

    Args:
        out: path, or pattern with {seed} in it.
        seeds: one for each result.
        options: what is written.

    Raises:
        UserError: the suffix is not known, several results share a path, or the folder cannot be
            written.
    """
    if len(seeds) < 1:
        raise UserError("num must be at least 1: it is how many results are made")
    asked = "" if options.format == "mesh" else f" for format={options.format}"
    return _writable_paths("out", out, seeds, options.suffixes, asked)


def check_pictures(views: str | None, outputs: dict[int, Path]) -> dict[int, Path]:
    """Return the path of every result's picture, empty without `views`, made sure of like `out`.

    Raises:
        UserError: it is no PNG, several results share it, or it cannot be written.
    """
    if views is None:
        return {}
    pictures = _writable_paths("views", views, list(outputs), (".png",))
    textures = {path.with_suffix(".png") for path in outputs.values() if path.suffix == ".obj"}
    if shared := textures & set(pictures.values()):
        raise UserError(
            f"views={views}: {shared.pop()} is where the texture of the .obj goes: name another"
        )
    return pictures


def _writable_paths(
    key: str, pattern: str, seeds: Sequence[int], suffixes: Sequence[str], asked: str = ""
) -> dict[int, Path]:
    """Return the path of every seed, `{seed}` filled in, each of which can be written."""
    if Path(pattern).suffix.lower() not in suffixes:
        known = suffixes[0] if len(suffixes) == 1 else f"one of {', '.join(suffixes)}"
        raise UserError(f"{key}={pattern}: the suffix must be {known}{asked}")
    if len(seeds) > 1 and "{seed}" not in pattern:
        raise UserError(f"{key}={pattern}: {len(seeds)} results need {{seed}} in the name")
    paths = {seed: Path(pattern.replace("{seed}", str(seed))) for seed in seeds}
    for path in paths.values():
        _check_writable(path)
    return paths


def _check_writable(path: Path) -> None:
    """Raise UserError unless a file can be written at `path`; tried, since root passes any test."""
    probe = path.with_name(path.name + ".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = error.strerror
    else:
        reason = "it is a folder" if path.is_dir() else ""
    if reason:
        raise UserError(f"{path} cannot be written ({reason}): give a file in a writable folder")


def generate_from_prompt(
    prompt: str,
    outputs: dict[int, Path],
    checkpoint: Path,
    *,
    sampling: Sampling,
    image: Path | None = None,
    views: str | None,
    options: ExportOptions,
    device: str,
    mesh: Path | None = None,
) -> None:
    """Generate one result per seed and write it.

    Args:
        prompt: what to make; may be empty.
        outputs: path by seed.
        checkpoint: pipeline folder.
        sampling: how the flow is integrated.
        image: of what is to be made: a file, or a folder of several; see `fit_reference`.
        views: where to draw the 2.5D images, as PNG; {seed} is filled in.
        options: what is written.
        device: of the networks and of the baking: `auto`, `cpu` or `cuda`.
        mesh: file of a mesh to be textured, in whose frame results are; None: shapes are made, too.
    """
    pictures = check_pictures(views, outputs)
    for path in (*outputs.values(), *pictures.values()):
        if any(given is not None and given.resolve() == path.resolve() for given in (mesh, image)):
            raise UserError(f"{path} is what is read: write the result under another name")
    pictured = [] if image is None else read_references(image)
    where = inference_device(device)
    given = None if mesh is None else GivenMesh.load(mesh, where)
    generator = TextTo25D.from_pretrained(checkpoint).to(where)
    if unknown := generator.text_encoder.unknown_words(prompt):
        print(
            f"warning: no training caption held {', '.join(unknown)}: the model ignores what it "
            f"does not know ({checkpoint}/denoiser/vocabulary.json lists what it knows)",
            file=sys.stderr,
        )
    check_layout(generator.codec.spec.num_views, checkpoint)
    cameras = view_layout(LAYOUT)
    references = [fit_reference(each, generator.codec.image_px) for each in pictured]
    hit, geometry, frame = None, None, IN_WORLD
    if given is None:
        settings = {"num_faces": options.faces, "device": where}
        make: MeshMaker = Reconstructor.from_pretrained(checkpoint, **settings)
    else:
        make, frame = given, given.frame
        shape, hit = given.geometry(cameras, generator.codec.image_px)
        geometry = [shape]
    about = {"prompt": prompt, **asdict(sampling), "licence": None}
    about["model_sha256"] = model_digest(checkpoint)
    if image is not None:
        about |= {"image": image.name, "image_sha256": images_digest(image)}
    if mesh is not None:
        about |= {"given_mesh": mesh.name, "given_mesh_sha256": file_digest(mesh)}
    failed = []
    for seed, path in outputs.items():  # one at a time: memory does not grow with their number
        with tqdm(total=sampling.steps, desc="sample", unit="step") as bar:

            def advance(done: int, total: int, bar: tqdm = bar) -> None:
                bar.total = total
                bar.update(done - bar.n)

            asked = {"references": [references], "geometry": geometry, "progress": advance}
            [images] = generator([prompt], [seed], **asked, **asdict(sampling)).cpu()
        if pictures:
            draw_images(images, pictures[seed])
        try:
            own = about | {"seed": seed}
            report = export(images, cameras, hit, path, make, options, own, frame)
        except UserError as error:
            if len(outputs) == 1:
                raise
            failed.append(f"seed {seed}: {error}")
            print(f"{path} was not made: {error}", file=sys.stderr)
            continue
        print(f"{path}\n  {report}")
    if failed:
        raise UserError(f"{len(failed)} of {len(outputs)} results were not made; {failed[0]}")


def rebuild_images(
    sample: dict[str, Any],
    meta_json: bytes,
    outputs: dict[int, Path],
    checkpoint: Path | None,
    *,
    views: str | None,
    options: ExportOptions,
    device: str,
) -> None:
    """Rebuild one rendered sample, in the source asset's frame.

    Args:
        sample: as `data_pipeline.loading` decodes it.
        meta_json: its metadata.
        outputs: one path.
        checkpoint: pipeline folder with a refiner-decoder; None for the classical method.
        views: where to draw the sample's 2.5D images, as PNG.
        options: what is written.
        device: of the network and of the baking: `auto`, `cpu` or `cuda`.
    """
    pictures = check_pictures(views, outputs)
    settings = {"num_faces": options.faces, "device": inference_device(device)}
    if checkpoint is None:
        reconstruct = Reconstructor.classical(**settings)
    else:
        reconstruct = Reconstructor.from_pretrained(checkpoint, **settings)
    meta = json.loads(meta_json)
    cameras = layout_cameras(meta)
    frame = SourceFrame(scale=meta["scale"], offset=tuple(meta["offset"]))
    [(seed, path)] = outputs.items()
    if pictures:
        draw_images(sample["images"], pictures[seed])
    about = {key: meta[key] for key in ("uid", "licence", "author")}
    about["model_sha256"] = None if checkpoint is None else model_digest(checkpoint)
    images, hit = sample["images"], sample["hit"]
    report = export(images, cameras, hit, path, reconstruct, options, about, frame)
    print(f"{path}\n  {report}")


def draw_images(images: Float[Tensor, "m v 3 h w"], path: Path) -> None:
    """Draw 2.5D images in [-1, 1] as a PNG: a row per modality, a column per view."""
    rows = torch.cat([torch.cat(list(modality), dim=-1) for modality in images], dim=-2)
    pixels = ((rows.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8).permute(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels.numpy())).save(path)
