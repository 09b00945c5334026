"""Ask a trained pipeline for unseen combinations, and see whether their colour comes out.

python benchmarks/prompt_colours.py runs/demo/pipeline runs/demo/shards [COUNT] [GUIDANCE] [PNG]

A prompt is a category in a colour that no training sample shows it in. The answer is the named
colour that most foreground pixels are nearest to, in CIELAB, over all generated views; on the true
images of 46 plain procedural assets this finds the right name 45 times. Nothing judges the shape:
look at the picture (rgb views of one prompt a row).
"""

import random
import sys
from pathlib import Path

import cv2
import numpy as np
import torch
from tqdm import tqdm

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "scripts"))

from demo_prompts import learned_captions  # noqa: E402

from data_pipeline.sources.patterns import COLOURS, caption  # noqa: E402
from data_pipeline.sources.shapes import CATEGORIES  # noqa: E402
from modules.metrics.composition import dominant_colour  # noqa: E402
from modules.pipelines.generation import TextTo25D  # noqa: E402

STEPS, BATCH = 20, 8


def named_colour(images: np.ndarray) -> str:
    """Return the colour that most foreground pixels of images (m v 3 h w) are nearest to."""
    foreground = np.linalg.norm(images[1], axis=1) > 0.5
    return dominant_colour(np.moveaxis(images[0], 1, -1) / 2.0 + 0.5, foreground, COLOURS)


def unseen(captions: list[str], count: int) -> list[tuple[str, str]]:
    """Return category and colour of combinations that no caption shows, of learned categories."""
    heads = {text.split(" with ")[0] for text in captions}
    found = [
        (category, colour)
        for category in CATEGORIES
        for colour in COLOURS
        if caption(category, colour, "plain") not in heads
        and any(text.endswith(f" {category}") for text in heads)
    ]
    return random.Random(0).sample(found, min(count, len(found)))


def main(pipeline: str, shards: str, count: int = 32, guidance: float = 3.0, png: str = "") -> None:
    """Print a line per prompt and the share of right colours."""
    prompts = unseen(learned_captions(Path(shards)), count)
    generate = TextTo25D.from_pretrained(Path(pipeline))
    images = []
    for start in tqdm(range(0, len(prompts), BATCH), desc="generate", delay=5):
        part = prompts[start : start + BATCH]
        texts = [caption(category, colour, "plain") for category, colour in part]
        seeds = list(range(start, start + len(part)))
        images.append(generate(texts, seeds, steps=STEPS, guidance=guidance))
    made = torch.cat(images).numpy()
    found = [named_colour(sample) for sample in made]
    for (category, colour), name in zip(prompts, found, strict=True):
        print(f"{caption(category, colour, 'plain'):24} {name:8} {'' if name == colour else 'x'}")
    right = sum(name == colour for (_, colour), name in zip(prompts, found, strict=True))
    print(f"{right} of {len(found)} unseen combinations have the colour asked for")
    if png:
        rows = [np.concatenate(list(np.moveaxis(sample[0], 1, -1)), axis=1) for sample in made]
        picture = np.rint((np.concatenate(rows) / 2.0 + 0.5) * 255).astype(np.uint8)
        cv2.imwrite(png, picture[..., ::-1])


if __name__ == "__main__":
    arguments = sys.argv[1:]
    if len(arguments) < 2:
        sys.exit(__doc__)
    kinds = (str, str, int, float, str)
    main(*(kind(value) for kind, value in zip(kinds, arguments, strict=False)))
