"""Encode rendered samples to latents: python encode.py shards=DIR autoencoder=DIR out=DIR.

Training the denoiser then reads latents only. A finished cache of the same inputs is left as it is.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from omegaconf import DictConfig
from tqdm import tqdm

from data_pipeline.command_line import run
from data_pipeline.loading.samples import collate, decode_sample
from data_pipeline.shards.manifest import MANIFEST_NAME, ShardSet
from data_pipeline.shards.writer import ShardWriter
from modules.latents.cache import encode_set, read_cache
from modules.latents.codec import load_autoencoder
from modules.latents.spec import fingerprint
from modules.networks.text_encoder import Vocabulary


def main(config: DictConfig) -> None:
    """Encode a set of image shards into a set of latent shards."""
    shard_set, out = ShardSet(Path(config.shards), "samples"), Path(config.out)
    autoencoder = load_autoencoder(Path(config.autoencoder))
    inputs = {"packing": config.packing, "autoencoder": fingerprint(autoencoder)}
    inputs["source_manifest_sha256"] = shard_set.sha256
    if (out / MANIFEST_NAME).is_file() and read_cache(out).get("inputs") == inputs:
        print(f"{out}: encoded already")
        return
    captions: dict[str, list[str]] = {}

    def batches() -> Iterator[dict[str, Any]]:
        for start in tqdm(range(0, len(shard_set), config.batch_size), desc="encode", delay=5):
            samples = []
            for i in range(start, min(start + config.batch_size, len(shard_set))):
                members = shard_set.read(i)
                captions[shard_set.uids[i]] = json.loads(members["meta.json"])["captions"]
                samples.append({"captions": captions[shard_set.uids[i]], **decode_sample(members)})
            yield collate(samples)

    spec, encoded = encode_set(autoencoder, batches, packing=config.packing)  # one pass is over
    texts = (text for sample in captions.values() for text in sample)
    vocabulary = Vocabulary.from_captions(texts, config.max_words)
    with ShardWriter(out, "latents", config.samples_per_shard) as writer:
        for uid, members in encoded:
            writer.add(uid, members)
        extra = {"latent_spec": spec.to_json(), "vocabulary": vocabulary.words, "inputs": inputs}
        writer.finish({"kind": "latents", **extra})


if __name__ == "__main__":
    run("encode", main)
