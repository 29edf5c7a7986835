"""Per-pair measures of an arm, their means with bootstrap intervals, and Fréchet distances. NumPy alone."""

from __future__ import annotations

import numpy as np

DRAWS, SEED = 10_000, 17

#: measure -> what it is
MEASURES = {
    "identity": "mean cosine of the frames' faces to the reference's, by embedder `face`",
    "same": "share of frames at or above the embedder's same-person threshold",
    "detected": "share of frames in which a judge made for it sees a face",
    "attributes": "share of the caption's six attributes that the probe finds in the clip",
    "person": "share of six traits of the person (hair, beard, skin, ...) found in the clip",
    "uneven": "mean distance of a frame from the mean of its neighbours, grey levels",
    "motion": "mean distance of a frame from the next, grey levels",
    "clipped": "share of values within 2 of black or white",
}


def split(logits: np.ndarray, heads: dict[str, list[str]]) -> dict[str, np.ndarray]:
    """(n, sum of classes) -> head -> (n,) best class."""
    found, at = {}, 0
    for head, words in heads.items():
        found[head] = logits[:, at : at + len(words)].argmax(1)
        at += len(words)
    return found


def measures(data: dict, truth: dict, about: dict, same: float) -> dict[str, np.ndarray]:
    """measure -> (n,) of the pairs in data["pairs"]. truth: "reference" embeddings (all pairs, 128), "scene" and
    "person" labels with their heads. Also "stranger": the cosine to the next pair's reference, and a hit of each head.
    """
    pairs, reference = data["pairs"], truth["reference"]
    face = data["face"].astype(np.float64)
    own = np.einsum("nfd,nd->nf", face, reference[pairs])
    seen = split(data["probe"], about["heads"])
    seen |= split(data["traits"], about["trait_heads"])
    hit = {h: seen[h] == truth["scene"][pairs, i] for i, h in enumerate(truth["scene_heads"])}
    kept = {h: seen[h] == truth["person"][pairs, i] for i, h in enumerate(truth["person_heads"])}
    return {
        "identity": own.mean(1), "same": (own >= same).mean(1), "detected": (data["seen"] > 0).mean(1),
        "stranger": np.einsum("nfd,nd->n", face, reference[(pairs + 1) % len(reference)]) / face.shape[1],
        "attributes": np.mean(list(hit.values()), 0), "person": np.mean(list(kept.values()), 0),
        **{k: data[k].astype(np.float64) for k in ("uneven", "motion", "clipped")},
        **{f"hit {k}": v.astype(np.float64) for k, v in (hit | kept).items()},
    }  # fmt: skip


def interval(values: np.ndarray) -> list[float]:
    """[mean, 2.5 %, 97.5 %] of the mean, by a bootstrap over pairs."""
    n = len(values)
    draws = np.random.default_rng(SEED).integers(0, n, (DRAWS, n))
    return [float(values.mean()), *np.percentile(values[draws].mean(1), [2.5, 97.5]).tolist()]


def paired(a: tuple[np.ndarray, np.ndarray], b: tuple[np.ndarray, np.ndarray]) -> list[float]:
    """`interval` of a - b over the pairs that both have; each is (pairs, values)."""
    _, i, j = np.intersect1d(a[0], b[0], return_indices=True)
    return interval(a[1][i] - b[1][j])


# ---- distances between distributions ----


def moments(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    x = x.astype(np.float64)
    return x.mean(0), np.cov(x, rowvar=False) if len(x) > 1 else np.zeros((x.shape[1], x.shape[1]))


def root(matrix: np.ndarray) -> np.ndarray:
    values, vectors = np.linalg.eigh(matrix)
    return (vectors * np.sqrt(np.clip(values, 0, None))) @ vectors.T


class Frechet:
    """Distance of Gaussians fitted to features: |m - m'|^2 + tr(C + C' - 2 (C C')^(1/2)), to a fixed set."""

    def __init__(self, features: np.ndarray):
        self.mean, cov = moments(features)
        self.trace, self.root = np.trace(cov), root(cov)

    def __call__(self, features: np.ndarray) -> float:
        mean, cov = moments(features)
        cross = np.sqrt(np.clip(np.linalg.eigvalsh(self.root @ cov @ self.root), 0, None)).sum()
        return float(((mean - self.mean) ** 2).sum() + self.trace + np.trace(cov) - 2 * cross)

    def difference(self, a: tuple, b: tuple, draws: int = 100) -> list[float]:
        """[difference, 2.5 %, 97.5 %] of the distances of two sets (pairs, (n, ..., d) features), pairs drawn alike."""
        both, i, j = np.intersect1d(a[0], b[0], return_indices=True)
        x, y = a[1][i], b[1][j]
        generator, found = np.random.default_rng(SEED), []
        for _ in range(draws):
            k = generator.integers(0, len(both), len(both))
            found.append(self(_flat(x[k])) - self(_flat(y[k])))
        return [self(_flat(x)) - self(_flat(y)), *np.percentile(found, [2.5, 97.5]).tolist()]


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])
