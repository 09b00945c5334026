"""Pack a cache of latents into the one small file that benchmarks/adaptation.py reads.

    python encode.py shards=SHARDS autoencoder=AUTOENCODER out=LATENTS packing=2
    python benchmarks/adaptation_data.py LATENTS DATA.npz.xz

Every asset gives its rgb views; only those that are adapted to or validated on give normals and
coords too. Latents are rounded to 1/12 of their standard deviation (an error of .024) and cut at
10.5 of them, so that 800 assets of 64 px are 5 MB.
"""

import argparse
import io
import json
import lzma
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data_pipeline.loading.samples import LatentDataset
from modules.latents.cache import read_cache

STEPS_PER_STD = 12


def order(captions: Sequence[str], num_validation: int, num_adaptation: int) -> list[int]:
    """Return which assets are kept: validation first, then adaptation, then the others.

    An asset of a caption that is validated on is left out of the rest, so that what validation asks
    for is a combination of category, colour and pattern that no training ever showed.
    """
    shuffled = np.random.default_rng(0).permutation(len(captions)).tolist()
    validation, others = shuffled[:num_validation], shuffled[num_validation:]
    held_back = {captions[i] for i in validation}
    others = [i for i in others if captions[i] not in held_back]
    if len(others) < num_adaptation:
        raise SystemExit(f"{len(captions)} assets are too few: lower --validation or --adaptation")
    return validation + others


def pack(latents: Path, out: Path, num_validation: int, num_adaptation: int) -> None:
    """Write the file."""
    dataset, vocabulary = LatentDataset(latents, keep_decoded=False), read_cache(latents)
    samples = [dataset[0, i] for i in range(len(dataset))]
    kept = order([each["caption"] for each in samples], num_validation, num_adaptation)
    rounded = [
        (samples[i]["latents"].numpy() * STEPS_PER_STD).round().clip(-127, 127).astype(np.int8)
        for i in kept
    ]
    about = {
        "captions": [samples[i]["caption"] for i in kept],
        "vocabulary": vocabulary["vocabulary"],
        "num_validation": num_validation,
        "num_adaptation": num_adaptation,
        "steps_per_std": STEPS_PER_STD,
    }
    file = io.BytesIO()
    np.savez(
        file,
        about=np.frombuffer(json.dumps(about).encode(), np.uint8),
        rgb=np.stack([each[0] for each in rounded]),
        geometry=np.stack([each[1:] for each in rounded[: num_validation + num_adaptation]]),
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_bytes(lzma.compress(file.getvalue(), preset=6))
    print(f"{len(kept)} assets, {out.stat().st_size / 1e6:.2f} MB: {out}")


def main(arguments: Sequence[str] | None = None) -> None:
    """Pack."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("latents", type=Path, help="folder that encode.py wrote, with packing=2")
    parser.add_argument("out", type=Path, help="file to write")
    parser.add_argument("--validation", type=int, default=64, help="assets held back")
    parser.add_argument("--adaptation", type=int, default=128, help="assets with 2.5D latents")
    options = parser.parse_args(arguments)
    pack(options.latents, options.out, options.validation, options.adaptation)


if __name__ == "__main__":
    main()
