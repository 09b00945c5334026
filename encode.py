"""Encode rendered samples to latents: python encode.py shards=DIR autoencoder=DIR out=DIR.

With conditioner=qwen3 (or flux1, sd3) the captions too, into out/text: conditioner=cached reads it.
With vision=siglip (or dinov2, clip) a vision encoder's tokens of every view go with its latents.
Training the denoiser then reads latents only. A finished cache of the same inputs is left as it is,
and an interrupted command goes on where it stopped.
"""

import json
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from data_pipeline.command_line import run
from data_pipeline.contract import MODALITIES, UserError

STATISTICS = ("set", "autoencoder")


def main(config: DictConfig) -> None:
    """Encode a set of image shards, and its captions where a text model is named."""
    encode_latents(config)
    if "conditioner" in config:
        encode_text(config)


def encode_text(config: DictConfig) -> None:
    """Embed the captions of a set of latent shards, those that are not embedded yet."""
    import torch
    from hydra.utils import instantiate

    from data_pipeline.loading.samples import LatentDataset
    from modules.networks.text_backbones import PretrainedText
    from modules.networks.text_cache import write_text_cache
    from modules.pipelines.device import inference_device

    out, device = Path(config.out), inference_device(config.device)
    model = instantiate(config.conditioner, _convert_="object")()
    if not isinstance(model, PretrainedText):
        raise UserError("conditioner: choose one of qwen3, flux1, sd3; others are trained")
    torch.nn.Module.to(model, device)
    dataset = LatentDataset(out, keep_decoded=False)
    captions = {dataset[(i, i)]["caption"] for i in range(len(dataset))}
    new = write_text_cache(out / "text", model, captions, config.batch_size)
    cut = f", {len(model.cut)} of them cut at {model.length} tokens" if model.cut else ""
    print(f"{out / 'text'}: {new} captions embedded{cut}")


def encode_latents(config: DictConfig) -> None:
    """Encode a set of image shards into a set of latent shards."""
    # torch and diffusers take seconds to import; a mistyped key is told before that.
    import torch
    from hydra.utils import instantiate

    from data_pipeline.loading.samples import decode_sample
    from data_pipeline.shards.manifest import MANIFEST_NAME, ShardSet
    from data_pipeline.shards.writer import ShardWriter
    from modules.latents.autoencoder_files import load_autoencoder
    from modules.latents.cache import cache_members, measure_spec, own_spec, read_cache
    from modules.latents.codec import encode_packed
    from modules.latents.modality_affine import fit_modalities
    from modules.latents.raw_parts import RawLatents, RawPart
    from modules.latents.spec import encoder_fingerprint
    from modules.networks.text_encoder import Vocabulary
    from modules.networks.weights_fingerprint import identity
    from modules.pipelines.device import inference_device

    shard_set, out = ShardSet(Path(config.shards), "samples"), Path(config.out)
    autoencoder = load_autoencoder(config.autoencoder)
    name, packing = encoder_fingerprint(autoencoder), config.packing
    if config.statistics not in STATISTICS:
        raise UserError(f"statistics={config.statistics}: choose one of {', '.join(STATISTICS)}")
    inputs = {"packing": packing, "autoencoder": name, "source_manifest_sha256": shard_set.sha256}
    device = inference_device(config.device)
    vision: Any = None
    if "vision" in config:
        vision = torch.nn.Module.to(instantiate(config.vision, _convert_="object")(), device)
        inputs["vision"] = identity(vision.config)
    inputs["coverage"] = True  # caches of before it was stored are made anew
    if config.statistics != "set":
        inputs["statistics"] = config.statistics
        inputs["modality_affine"] = config.modality_affine
    if (out / MANIFEST_NAME).is_file() and read_cache(out).get("inputs") == inputs:
        print(f"{out}: encoded already")
        return
    size = config.batch_size
    torch.nn.Module.to(autoencoder, device)
    done = RawLatents(out.parent / f".{out.name}.encoding", {**inputs, "batch_size": size})
    for start in tqdm(range(0, len(shard_set), size), desc="encode", unit="batch", delay=5):
        if done.has(start):
            continue
        members = [shard_set.read(i) for i in range(start, min(start + size, len(shard_set)))]
        samples = [decode_sample(each) for each in members]
        images = torch.stack([sample["images"] for sample in samples]).to(device)
        hit = torch.stack([sample["hit"] for sample in samples]).float()
        metas = [json.loads(each["meta.json"]) for each in members]
        uids, captions = ([meta[key] for meta in metas] for key in ("uid", "captions"))
        latents = encode_packed(autoencoder, images, packing)
        cells = latents.shape[-2], latents.shape[-1]
        coverage = torch.nn.functional.adaptive_avg_pool2d(hit, cells)
        rgb = images[:, MODALITIES.index("rgb")]
        tokens = None if vision is None else vision.embed(rgb).half()
        done.write(start, RawPart(uids, captions, latents, coverage, tokens))
    if config.statistics == "autoencoder":
        own = own_spec(done, autoencoder)
        spec = fit_modalities(done, own, apply=config.modality_affine)
    else:
        spec = measure_spec(done, packing=packing, autoencoder=name)
    texts = (text for part in done for sample in part.captions for text in sample)
    vocabulary = Vocabulary.from_captions(texts, config.max_words)
    with ShardWriter(out, "latents", config.samples_per_shard) as writer:
        for uid, members in cache_members(done.read(vision=True), spec):
            writer.add(uid, members)
        extra = {"latent_spec": spec.to_json(), "vocabulary": vocabulary.words, "inputs": inputs}
        if vision is not None:
            extra["vision"] = vision.about
        writer.finish({"kind": "latents", **extra})
    done.remove()


if __name__ == "__main__":
    run("encode", main)
