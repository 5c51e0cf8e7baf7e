"""The results as JSON and as Markdown."""

import statistics

from .reasons import reason

HEAD = ["", "median", "from – to", "to the best peer", "peak anonymous MiB", "MiB read", "chunks", "of the limit"]


def plain(chosen, measured):
    """Returns the measurements of every case and side for JSON; cases that did not run have no runs."""
    return [
        {
            "group": one.group, "name": one.name, "curve": one.curve, "x": one.x, "threads": one.threads,
            "metrics": [{"key": m.key, "unit": m.unit, "more_is_better": m.more_is_better} for m in one.metrics],
            "sides": [told(side, measured) for side in one.sides],
        }
        for one in chosen
    ]


def told(side, measured):
    floors = [side.floor(run, measured) if side.floor else None for run in side.runs]
    runs = [{**run, "floor_seconds": floor} for run, floor in zip(side.runs, floors)]
    return {"name": side.name, "ours": side.ours, "budget_mib": side.budget, "error": side.error, "runs": runs}


def median(side, key):
    values = [run[key] for run in side["runs"] if run.get(key) is not None]
    return statistics.median(values) if values else None


def rivals(case, side):
    """Returns the peers with the same budget, or without one."""
    return [other for other in case["sides"] if not other["ours"] and other["runs"] and other["budget_mib"] in (None, side["budget_mib"])]


def best_peer(case, side, metric):
    """Returns the best peer, and the factor by which `side` is better (below 1: worse)."""
    mine = median(side, metric["key"])
    there = [(median(other, metric["key"]), other) for other in rivals(case, side)]
    there = [(value, other) for value, other in there if value is not None]
    if mine is None or not there:
        return None
    pick = max if metric["more_is_better"] else min
    value, other = pick(there, key=lambda pair: pair[0])
    ratio = mine / value if metric["more_is_better"] else value / max(mine, 1e-6)
    return other, ratio


def number(value):
    if value is None:
        return ""
    return f"{value:.0f}" if abs(value) >= 100 else f"{value:.3g}"


def mebibytes(value):
    return "" if value is None else number(value / 2**20)


def times(ratio):
    return f"more than 1000 x" if ratio > 1000 else f"{number(ratio)} x"


def row(case, side, metric):
    """Returns the cells of a side, and True if it is voxpatch's and loses to the best peer, in this metric or in
    memory."""
    middle = median(side, metric["key"])
    if middle is None:
        return [side["name"], side["error"] or "not run: no time was left", *[""] * (len(HEAD) - 2)], False
    values = [run[metric["key"]] for run in side["runs"]]
    memory = median(side, "peak_anonymous_bytes")
    compared = best_peer(case, side, metric) if side["ours"] else None
    slower, larger = False, False
    if compared:
        other, ratio = compared
        slower, larger = ratio < 1, memory > median(other, "peak_anonymous_bytes")
    shares = [run["floor_seconds"] / run["seconds"] for run in side["runs"] if run.get("floor_seconds") and run.get("seconds")]
    cells = [
        side["name"], number(middle), f"{number(min(values))} – {number(max(values))}",
        times(compared[1]) if compared else "", mebibytes(memory), mebibytes(median(side, "bytes_read")),
        number(median(side, "chunks")), f"{statistics.median(shares):.0%}" if shares else "",
    ]
    if slower:
        cells = [f"**{cell}**" if cell else "" for cell in cells]
    elif larger:
        cells[0], cells[4] = f"**{cells[0]}**", f"**{cells[4]}**"
    return cells, slower or larger


def line(cells):
    return "| " + " | ".join(str(cell).replace("|", "/") for cell in cells) + " |"


def table(head, rows):
    return [line(head), "|---" * len(head) + "|", *map(line, rows)]


def case_tables(case):
    lines, lost = [f"### {case['group']}: {case['name']}", ""], []
    for metric in case["metrics"]:
        found = [row(case, side, metric) for side in case["sides"]]
        better = "more" if metric["more_is_better"] else "less"
        lines += table([f"{metric['unit']} ({better} is better)", *HEAD[1:]], [cells for cells, _ in found]) + [""]
        lost += [(side["name"], metric["unit"]) for side, (_, loses) in zip(case["sides"], found) if loses]
    if lost:
        names = "; ".join(f"{name} ({unit})" for name, unit in lost)
        lines += [f"In bold: {names}. Why: {reason(case['group'] + '/' + case['name'])}.", ""]
    return lines


def rate(value):
    return f"{value / 1e9:.2f} GB/s" if value >= 1e9 else f"{value / 1e6:.0f} MB/s"


def facts(results):
    machine = results["machine"]
    shape = " x ".join(map(str, results["shape"]))
    lines = [
        f"`{results['command']}`, {results['date']}, {results['minutes']} minutes; {results['voxpatch']} ({results['commit']}).", "",
        f"{machine['processor']}, {machine['cores']} cores, {machine['threads']} threads used, {machine['memory_gib']} GiB, {machine['system']}, "
        f"Python {machine['python']}; load before the run {machine['load_before']:.1f}. The scan: {shape} voxels.", "",
        "Each run is a separate process, and the sides of a case alternate. Cells have the median of the rounds, and the range. "
        "The ratio compares voxpatch with the best peer within the same budget, or without one: above 1, voxpatch is better. "
        "Rows where it is worse, or needs more memory than that peer, are bold. Memory is that of the process and its children "
        "without files behind it, measured from outside. docs/performance.md describes the limit.", "",
        "## The limits of the machine", "",
    ]
    limits = results["limits"]
    rows = [[name, f"{value * 1e6:.2f} µs a page" if name == "fault_seconds" else rate(value)] for name, value in limits.items()]
    rows = [["first touch of a mapped page" if name == "fault_seconds" else name, value] for (name, _), (_, value) in zip(limits.items(), rows)]
    lines += table(["all threads together, unless stated otherwise", ""], rows) + [""]
    lines += ["## The peers", ""]
    peers = [[name, version, mebibytes(results["imports"].get(name))] for name, version in results["versions"].items()]
    peers += [[name, f"left out: {why}", ""] for name, why in results["left_out"].items()]
    return lines + table(["package", "version", "MiB held after its import"], peers) + [""]


def summary(results):
    """Returns one line for each case: its first metric, voxpatch's best side and the best peer."""
    rows = []
    for case in results["cases"]:
        metric = case["metrics"][0]
        mine = [(median(side, metric["key"]), side) for side in case["sides"] if side["ours"] and side["runs"]]
        if not mine:
            continue
        value, side = (max if metric["more_is_better"] else min)(mine, key=lambda pair: pair[0])
        compared = best_peer(case, side, metric)
        other, ratio = compared or (None, None)
        cells = [f"{case['group']}: {case['name']}", metric["unit"], f"{side['name']}: {number(value)}",
                 f"{other['name']}: {number(median(other, metric['key']))}" if other else "none could do it",
                 times(ratio) if other else "", mebibytes(median(side, "peak_anonymous_bytes")),
                 mebibytes(median(other, "peak_anonymous_bytes")) if other else ""]
        loses = other and (ratio < 1 or median(side, "peak_anonymous_bytes") > median(other, "peak_anonymous_bytes"))
        rows.append([f"**{cell}**" if loses and cell else cell for cell in cells])
    return table(["", "in", "voxpatch at its best", "best peer", "ratio", "our MiB", "its MiB"], rows) + [""]


def markdown(results, drawn):
    lines = ["# Benchmarks", "", *facts(results), "## In short", "", *summary(results)]
    group = None
    for case in results["cases"]:
        if case["group"] != group:
            group = case["group"]
            lines += [f"## {group}", ""]
            lines += [text for name in drawn.get(group, []) for text in (f"![{group}]({name})", "")]
        lines += case_tables(case)
    return "\n".join(lines).rstrip() + "\n"
