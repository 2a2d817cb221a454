"""What simulated users leave behind: curves and clicks as CSV, tables, a picture, a page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from matplotlib.figure import Figure

from rtsam_jax.metrics.bootstrap import MeanInterval
from rtsam_jax.metrics.interactive import (
    CHALLENGE_CLICKS,
    TARGETS,
    Interaction,
    UserSummary,
    auc,
    summarise_interactions,
)
from rtsam_jax.metrics.summary import ALL_TASKS
from rtsam_jax.report import canvas
from rtsam_jax.report.files import written_whole
from rtsam_jax.report.latex import latex
from rtsam_jax.report.results_html import Picture, write_results_page
from rtsam_jax.report.results_tables import INTERVAL_NOTE, TitledTable
from rtsam_jax.report.tables import Cell, Table, render, write_csv

COLOURS = (canvas.BLUE, canvas.GREEN, canvas.VERMILION, canvas.PURPLE)
_IN_A_ROW = 3  # panels; more of them make a square


def write_click_results(
    folder: Path,
    interactions: Sequence[Interaction],
    *,
    heading: str,
    kind: str,
    notes: Sequence[str] = (),
) -> str:
    """Writes `curves.csv`, `clicks.csv`, `summary` (CSV, Markdown, LaTeX), a picture and a page.

    Args:
        interactions: at least one, all with the same number of clicks.
        heading: dataset and its kind, split.
        kind: of the labels, as for `write_results_page`.
        notes: sentences below the tables.

    Returns:
        The tables and the notes.
    """
    summaries = summarise_interactions(interactions)
    write_csv(curve_rows(interactions), folder / "curves.csv")
    write_csv(click_rows(interactions), folder / "clicks.csv")
    write_csv(summary_rows(summaries), folder / "summary.csv")
    shown = [s for s in summaries if s.task != ALL_TASKS or len({s.task for s in summaries}) > 2]
    tables = summary_tables(shown)
    text = "\n".join(f"{title}\n\n{render(table)}" for title, _, table in tables)
    text += "".join(f"\n{note}\n" for note in (INTERVAL_NOTE, *notes))
    with written_whole(folder / "summary.md") as beside:
        beside.write_text(f"# {heading}\n\n{text}", encoding="utf-8")
    with written_whole(folder / "summary.tex") as beside:
        beside.write_text(_latex(heading, tables), encoding="utf-8")
    plot_click_curves(shown, heading, folder / "curves.png")
    write_results_page(
        folder / "report.html",
        heading=f"Corrections by clicks: {heading}",
        kind=kind,
        notes=[INTERVAL_NOTE, *notes],
        tables=tables,
        plots=[Picture(folder / "curves.png", "Dice over clicks")],
        pictures=[],
        cases=TitledTable("Cases", "", case_table(interactions)),
    )
    return text


def _latex(heading: str, tables: Sequence[TitledTable]) -> str:
    parts = ["% \\usepackage{booktabs,graphicx}\n"]
    for number, (title, _, table) in enumerate(tables, 1):
        caption = f"{title}: {heading}. {INTERVAL_NOTE}"
        parts.append(latex(table, caption=caption, label=f"tab:clicks-{number}"))
    return "\n".join(parts)


def case_table(interactions: Sequence[Interaction]) -> Table:
    """One line per case and user: Dice before and after all clicks, their area, and how many."""
    rows = tuple(
        (i.task, i.case, i.user, i.dice[0], i.dice[-1], auc(i.dice), len(i.clicks))
        for i in interactions
    )
    last = f"Dice after {len(interactions[0].dice) - 1}"
    return Table(
        ("Task", "Case", "User", "Dice, no click", last, "Area (0 to 1)", "Clicks made"), rows
    )


def curve_rows(interactions: Sequence[Interaction]) -> Table:
    """One row per case, user and number of clicks, from 0."""
    rows: list[tuple[Cell, ...]] = []
    for item in interactions:
        for click, scores in enumerate(zip(item.dice, item.nsd_2mm, strict=True)):
            rows.append((item.case, item.patient, item.task, item.user, click, *scores))
    header = ("case", "patient", "task", "user", "click", "dice", "nsd_2mm")
    return Table(header, tuple(rows))


def click_rows(interactions: Sequence[Interaction]) -> Table:
    """One row per click: where it was, in world mm (RAS+), and its sign."""
    rows: list[tuple[Cell, ...]] = []
    for item in interactions:
        for click in item.clicks:
            sign = "positive" if click.positive else "negative"
            rows.append((item.case, item.task, item.user, click.number, *click.world_mm, sign))
    header = ("case", "task", "user", "click", "x_mm", "y_mm", "z_mm", "sign")
    return Table(header, tuple(rows))


def summary_rows(summaries: Sequence[UserSummary]) -> Table:
    """One row per task, user and measure, for CSV: n, mean and its 95 % interval."""
    rows: list[tuple[Cell, ...]] = []
    for of in summaries:
        for name, (n, interval) in of.measures.items():
            rows.append((of.task, of.user, name, n, *interval))
    return Table(("task", "user", "measure", "n", "mean", "low", "high"), tuple(rows))


def summary_tables(summaries: Sequence[UserSummary]) -> list[TitledTable]:
    """What a reader is shown: means with intervals, failures as counts.

    Args:
        summaries: at least one.
    """
    clicks = len(summaries[0].dice) - 1
    after = f"after {clicks}"
    tables = [
        TitledTable(
            "Mean (95 % interval by patient)",
            "",
            _table(
                summaries,
                {
                    "Dice, no click": "dice_first",
                    f"Dice {after}": "dice_last",
                    "Area (0 to 1)": "auc",
                    "NSD at 2 mm, no click": "nsd_2mm_first",
                    f"NSD {after}": "nsd_2mm_last",
                },
            ),
        ),
        TitledTable(
            f"Clicks until a Dice is reached (NoC, {clicks} where it never is), and how many cases "
            "never reach it (NoF)",
            "",
            _target_table(summaries),
        ),
    ]
    if clicks >= CHALLENGE_CLICKS:
        columns = {
            "Dice area (0 to 4)": "cvpr_dice_area",
            "Dice, final": "cvpr_dice_final",
            "NSD area (0 to 4)": "cvpr_nsd_2mm_area",
            "NSD at 2 mm, final": "cvpr_nsd_2mm_final",
        }
        title = f"As the CVPR 2025 challenge measures, over the first {CHALLENGE_CLICKS} clicks"
        tables.append(TitledTable(title, "", _table(summaries, columns)))
    tables.append(
        TitledTable(
            "Mean Dice after so many clicks",
            "",
            Table(
                ("Task", "User", *map(str, range(clicks + 1))),
                tuple((of.task, of.user, *(point.mean for point in of.dice)) for of in summaries),
            ),
        )
    )
    return tables


def _table(summaries: Sequence[UserSummary], columns: dict[str, str]) -> Table:
    rows: list[tuple[Cell, ...]] = []
    for of in summaries:
        intervals = [_interval(of.measures[name][1]) for name in columns.values()]
        rows.append((of.task, of.user, of.n, *intervals))
    return Table(("Task", "User", "n", *columns), tuple(rows))


def _target_table(summaries: Sequence[UserSummary]) -> Table:
    header: list[str] = ["Task", "User", "n"]
    for target in TARGETS:
        header += [f"NoC@{target * 100:.0f}", f"NoF@{target * 100:.0f}"]
    rows: list[tuple[Cell, ...]] = []
    for of in summaries:
        row: list[Cell] = [of.task, of.user, of.n]
        for target in TARGETS:
            _, needed = of.measures[f"noc_{target * 100:.0f}"]
            n, failed = of.measures[f"failed_{target * 100:.0f}"]
            row += [_interval(needed, digits=1), round(n * failed.mean)]
        rows.append(tuple(row))
    return Table(tuple(header), tuple(rows))


def _interval(of: MeanInterval, digits: int = 3) -> str:
    if math.isnan(of.mean):
        return "-"
    if math.isnan(of.low):
        return f"{of.mean:.{digits}f}"
    return f"{of.mean:.{digits}f} ({of.low:.{digits}f} to {of.high:.{digits}f})"


def plot_click_curves(summaries: Sequence[UserSummary], title: str, out: Path) -> None:
    """Mean Dice over clicks: a panel per task, a line per user, 95 % intervals as bands.

    Args:
        summaries: at least one.
        title: dataset and its kind, split.
        out: PNG.
    """
    tasks = list(dict.fromkeys(of.task for of in summaries))
    users = list(dict.fromkeys(of.user for of in summaries))
    columns = len(tasks) if len(tasks) <= _IN_A_ROW else math.ceil(math.sqrt(len(tasks)))
    rows = -(-len(tasks) // columns)
    size = (max(5.2, 3.6 * columns), 3.2 * rows + 0.6)
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(rows, columns, sharey=True, squeeze=False).ravel()
    for panel in panels[len(tasks) :]:
        panel.set_axis_off()
    for panel, task in zip(panels, tasks, strict=False):
        of_task = [of for of in summaries if of.task == task]
        for of in of_task:
            colour = COLOURS[users.index(of.user) % len(COLOURS)]
            clicks = range(len(of.dice))
            means, lows, highs = zip(*of.dice, strict=True)
            panel.fill_between(clicks, lows, highs, color=colour, alpha=0.15, linewidth=0)
            panel.plot(clicks, means, color=colour, marker="o", ms=3, lw=1.6, label=of.user)
        panel.set_title(f"{task} (n = {of_task[0].n})", loc="left", fontsize=11)
        panel.set_ylim(0, 1.02)
        panel.set_xlabel("Clicks")
        panel.xaxis.get_major_locator().set_params(integer=True)
        panel.grid(True, color="#E6E6E6", linewidth=0.7)
        panel.spines[["top", "right"]].set_visible(False)
    for panel in panels[::columns]:
        panel.set_ylabel("Dice")
    panels[0].legend(title="Simulated user", frameon=False, fontsize=8, title_fontsize=8)
    figure.suptitle(title, fontsize=11)
    figure.supxlabel("Mean; band: 95 % interval by patient", fontsize=8, color="#555555")
    canvas.save(figure, out)
