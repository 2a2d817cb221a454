"""Mandible, maxilla, teeth, mouth, throat and neck of the phantom."""

from __future__ import annotations

import numpy as np

from rtsam_jax.data.phantom.geometry import Canvas, capsule, ellipsoid, ribbon, smooth_noise, union

SIDES = (1.0, -1.0)


def arch(width: float, front: float, back: float, n: int = 61) -> np.ndarray:
    """A dental arch in the x-y plane, right end to left end, `[n, 2]` in mm.

    Half an ellipse in front of y = 20 that continues almost straight back to `back`.
    """
    t = np.linspace(-1, 1, n)
    share = np.clip(np.abs(t) / 0.72, 0, 1)
    x = width * np.sin(share * np.pi / 2)
    y = 20 + (front - 20) * np.cos(share * np.pi / 2)
    tail = np.clip((np.abs(t) - 0.72) / 0.28, 0, 1)
    return np.stack([-np.sign(t) * (x + 5 * tail), y + (back - 20) * tail], -1)


MANDIBLE = arch(43.0, 65.0, 2.0)


def _mandible(p: np.ndarray) -> np.ndarray:
    """Signed distance (mm) to the lower jaw without teeth."""
    share = np.abs(np.linspace(-1, 1, len(MANDIBLE)))
    low = -87 + 14 * share**1.5
    d = ribbon(p, MANDIBLE, thickness=11.5, low=low, high=-58 + 4 * share)
    for s in SIDES:
        lean = np.stack([p[0] - 48.5 * s, p[1] - 4 + 0.22 * (p[2] + 44), p[2] + 44])
        q = [np.abs(lean[0]) - 1.5, np.abs(lean[1]) - 12.0, np.abs(lean[2]) - 27.0]
        ramus = np.sqrt(sum(np.maximum(v, 0) ** 2 for v in q)) - 3.2
        ramus = ramus + np.minimum(np.maximum(np.maximum(q[0], q[1]), q[2]), 0)
        d = union(d, ramus, 5)
        d = union(d, capsule(p, (49 * s, -9, -22), (51 * s, -8, -13), 4.0), 4)
        d = union(d, ellipsoid(p, (51 * s, -7, -10), (9, 4.5, 5)), 3)  # condyle
        d = union(d, capsule(p, (48.5 * s, 12, -22), (48 * s, 16, -13), 2.6), 4)  # coronoid
    return d


def paint_jaw(canvas: Canvas, rng: np.random.Generator) -> np.ndarray:
    """Paints the jaws, the teeth and the mouth; returns the distance to the mandible (mm)."""
    frame = canvas.frame
    maxilla = arch(31.0, 69.0, 22.0)
    where = frame.window((-40, 10, -46), (40, 80, -28))
    p = frame.points[(slice(None), *where)]
    n = len(maxilla)
    upper = ribbon(p, maxilla, thickness=11, low=np.full(n, -44.0), high=np.full(n, -29.0))
    canvas.paint(upper, "cortical", where)
    canvas.paint(upper + 2.0, "marrow", where)
    canvas.block("cortical", (0, 44, -33), (27, 22, 2.2), 1.5)  # hard palate
    where = frame.window((-64, -24, -92), (64, 76, -2))
    p = frame.points[(slice(None), *where)]
    mandible = np.full(frame.shape, 60.0, np.float32)
    mandible[where] = local = _mandible(p)
    cortex = rng.uniform(2.0, 3.0) + 0.4 * smooth_noise(rng, local.shape, frame.spacing, 14.0)
    canvas.paint(local, "jaw_cortex", where)
    canvas.paint(local + cortex, "jaw_marrow", where)
    # Trabeculae: the marrow's density varies from place to place.
    inside = np.clip(-(local + cortex) / 2.0, 0, 1)
    if canvas.tissues["tooth"] > 500:
        canvas.value[where] += 70.0 * inside * smooth_noise(rng, local.shape, frame.spacing, 9.0)
    _teeth(canvas, rng, maxilla)
    return mandible


def _teeth(canvas: Canvas, rng: np.random.Generator, maxilla: np.ndarray) -> None:
    """Crowns and roots along both arches; a lost tooth leaves nothing or a soft socket."""
    lost = rng.uniform(0.08, 0.45)  # irradiated jaws miss teeth
    for path, crown, root, reach in (
        (MANDIBLE, (-57.0, -51.0), -70.0, 0.66),
        (maxilla, (-43.0, -48.0), -36.0, 0.66),
    ):
        for share in np.linspace(-reach, reach, 14):
            x, y = (
                float(np.interp(share, np.linspace(-1, 1, len(path)), path[:, k])) for k in (0, 1)
            )
            radius = 3.0 + 1.6 * abs(share) + rng.uniform(-0.3, 0.3)
            if rng.random() < lost:
                if rng.random() < 0.5:
                    canvas.capsule("socket", (x, y, crown[0]), (x, y, root), radius * 0.8)
                continue
            canvas.capsule("jaw_cortex", (x, y, crown[0]), (x, y, root), radius * 0.62)
            canvas.capsule("tooth", (x, y, crown[0]), (x, y, crown[1]), radius)


def paint_neck(canvas: Canvas, rng: np.random.Generator) -> None:
    """Throat, tongue, glands, vessels, spine and the large muscles."""
    for s in SIDES:
        canvas.ellipsoid("fat", (34 * s, 6, -40), (11, 24, 34))  # parapharyngeal space
        canvas.ellipsoid("muscle", (60 * s, 10, -50), (7, 18, 30))  # masseter
        canvas.ellipsoid("muscle", (37 * s, 10, -42), (7, 15, 26))  # medial pterygoid
        canvas.ellipsoid("muscle", (33 * s, 12, -16), (15, 15, 9))  # lateral pterygoid
        canvas.ellipsoid("muscle", (66 * s, 22, 18), (6, 28, 28))  # temporalis
        canvas.ellipsoid("fat", (50 * s, 42, -34), (8, 14, 18))  # cheek
        canvas.ellipsoid("gland", (60 * s, -14, -36), (11, 16, 25))  # parotid
        canvas.ellipsoid("gland", (30 * s, 18, -84), (11, 16, 13))  # submandibular
        canvas.ellipsoid("fat", (36 * s, -14, -95), (20, 22, 60))
        canvas.capsule("muscle", (58 * s, -34, -24), (22 * s, 18, -150), 9.5)  # sternomastoid
        canvas.ellipsoid("muscle", (20 * s, -58, -80), (19, 15, 85))
        canvas.ellipsoid("muscle", (36 * s, -44, -90), (12, 18, 80))
        canvas.capsule("vessel", (25 * s, -2, -150), (21 * s, -4, -18), 3.4)
        canvas.capsule("vessel", (33 * s, -8, -150), (29 * s, -14, -22), 5.2)
        canvas.capsule("muscle", (9 * s, 1, -30), (10 * s, 1, -150), 5.5)  # prevertebral
    canvas.ellipsoid("fat", (0, 30, -92), (20, 22, 9))
    canvas.ellipsoid("muscle", (0, 36, -68), (27, 30, 26))  # tongue and floor of the mouth
    canvas.ellipsoid("mucosa", (0, 42, -54), (28, 26, 15))
    canvas.ellipsoid("muscle", (0, 42, -57), (26, 24, 14))
    canvas.block("air", (0, 46, -41.5), (20, 20, 1.2 + rng.uniform(0, 2.5)), 1.2)
    wide = rng.uniform(0.85, 1.2)
    canvas.ellipsoid("mucosa", (0, 17, -24), (16 * wide, 13, 19))
    canvas.ellipsoid("air", (0, 19, -24), (11 * wide, 8, 16))
    canvas.ellipsoid("mucosa", (0, 12, -62), (17 * wide, 12, 34))
    canvas.ellipsoid("air", (0, 11, -62), (9 * wide, 6.5, 30))
    canvas.capsule("mucosa", (0, 22, -40), (0, 12, -52), 4.0)  # soft palate and uvula
    canvas.capsule("cartilage", (0, 16, -98), (0, 20, -140), 13.0)
    canvas.capsule("mucosa", (0, 14, -90), (0, 18, -150), 10.5)
    canvas.capsule("air", (0, 14, -86), (0, 18, -150), 7.5)
    canvas.ellipsoid("cartilage", (0, 16, -82), (4, 2.2, 9))  # epiglottis
    for s in SIDES:
        canvas.capsule("cortical", (4 * s, 32, -94), (22 * s, 10, -90), 2.6)  # hyoid
    _spine(canvas)


def _spine(canvas: Canvas) -> None:
    canvas.capsule("disc", (0, -14, -34), (0, -18, -160), 10.5)
    for level in range(7):
        z = -44.0 - 17.0 * level
        canvas.block("cortical", (0, -14 - 0.4 * level, z), (13, 9.5, 6.6), 3)
        canvas.block("marrow", (0, -14 - 0.4 * level, z), (11, 7.8, 5.0), 2)
        canvas.ellipsoid("cortical", (0, -32 - 0.4 * level, z), (17, 13, 6))
        canvas.capsule("cortical", (0, -44, z), (0, -62, z - 5), 3.4)
        for s in SIDES:
            canvas.ellipsoid("cortical", (20 * s, -20, z), (8, 8, 6.5))
            canvas.ellipsoid("marrow", (20 * s, -20, z), (5.5, 5.5, 4.5))
    canvas.capsule("cortical", (0, -8, -46), (0, -8, -27), 5.0)  # dens
    canvas.capsule("csf", (0, -31, -34), (0, -34, -160), 8.8)
    canvas.capsule("nerve", (0, -31, -34), (0, -34, -160), 5.2)
