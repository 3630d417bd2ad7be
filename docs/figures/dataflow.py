"""Draws dataflow.svg, the picture of docs/internals/architecture.md: `python docs/figures/dataflow.py > docs/figures/dataflow.svg`."""

from __future__ import annotations

import html
from dataclasses import dataclass

WIDTH, HEIGHT = 940, 560
FONT = 'font-family="Helvetica, Arial, sans-serif"'


@dataclass(frozen=True)
class Box:
    """A rectangle with a title and lines below it."""

    x: int
    y: int
    width: int
    height: int
    title: str
    lines: tuple[str, ...] = ()
    fill: str = "#ffffff"

    def draw(self) -> str:
        """As SVG."""
        parts = [
            (
                f'<rect x="{self.x}" y="{self.y}" width="{self.width}" height="{self.height}" rx="6" fill="{self.fill}" '
                'stroke="#333" stroke-width="1.2"/>'
            ),
            text(self.x + 12, self.y + 22, self.title, weight="bold"),
        ]
        parts += [text(self.x + 12, self.y + 42 + 17 * i, line, size=12) for i, line in enumerate(self.lines)]
        return "\n".join(parts)


def text(x: int, y: int, words: str, *, size: int = 14, weight: str = "normal", anchor: str = "start") -> str:
    """A line of text."""
    return (
        f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" text-anchor="{anchor}" {FONT} fill="#111">'
        f"{html.escape(words)}</text>"
    )


def arrow(*points: tuple[int, int]) -> str:
    """A line with an arrow at its end."""
    path = " ".join(f"{x},{y}" for x, y in points)
    return (
        f'<polyline points="{path}" fill="none" stroke="#1f6f43" stroke-width="1.8" marker-end="url(#end)"/>'
    )


BOXES = (
    Box(20, 20, 200, 74, "You", ("kubectl apply, get, describe", "kubectl edit: budget, cap"), "#eef4ff"),
    Box(
        300,
        20,
        270,
        108,
        "GreenTrainingJob",
        (
            "spec: written by you",
            "status: written by the operator:",
            "conditions, energy, emissions,",
            "budgets, attempts, projection",
        ),
        "#fffbe8",
    ),
    Box(
        300,
        190,
        270,
        130,
        "Operator",
        (
            "gather: one immutable snapshot",
            "decide: pure functions",
            "apply: pods, Service, NodePower.spec",
            "record: status once, then events",
            "renew the Lease every 10 s",
        ),
        "#eaf7ee",
    ),
    Box(
        640,
        20,
        280,
        108,
        "Grid and GPU tables",
        (
            "files, fixed values, the table that ships:",
            "g CO2e/kWh by zone and time;",
            "embodied CO2e of GPU models",
            "(read once per reconcile)",
        ),
    ),
    Box(
        300,
        384,
        270,
        92,
        "NodePower (one per GPU node)",
        (
            "spec: caps, allowances, settled",
            "status: joules by pod and quarter",
            "of an hour, cards, actions",
        ),
        "#fffbe8",
    ),
    Box(
        640,
        190,
        280,
        350,
        "GPU node",
        (),
        "#f6f6f6",
    ),
    Box(
        656,
        232,
        248,
        78,
        "Pods of the job",
        ("tf.distribute, checkpoints,", "GET /progress, agreed stop"),
        "#eef4ff",
    ),
    Box(
        656,
        384,
        248,
        92,
        "Agent",
        (
            "energy counters → joules per pod",
            "caps → power limits",
            "allowances, if operator is silent",
        ),
        "#eaf7ee",
    ),
    Box(
        20,
        384,
        200,
        92,
        "Lease",
        ("the operator's heartbeat;", "its annotation names jobs", "that cannot be reconciled"),
        "#fffbe8",
    ),
)


def build() -> str:
    """The whole picture."""
    arrows = (
        arrow((220, 56), (296, 56)),
        text(240, 48, "apply", size=12),
        arrow((400, 128), (400, 186)),
        text(356, 162, "watch", size=12),
        arrow((470, 190), (470, 132)),
        text(478, 162, "status", size=12),
        arrow((640, 100), (604, 100), (604, 210), (574, 210)),
        text(612, 160, "intensity", size=12),
        arrow((400, 320), (400, 380)),
        text(286, 356, "caps, allowances", size=12),
        arrow((470, 384), (470, 324)),
        text(478, 356, "reports", size=12),
        arrow((570, 254), (652, 254)),
        text(594, 248, "pods", size=12),
        arrow((652, 290), (574, 290)),
        text(582, 306, "progress", size=12),
        arrow((570, 414), (652, 414)),
        text(594, 408, "spec", size=12),
        arrow((652, 446), (574, 446)),
        text(592, 462, "status", size=12),
        arrow((740, 310), (740, 380)),
        text(678, 350, "energy", size=12),
        arrow((800, 384), (800, 314)),
        text(808, 350, "limit, eviction", size=12),
        arrow((300, 262), (120, 262), (120, 380)),
        text(190, 254, "renew", size=12),
        arrow((120, 476), (120, 520), (780, 520), (780, 480)),
        text(190, 512, "without a renewal for 30 s, agents enforce allowances", size=12),
    )
    return "\n".join(
        (
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}">',
            (
                '<defs><marker id="end" viewBox="0 0 10 10" refX="9" refY="5" markerWidth="7" markerHeight="7" '
                'orient="auto-start-reverse"><path d="M 0 0 L 10 5 L 0 10 z" fill="#1f6f43"/></marker></defs>'
            ),
            f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
            *(box.draw() for box in BOXES),
            *arrows,
            "</svg>",
        )
    )


if __name__ == "__main__":
    print(build())
