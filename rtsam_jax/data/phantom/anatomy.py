"""The head without disease: body, skull, brain, face; jaw and neck in `jaw`.

Sizes are those of an adult head, rounded; left and right are painted alike and made unequal by the
frame's warp. What is painted later lies on top.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rtsam_jax.data.phantom import jaw
from rtsam_jax.data.phantom.geometry import (
    Canvas,
    capsule,
    ellipsoid,
    smooth_noise,
    union,
)

SIDES = (1.0, -1.0)


@dataclass(frozen=True)
class Anatomy:
    """What lesions and dose need to know of a painted head; arrays are `[X, Y, Z]`.

    Attributes:
      body: signed distance (mm) to the skin, negative inside.
      cavity: signed distance (mm) to the inner table of the skull, negative inside.
      jaw: signed distance (mm) to the surface of the mandible without teeth.
    """

    body: np.ndarray
    cavity: np.ndarray
    jaw: np.ndarray


def _body(p: np.ndarray) -> np.ndarray:
    """Skin surface of head, face and neck."""
    d = ellipsoid(p, (0, -10, 40), (79, 97, 76))
    d = union(d, ellipsoid(p, (0, 36, -26), (61, 53, 74)), 14)
    d = union(d, ellipsoid(p, (0, 58, -76), (30, 25, 24)), 12)  # chin
    for s in SIDES:
        d = union(d, ellipsoid(p, (50 * s, 10, -54), (17, 27, 34)), 12)  # angle of the jaw
    p_neck = np.stack([p[0] / 59, (p[1] + 24 + 0.06 * (p[2] + 60)) / 60])
    r = np.sqrt(p_neck[0] ** 2 + p_neck[1] ** 2)
    neck = np.maximum((r - 1) * 58, p[2] - 5)
    d = union(d, neck, 18)
    bridge = capsule(p, (0, 82, 8), (0, 94, -16), 8.0)
    d = union(d, bridge, 10)
    return union(d, ellipsoid(p, (0, 90, -20), (16, 14, 10)), 10)  # tip and wings of the nose


def _cavity(p: np.ndarray) -> np.ndarray:
    """Inner table of the skull: vault, the three steps of the base, the orbits' roofs."""
    d = ellipsoid(p, (0, -10, 40), (67, 85, 63))
    posterior = ellipsoid(p, (0, -44, -6), (51, 40, 29))

    def step(y: float, width: float) -> np.ndarray:
        return 1 / (1 + np.exp(np.clip((y - p[1]) / width, -40, 40)))

    middle = np.clip((np.abs(p[0]) - 12) / 14, 0, 1)  # temporal poles lie deeper than the sella
    floor = -36 + step(-20, 4.0) * (38 - 22 * middle) + step(30, 5.0) * (12 + 22 * middle)
    d = np.maximum(union(d, posterior, 6), floor - p[2])
    for s in SIDES:
        d = np.maximum(d, 5.0 - ellipsoid(p, (30 * s, 54, 8), (17, 24, 17)))
    return d


def _skull_and_brain(canvas: Canvas, rng: np.random.Generator, cavity: np.ndarray) -> None:
    p, frame = canvas.frame.points, canvas.frame
    shape, spacing = frame.shape, frame.spacing
    bone = rng.uniform(5.5, 7.5) + 0.7 * smooth_noise(rng, shape, spacing, 30.0)
    canvas.paint(cavity - bone, "cortical")
    canvas.paint(np.abs(cavity - bone / 2) - (bone / 2 - 2.0), "diploe")
    canvas.paint(cavity, "csf")
    brain = cavity + rng.uniform(1.8, 3.2)
    canvas.paint(brain, "grey")
    # Sulci are sheets where a smooth field vanishes, of varying depth; cortex lines them.
    folds = np.abs(smooth_noise(rng, shape, spacing, 12.5)) * 5.5  # mm from the sheet, about
    deep = 13.0 + 4.0 * smooth_noise(rng, shape, spacing, 22.0)
    sheet = np.maximum(folds, -brain - deep)
    canvas.paint(np.maximum(brain + 3.4, 4.2 - sheet), "white")
    width = rng.uniform(0.5, 1.3)
    canvas.paint(np.maximum(sheet - width - 0.06 * brain - 0.6, brain - 1.0), "csf")
    top = 58 - p[2] - 0.6 * np.maximum(np.abs(p[1] + 5) - 30, 0)
    threads = np.abs(smooth_noise(rng, shape, spacing, 10.0)) * 4.5
    pial = np.maximum(np.maximum(folds - 2.2, threads - 1.7), np.maximum(brain - 1, -brain - deep))
    canvas.paint(pial, "vessel")  # veins and arteries that run in the sulci
    fissure = np.maximum(np.abs(p[0]) - 1.4, top)
    cortex = np.maximum(np.abs(p[0]) - 5.0, top - 3)
    canvas.paint(np.maximum(cortex, brain), "grey")
    canvas.paint(np.maximum(fissure, brain), "csf")
    for s in SIDES:  # Sylvian fissures
        sylvius = ellipsoid(p, (50 * s, 14, 22), (13, 26, 2.6))
        insula = ellipsoid(p, (50 * s, 14, 22), (16, 30, 6.5))
        canvas.paint(np.maximum(insula, brain), "grey")
        canvas.paint(np.maximum(sylvius, brain), "csf")
    _cerebellum(canvas, rng, cavity)
    _ventricles(canvas, rng)


def _cerebellum(canvas: Canvas, rng: np.random.Generator, cavity: np.ndarray) -> None:
    p, frame = canvas.frame.points, canvas.frame
    tent = np.maximum(ellipsoid(p, (0, -46, -8), (51, 41, 31)), cavity + 1.5)
    tent = np.maximum(tent, 0.9 * (p[2] - 15 + 0.4 * np.abs(p[0])))
    canvas.paint(tent - 1.4, "csf")
    canvas.paint(tent, "grey")
    folia = 5.0 + 3.0 * np.sin(p[2] * 0.9 + 0.5 * smooth_noise(rng, frame.shape, frame.spacing, 20))
    canvas.paint(tent + folia, "white")
    canvas.capsule("csf", (0, -6, 12), (0, -24, -36), 13.6)
    canvas.capsule("white", (0, -8, 16), (0, -16, -8), 11.5)
    canvas.ellipsoid("white", (0, -10, -6), (14, 11, 13))  # pons
    canvas.capsule("white", (0, -16, -8), (0, -30, -40), 7.0)


def _ventricles(canvas: Canvas, rng: np.random.Generator) -> None:
    k = float(rng.uniform(0.75, 1.45))
    for s in SIDES:
        canvas.ellipsoid("deep_grey", (13 * s, -14, 34), (9, 14, 9))  # thalamus
        canvas.ellipsoid("deep_grey", (24 * s, 6, 32), (6, 17, 10))  # lentiform nucleus
        canvas.ellipsoid("deep_grey", (13 * s, 18, 43), (5, 11, 7))  # caudate head
        cap = float(rng.uniform(2.0, 4.5))
        horns = [((8, 24, 48), (18, 38, 46)), ((15, -46, 42), (22, -62, 38))]
        for near, far in horns:
            middle = 0.45 * np.asarray(near) + 0.55 * np.asarray(far)
            canvas.ellipsoid("cap", (middle[0] * s, *middle[1:]), (4 + cap, 5 + cap, 4 + cap))
        canvas.capsule("csf", (9 * s, 26, 45), (12 * s, -28, 55), 4.6 * k)
        canvas.capsule("csf", (8 * s, 24, 48), (13 * s, 32, 47), 4.0 * k)
        canvas.capsule("csf", (12 * s, -28, 55), (20 * s, -42, 44), 5.0 * k)
        canvas.capsule("csf", (20 * s, -42, 44), (19 * s, -58, 40), 3.4 * k)
        canvas.capsule("csf", (20 * s, -42, 44), (32 * s, -14, 16), 2.6 * k)  # temporal horn
        canvas.capsule("choroid", (11 * s, -18, 52), (20 * s, -40, 45), 1.9)
    canvas.ellipsoid("csf", (0, -8, 36), (2.2 * k, 13, 10))
    canvas.ellipsoid("csf", (0, -32, -6), (6 * k, 5, 7))
    for _ in range(int(rng.integers(5, 14))):  # small bright spots of age, on both sides
        where = np.array([rng.uniform(20, 38), rng.uniform(-50, 42), rng.uniform(42, 72)])
        size = rng.uniform(1.5, 4.0, 3)
        canvas.ellipsoid("cap", where * [rng.choice([-1.0, 1.0]), 1, 1], size)


def _vessels(canvas: Canvas, cavity: np.ndarray) -> None:
    p = canvas.frame.points
    sinus = np.maximum(np.abs(p[0]) - 4.5, np.abs(cavity + 2.0) - 4.0)
    canvas.paint(np.maximum(sinus, 15 - p[2] + 0.4 * np.maximum(p[1] - 30, 0)), "vessel")
    for s in SIDES:
        lateral = np.maximum(np.abs(cavity + 2.5) - 3.5, np.abs(p[2] - 8 + 0.1 * np.abs(p[0])) - 4)
        canvas.paint(np.maximum(np.maximum(lateral, p[1] + 30), -s * p[0]), "vessel")
        canvas.capsule("vessel", (56 * s, -32, 0), (40 * s, -22, -22), 4.0)  # sigmoid sinus
        canvas.capsule("vessel", (12 * s, -2, -12), (12 * s, 12, 6), 2.9)  # carotid siphon
        canvas.capsule("vessel", (13 * s, 10, 8), (30 * s, 14, 14), 2.0)
        canvas.capsule("vessel", (30 * s, 14, 14), (50 * s, -4, 28), 1.8)  # middle cerebral
        canvas.capsule("vessel", (50 * s, -4, 28), (56 * s, -26, 38), 1.5)
        canvas.capsule("vessel", (4 * s, 10, 12), (3 * s, 46, 26), 1.7)  # anterior cerebral
        canvas.capsule("vessel", (8 * s, -4, 8), (18 * s, -40, 16), 1.7)  # posterior cerebral
    canvas.capsule("vessel", (0, 3, -16), (0, 2, 6), 2.2)  # basilar
    canvas.capsule("vessel", (0, -38, 36), (0, -62, 30), 2.6)  # vein of Galen, straight sinus
    canvas.capsule("vessel", (0, -62, 30), (0, -88, 12), 2.6)
    canvas.ellipsoid("pituitary", (0, 12, 2), (6, 5, 4))


def _face(canvas: Canvas, rng: np.random.Generator) -> None:
    for s in SIDES:
        canvas.ellipsoid("cortical", (30 * s, 54, 8), (19.5, 23, 19))
        canvas.ellipsoid("fat", (30 * s, 58, 8), (17, 25, 16.5))
        canvas.capsule("nerve", (30 * s, 54, 9), (12 * s, 28, 8), 2.0)
        canvas.capsule("muscle", (41 * s, 60, 9), (22 * s, 34, 8), 2.3)
        canvas.capsule("muscle", (21 * s, 60, 9), (17 * s, 34, 8), 2.3)
        canvas.ellipsoid("eye", (31 * s, 64, 9), (12, 12, 12))
        canvas.ellipsoid("lens", (31 * s, 72.5, 9), (4.5, 2.4, 4.5))
        canvas.ellipsoid("cortical", (52 * s, 53, -8), (10, 9, 11))  # cheek bone
        canvas.ellipsoid("marrow", (52 * s, 53, -8), (6, 5, 7))
        canvas.capsule("cortical", (57 * s, 48, -8), (67 * s, 18, -5), 3.2)
        canvas.capsule("cortical", (67 * s, 18, -5), (63 * s, -8, -3), 3.2)
        canvas.capsule("cortical", (17 * s, -2, -8), (56 * s, -20, -2), 8.5)  # petrous bone
        canvas.ellipsoid("cortical", (58 * s, -27, -14), (11, 15, 18))  # mastoid
        for _ in range(26):
            cell = np.array([58, -27, -12]) + rng.uniform(-1, 1, 3) * [7, 10, 12]
            canvas.ellipsoid("air", cell * [s, 1, 1], rng.uniform(1.4, 3.0, 3))
        canvas.capsule("air", (80 * s, -9, -3), (48 * s, -10, -4), 2.8)  # ear canal
        canvas.ellipsoid("cortical", (27 * s, 53, -17), (15, 17, 17))
        canvas.ellipsoid("mucosa", (27 * s, 53, -17), (13.5, 15.5, 15.5))
        canvas.ellipsoid("air", (27 * s, 53, -17), rng.uniform(0.82, 1.0, 3) * [13, 15, 15])
        canvas.block("cortical", (13 * s, 22, -22), (1.8, 7, 15), 1.5)  # pterygoid plate
    canvas.ellipsoid("cortical", (0, 22, -9), (15, 17, 11))
    for s in SIDES:
        canvas.ellipsoid("air", (6.6 * s, 24, -9), (5.6, 13, 8.5))  # sphenoid sinus
    canvas.block("cortical", (0, 58, 3), (15, 20, 12), 4)
    for s in SIDES:
        for step in range(4):  # ethmoid cells
            canvas.ellipsoid("air", (7.2 * s, 43 + 9.5 * step, 3), (5.8, 4.2, 9))
        canvas.ellipsoid("cortical", (9 * s, 74, 24), (10, 7, 10))
        canvas.ellipsoid("air", (8.5 * s, 74, 24), rng.uniform(0.5, 1.0) * np.array([7, 4.5, 7]))
        canvas.block("mucosa", (7.5 * s, 55, -17), (8.5, 29, 14), 4)
        canvas.block("air", (7.0 * s, 55, -17), (6.0, 29, 12), 4)
        canvas.capsule("mucosa", (10 * s, 76, -24), (10 * s, 38, -25), 3.6)  # turbinates
        canvas.capsule("mucosa", (10 * s, 72, -13), (10 * s, 40, -13), 3.0)
    canvas.block("cortical", (0, 54, -14), (1.2, 25, 15), 1.0)  # septum
    canvas.capsule("cortical", (0, 84, 10), (0, 92, -4), 3.2)  # nasal bones


def paint_head(canvas: Canvas, rng: np.random.Generator) -> Anatomy:
    """Paints a whole head and neck onto an empty canvas."""
    p, frame = canvas.frame.points, canvas.frame
    body = _body(p)
    cavity = _cavity(p)
    for s in SIDES:
        canvas.ellipsoid("skin", (81 * s, -14, -2), (6, 15, 27))  # ear
    canvas.paint(body, "skin")
    fat = rng.uniform(4.0, 7.0) + 1.0 * smooth_noise(rng, frame.shape, frame.spacing, 30.0)
    canvas.paint(body + 2.2, "fat")
    canvas.paint(body + fat, "muscle")
    clefts = smooth_noise(rng, frame.shape, frame.spacing, 16.0)
    canvas.paint(np.maximum(1.15 - clefts, body + fat) * 6.0, "fat")  # between the muscles
    jaw.paint_neck(canvas, rng)
    _skull_and_brain(canvas, rng, cavity)
    _vessels(canvas, cavity)
    _face(canvas, rng)
    mandible = jaw.paint_jaw(canvas, rng)
    canvas.paint(np.abs(body + 1.2) - 1.2, "skin")  # nothing of the face breaks through
    outside = body > 0.5 * canvas.soft
    for s in SIDES:
        outside &= ellipsoid(p, (81 * s, -14, -2), (6, 15, 27)) > 0
    canvas.value[outside] = canvas.tissues["air"]
    canvas.tissue[outside] = canvas.names.index("air")
    return Anatomy(body, cavity, mandible)
