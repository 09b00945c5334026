"""Find the finished samples of a staging folder whose files are damaged."""

import os
from concurrent.futures import ThreadPoolExecutor

from tqdm import tqdm

from data_pipeline.contract import UserError
from data_pipeline.staging import Staging


def verify_samples(staging: Staging) -> None:
    """Read every finished sample and print the paths of those that are damaged.

    Raises:
        UserError: there is none, or some are damaged.
    """
    uids = staging.done_uids()
    if not uids:
        raise UserError(f"{staging.root} holds no finished sample: render first")
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        sound = tqdm(pool.map(staging.is_sound, uids), "verify", len(uids), unit="sample", delay=2)
        damaged = [uid for uid, is_sound in zip(uids, sound, strict=True) if not is_sound]
    for uid in damaged:
        print(staging.samples.path(uid))
    if damaged:
        raise UserError(
            f"{len(damaged)} of {len(uids)} finished samples are damaged, listed above: delete "
            "these files, and run render again"
        )
    print(f"{staging.root}: {len(uids)} finished samples, all sound")
