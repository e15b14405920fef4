"""The baseline that speed is measured against, and the events it is measured on.

One EM update as textbooks and the usual public libraries do it on a CPU: Joseph's method with
the TOF weight from two error functions a plane, a forward pass and a back pass, events as they
were acquired. Compiled with the same flags and run on the same number of threads as stillpet's
kernels; each thread projects back into an image of its own, so there are no atomics either.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray

from listmode.events import EventBatch
from listmode.scanner import Scanner
from recon.image import Grid

F32 = NDArray[np.float32]


def body_events(scanner: Scanner, n_events: int, seed: int = 1) -> EventBatch:
    """Draw events of a body, 30 × 20 cm and as long as the scanner, in random order.

    Decays are even over the ellipse, directions isotropic within the acceptance; ends are the
    crystals nearest to where the line meets the detector.
    """
    rng = np.random.default_rng(seed)
    p = scanner.crystal_position_mm.astype(np.float64)
    slots = np.unique(scanner.crystal_ring)
    n_around = scanner.n_crystals // slots.size
    z_rings = p[::n_around, 2]
    angle = np.arctan2(p[:n_around, 1], p[:n_around, 0])
    order = np.argsort(angle)
    edges = (angle[order][1:] + angle[order][:-1]) / 2
    z_edges = (z_rings[1:] + z_rings[:-1]) / 2
    radius = float(np.hypot(p[0, 0], p[0, 1]))
    half = scanner.axial_length_mm / 2
    parts: list[tuple[NDArray[Any], ...]] = []
    n_found = 0
    while n_found < n_events:
        n = min(2 * n_events, 1_000_000)  # a share at a time: memory stays flat
        r, phi = np.sqrt(rng.random(n)), rng.random(n) * 2 * np.pi
        x, y = 150 * r * np.cos(phi), 100 * r * np.sin(phi)
        z = rng.uniform(-half, half, n)
        cos = rng.uniform(-1, 1, n)
        psi = rng.random(n) * 2 * np.pi
        sin = np.sqrt(1 - cos**2)
        ux, uy = np.cos(psi), np.sin(psi)
        along, square = x * ux + y * uy, x**2 + y**2
        root = np.sqrt(along**2 - square + radius**2)
        ends = []
        for t in (-along - root, -along + root):
            ez = z + t * cos / np.maximum(sin, 1e-9)
            place = order[np.searchsorted(edges, np.arctan2(y + t * uy, x + t * ux))]
            ends.append((t, ez, np.searchsorted(z_edges, ez) * n_around + place))
        inside = (np.abs(ends[0][1]) < half) & (np.abs(ends[1][1]) < half)
        a, b = ends[0][2], ends[1][2]
        length = (ends[1][0] - ends[0][0]) / np.maximum(sin, 1e-9)
        # Along the LOR from its middle towards b.
        s = -ends[0][0] / np.maximum(sin, 1e-9) - length / 2
        s = s + rng.normal(0, scanner.tof.sigma_mm, n)
        k = np.floor(s / scanner.tof.bin_width_mm + scanner.tof.n_bins / 2).astype(np.int64)
        good = inside & (k >= 0) & (k < scanner.tof.n_bins)
        a, b, k = a[good], b[good], k[good]
        accepted = scanner.accepts(a, b) & (a != b)
        parts.append((a[accepted], b[accepted], k[accepted]))
        n_found += int(accepted.sum())
    a, b, k = (np.concatenate(c)[:n_events] for c in zip(*parts, strict=True))
    return EventBatch.from_pairs(a, b, k, scanner.tof.n_bins)


@njit(cache=True, nogil=True, fastmath=True, error_model="numpy")
def _project(image, start, stop, centre_mm, sigma_mm, width_mm, n_sigma, origin, size, out, weights, is_back, first, last):  # type: ignore[no-untyped-def]  # noqa: E501, C901  # fmt: skip
    """Project events ``[first, last)`` forward into ``out`` or back into ``image``."""
    shape = image.shape
    strides = (shape[1] * shape[2], shape[2], 1)
    flat = image.reshape(-1)
    root2 = np.float32(math.sqrt(2.0) * sigma_mm)
    half_width = np.float32(width_mm / 2)
    reach = np.float32(n_sigma * sigma_mm + width_mm / 2)
    for e in range(first, last):
        d0, d1, d2 = (
            stop[e, 0] - start[e, 0], stop[e, 1] - start[e, 1], stop[e, 2] - start[e, 2]
        )  # fmt: skip
        length = math.sqrt(d0 * d0 + d1 * d1 + d2 * d2)
        c0, c1, c2 = abs(d0), abs(d1), abs(d2)
        if c0 >= c1 and c0 >= c2:
            p, u, v = 0, 1, 2
        elif c1 >= c2:
            p, u, v = 1, 0, 2
        else:
            p, u, v = 2, 0, 1
        dp = stop[e, p] - start[e, p]
        step = size[p] * length / abs(dp)
        slope_u = (stop[e, u] - start[e, u]) / dp
        slope_v = (stop[e, v] - start[e, v]) / dp
        sign = np.float32(1.0) if dp > 0 else np.float32(-1.0)
        middle = np.float32(0.5) * (start[e, p] + stop[e, p])
        centre = middle + centre_mm[e] * dp / length
        reach_p = reach * abs(dp) / length
        i0 = max(math.ceil((centre - reach_p - origin[p]) / size[p]), 0)
        i1 = min(math.floor((centre + reach_p - origin[p]) / size[p]), shape[p] - 1)
        total = np.float32(0.0)
        for i in range(i0, i1 + 1):
            at = origin[p] + np.float32(i) * size[p]
            fu = (start[e, u] + (at - start[e, p]) * slope_u - origin[u]) / size[u]
            fv = (start[e, v] + (at - start[e, p]) * slope_v - origin[v]) / size[v]
            ju, jv = math.floor(fu), math.floor(fv)
            fu -= np.float32(ju)
            fv -= np.float32(jv)
            s = (at - middle) * sign * length / abs(dp) - centre_mm[e]
            tof = np.float32(0.5) * (
                math.erf((s + half_width) / root2) - math.erf((s - half_width) / root2)
            )
            w = step * tof
            if is_back:
                w *= weights[e]
            for du in range(2):
                ku = ju + du
                if ku < 0 or ku >= shape[u]:
                    continue
                wu = w * (fu if du else np.float32(1.0) - fu)
                for dv in range(2):
                    kv = jv + dv
                    if kv < 0 or kv >= shape[v]:
                        continue
                    wv = wu * (fv if dv else np.float32(1.0) - fv)
                    j = i * strides[p] + ku * strides[u] + kv * strides[v]
                    if is_back:
                        flat[j] += wv
                    else:
                        total += wv * flat[j]
        if not is_back:
            out[e] = total


class Textbook:
    """One EM update, the plain way."""

    def __init__(
        self, scanner: Scanner, grid: Grid, events: EventBatch, n_sigma: float = 3.0
    ) -> None:
        p = scanner.crystal_position_mm
        self.start, self.stop = p[events.crystal_a], p[events.crystal_b]
        self.centre_mm = scanner.tof.bin_centre_mm().astype(np.float32)[events.tof_bin]
        self.kernel = (
            np.float32(scanner.tof.sigma_mm), np.float32(scanner.tof.bin_width_mm),
            np.float32(n_sigma),
        )  # fmt: skip
        self.origin = np.array(grid.origin_mm, np.float32)
        self.size = np.array(grid.voxel_mm, np.float32)
        self.grid = grid

    def _run(self, images: list[F32], out: F32, weights: F32, is_back: bool) -> None:
        n, threads = len(out), len(images)
        edges = np.linspace(0, n, threads + 1).astype(int)

        def work(k: int) -> None:
            _project(
                images[k], self.start, self.stop, self.centre_mm, *self.kernel, self.origin,
                self.size, out, weights, is_back, int(edges[k]), int(edges[k + 1]),
            )  # fmt: skip

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))

    def forward(self, image: F32, threads: int = 2) -> F32:
        """Project forward."""
        out = np.zeros(len(self.start), np.float32)
        self._run([image] * threads, out, out, is_back=False)
        return out

    def back(self, weights: F32, threads: int = 2) -> F32:
        """Project back."""
        images = [np.zeros(self.grid.shape, np.float32) for _ in range(threads)]
        self._run(images, weights, weights, is_back=True)
        for other in images[1:]:
            images[0] += other
        return images[0]

    def update(self, image: F32, additive: F32, threads: int = 2) -> F32:
        """Project, take the ratio, project back."""
        ratio = np.float32(1) / (self.forward(image, threads) + additive)
        return self.back(ratio, threads)
