"""Bar charts for every group of cases, and curves for scaling cases."""

from .report import median, number

OURS = ["#0b6e4f", "#13a578", "#7fd1ae"]
OTHERS = ["#8a8d91", "#b08968", "#6d7fa8", "#a87d9f", "#c2a83e", "#9fb3b8", "#5d5f63", "#d08c8c", "#4f7f8f"]


def colors(sides):
    """Returns the colors: green is voxpatch, and each name has one color in all the cases of a picture."""
    found, counts = {}, {True: 0, False: 0}
    for side in sides:
        if side["name"] not in found:
            palette = OURS if side["ours"] else OTHERS
            found[side["name"]] = palette[counts[side["ours"]] % len(palette)]
            counts[side["ours"]] += 1
    return found


def bars(plot, cases, group, path):
    heights = [sum(1 for side in case["sides"] if side["runs"] or side["error"]) for case in cases]
    figure, axes = plot.subplots(len(cases), 2, figsize=(11, 0.9 * len(cases) + 0.24 * sum(heights)), squeeze=False,
                                 gridspec_kw={"height_ratios": [height + 1.5 for height in heights]}, layout="constrained")
    color = colors([side for case in cases for side in case["sides"]])
    for case, (left, right) in zip(cases, axes):
        metric = case["metrics"][0]
        sides = [side for side in case["sides"] if side["runs"] or side["error"]][::-1]
        for axis, key, scale in [(left, metric["key"], 1), (right, "peak_anonymous_bytes", 2**20)]:
            values = [(median(side, key) or 0) / scale for side in sides]
            drawn = axis.barh(range(len(sides)), values, color=[color[side["name"]] for side in sides], height=0.75)
            words = [f" {number(value)}" if side["runs"] else f" {short(side['error'])}" for side, value in zip(sides, values)]
            axis.bar_label(drawn, words, fontsize=7)
            axis.set_xlim(0, max([*values, 1e-9]) * 1.18)
            axis.set_yticks(range(len(sides)), [side["name"] for side in sides] if axis is left else [], fontsize=7)
            axis.tick_params(axis="x", labelsize=7)
            axis.spines[["top", "right"]].set_visible(False)
        left.set_title(f"{case['name']}: {metric['unit']}", fontsize=8, loc="left")
        right.set_title("peak anonymous MiB", fontsize=8, loc="left")
    figure.suptitle(f"{group}, {'more' if cases[0]['metrics'][0]['more_is_better'] else 'less'} is better on the left; green is voxpatch",
                    fontsize=9)
    figure.savefig(path)
    plot.close(figure)


def short(error):
    return error if len(error) < 36 else error[:33] + "..."


def curve(plot, cases, name, path):
    metric = cases[0]["metrics"][0]
    figure, (left, right) = plot.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    sides = {side["name"]: side for case in cases for side in case["sides"]}
    color = colors(list(sides.values()))
    words = all(isinstance(case["x"], str) for case in cases)
    for title, first in sides.items():
        for axis, key, scale in [(left, metric["key"], 1), (right, "peak_anonymous_bytes", 2**20)]:
            points = []
            for case in cases:
                there = next((side for side in case["sides"] if side["name"] == title and side["runs"]), None)
                if there:
                    points.append((case["x"], median(there, key) / scale))
            if points:
                axis.plot(*zip(*points), marker="o", markersize=4, color=color[title], label=title, linewidth=2 if first["ours"] else 1.2)
    for axis, label in [(left, metric["unit"]), (right, "peak anonymous MiB")]:
        axis.set_xlabel(name.split(" by ")[1])
        axis.set_title(label, fontsize=9, loc="left")
        axis.set_ylim(bottom=0)
        axis.spines[["top", "right"]].set_visible(False)
        if not words:
            at = sorted({case["x"] for case in cases})
            if at[-1] > 8 * at[0]:
                axis.set_xscale("log", base=2)
            axis.set_xticks(at, [str(x) for x in at])
            axis.minorticks_off()
    if name.endswith("planes"):
        for axis in (left, right):
            values = [value for line in axis.lines for value in line.get_ydata()]
            if max(values) > 8 * min(values):
                axis.set_yscale("log")
                axis.set_ylim(min(values) / 1.5, max(values) * 1.5)
    right.legend(fontsize=7, frameon=False, loc="best")
    figure.suptitle(name, fontsize=10)
    figure.savefig(path)
    plot.close(figure)


def draw(results, folder, kind="svg"):
    """Draws the pictures. Returns their names, by group."""
    import matplotlib

    matplotlib.use("agg")
    import matplotlib.pyplot as plot

    drawn = {}
    done = [case for case in results["cases"] if any(side["runs"] for side in case["sides"])]
    for group in dict.fromkeys(case["group"] for case in done):
        cases = [case for case in done if case["group"] == group]
        for name in dict.fromkeys(case["curve"] for case in cases if case["curve"]):
            points = [case for case in cases if case["curve"] == name]
            file = f"{name.replace(' ', '-')}.{kind}"
            curve(plot, points, name, folder / file)
            drawn.setdefault(group, []).append(file)
        if not any(case["curve"] for case in cases):
            bars(plot, cases, group, folder / f"{group}.{kind}")
            drawn.setdefault(group, []).append(f"{group}.{kind}")
    return drawn
