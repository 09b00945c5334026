"""Figures of sets of images, from features: two sets with each other, or images with their texts.

Every metric takes batches of features, so that one pass of a network serves all of its figures, and
may be updated by many processes, each with its own share of the images. Formulas: docs/metrics.md.
"""

from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torchmetrics import MeanMetric, Metric
from torchmetrics.image.kid import poly_mmd
from torchmetrics.utilities.data import dim_zero_cat

from data_pipeline.contract import UserError

CMMD_SIGMA, CMMD_SCALE = 10.0, 1000.0
"""Of the Gaussian kernel; a factor that makes the figure readable (Jayasumana et al., 2024)."""

KID_SUBSETS = 100


class FrechetDistance(Metric):
    """Distance of the Gaussians that fit two sets of features: FID of Inception, FD of DINOv2.

    Heusel et al. (2017). Only sums are kept. With fewer images than features the covariances lack
    rank, and the figure is biased upwards.

    Args:
        num_features: length of a feature.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False

    count: Tensor
    total: Tensor
    products: Tensor

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        shapes = {"count": (), "total": (num_features,), "products": (num_features, num_features)}
        for name, shape in shapes.items():  # of the generated set, and of the real one
            zeros = torch.zeros(2, *shape, dtype=torch.float64)
            self.add_state(name, zeros, dist_reduce_fx="sum")

    def update(self, features: Float[Tensor, "b d"], real: bool) -> None:
        features, row = features.double(), int(real)
        self.count[row] += len(features)
        self.total[row] += features.sum(dim=0)
        self.products[row] += features.T @ features

    def compute(self) -> Tensor:
        _check_count(2, self.count[1], self.count[0])
        count = self.count[:, None, None]
        means = self.total / self.count[:, None]
        outer = means[:, :, None] * means[:, None, :]
        first, second = (self.products - count * outer) / (count - 1.0)
        # The root of A B has the trace of the root of A^1/2 B A^1/2, which is symmetric: faster to
        # decompose, and more exactly.
        values, vectors = torch.linalg.eigh(first)
        root = (vectors * values.clamp(min=0.0).sqrt()) @ vectors.T
        shared = torch.linalg.eigvalsh(root @ second @ root).clamp(min=0.0).sqrt().sum()
        gap = (means[0] - means[1]).square().sum()
        distance = gap + first.trace() + second.trace() - 2.0 * shared
        return distance.clamp(min=0.0)  # below by rounding only


class _TwoSets(Metric):
    """Keeps the features of both sets.

    Args:
        num_features: length of a feature.
    """

    higher_is_better = False
    is_differentiable = False
    full_state_update = False
    real: list[Tensor]
    generated: list[Tensor]

    def __init__(self, num_features: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self._num_features = num_features
        for name in ("real", "generated"):
            self.add_state(name, [], dist_reduce_fx=dim_zero_cat)

    def update(self, features: Float[Tensor, "b d"], real: bool) -> None:
        (self.real if real else self.generated).append(features.double())

    def _sync_dist(self, *args: Any, **kwargs: Any) -> None:
        # Processes exchange shapes first, which must be of one rank: one without images joins in
        # with none of the right width.
        for features in (self.real, self.generated):
            if not features:
                features.append(torch.empty(0, self._num_features, device=self.device).double())
        super()._sync_dist(*args, **kwargs)

    def _sets(self, at_least: int) -> tuple[Float[Tensor, "n d"], Float[Tensor, "m d"]]:
        empty = torch.empty(0, self._num_features)
        real, generated = (
            dim_zero_cat(x if len(x) else [empty]) for x in (self.real, self.generated)
        )
        _check_count(at_least, len(real), len(generated))
        return real, generated


class KernelDistance(_TwoSets):
    """Unbiased squared MMD under the kernel (x·y / d + 1)^3 over subsets: KID of Inception.

    Bińkowski et al. (2018). Subsets are drawn by the seed, so the figure repeats.

    Args:
        num_features: length of a feature.
        subset_size: images of each set in a subset; no set may be smaller.
        seed: of the subsets.
    """

    def __init__(
        self, num_features: int, *, subset_size: int = 1000, seed: int = 0, **kwargs: Any
    ) -> None:
        super().__init__(num_features, **kwargs)
        if subset_size < 2:
            raise UserError(f"kid_subset_size={subset_size} is too small: give at least 2")
        self.subset_size = subset_size
        self.seed = seed

    def compute(self) -> tuple[Tensor, Tensor]:
        """Return mean and standard deviation over the subsets."""
        real, generated = self._sets(self.subset_size)
        generator = torch.Generator().manual_seed(self.seed)
        whole = self.subset_size == len(real) == len(generated)  # every subset is the set
        figures = []
        for _ in range(1 if whole else KID_SUBSETS):
            first, second = (
                x[torch.randperm(len(x), generator=generator)[: self.subset_size].to(x.device)]
                for x in (real, generated)
            )
            figures.append(poly_mmd(first, second))
        return torch.stack(figures).mean(), torch.stack(figures).std(unbiased=False)


class Cmmd(_TwoSets):
    """1000 times the squared MMD of CLIP embeddings under a Gaussian kernel of sigma 10.

    Jayasumana et al. (2024): embeddings have unit length; means run over all pairs, those of an
    image with itself included, so equal sets are at 0.
    """

    def compute(self) -> Tensor:
        real, generated = self._sets(1)
        between = _mean_kernel(real, generated)
        within = _mean_kernel(real, real) + _mean_kernel(generated, generated)
        return (CMMD_SCALE * (within - 2.0 * between)).clamp(min=0.0)  # below by rounding only


class ClipScore(MeanMetric):
    """Mean of 100 max(cos, 0) between an image and its text (Hessel et al., 2021: times 2.5)."""

    def update(self, images: Float[Tensor, "b d"], texts: Float[Tensor, "b d"]) -> None:
        """Take CLIP embeddings, each image's beside that of its own text; any length but 0."""
        cosine = nn.functional.cosine_similarity(images.double(), texts.double(), dim=-1)
        super().update(100.0 * cosine.clamp(min=0.0))


class RPrecision(MeanMetric):
    """Share of images whose own text is the nearest of all candidates.

    An image for which k candidates, its own among them, are equally near counts as 1 / k: what
    guessing among these gives.

    Args:
        candidates: CLIP embeddings of all distinct texts.
    """

    def __init__(self, candidates: Float[Tensor, "k d"], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.candidates = nn.functional.normalize(candidates.double(), dim=-1)

    def update(self, images: Float[Tensor, "b d"], own: Int[Tensor, " b"]) -> None:
        """Take CLIP embeddings of images, and which candidate is each image's own text."""
        similarity = images.double() @ self.candidates.to(images.device).T
        best = similarity.amax(dim=-1, keepdim=True)
        near = similarity >= best - 1e-9 * best.abs().clamp(min=1.0)
        hit = near.gather(1, own[:, None].to(near.device)).squeeze(1)
        super().update(hit.double() / near.sum(dim=-1))


def _mean_kernel(x: Float[Tensor, "n d"], y: Float[Tensor, "m d"]) -> Float[Tensor, ""]:
    """Return the mean of exp(-|x - y|^2 / (2 sigma^2)) over all pairs, by blocks of rows."""
    rows = [
        torch.exp(-torch.cdist(block, y).square() / (2.0 * CMMD_SIGMA**2)).sum()
        for block in x.split(1024)
    ]
    return torch.stack(rows).sum() / (len(x) * len(y))


def _check_count(at_least: int, num_real: int | Tensor, num_generated: int | Tensor) -> None:
    if min(int(num_real), int(num_generated)) < at_least:
        raise UserError(
            f"{int(num_generated)} images against {int(num_real)} reference images are too few for "
            f"a figure that needs {at_least} of each"
        )
