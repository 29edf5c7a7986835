"""The report in words: every sentence and table of identity.md is made from the figures."""

from __future__ import annotations

from .arms import PAPER, S, cfg

#: Columns of the tables: key, heading, factor, digits.
COLUMNS = (
    ("identity", "identity", 1, 3), ("same", "same person %", 100, 1), ("detected", "face seen %", 100, 1),
    ("attributes", "caption %", 100, 1), ("person", "person %", 100, 1), ("uneven", "unevenness", 1, 2),
    ("motion", "motion", 1, 2), ("clipped", "clipped %", 100, 1),
)  # fmt: skip
TARGET = 0.85  # of the caption's attributes
FULL = (128, 20)  # pairs and steps of a whole run


def answer(table: dict, base: float) -> list[str]:
    """Does GE raise identity over a CFG of equal weight, and at what cost? And the checkpoint's own targets."""
    rows, out = table["rows"], []
    for name in dict.fromkeys((cfg(base).name, "none")):
        if name in rows:
            out.append(_target(name, rows[name]))
    for name in (f"{cfg(base).name}, stranger's reference",):
        if name in rows:
            row = rows[name]
            swaps = "swaps" if row["stranger"][1] > row["identity"][2] else "does NOT swap"
            out.append(
                f"Swapping the reference {swaps} the face (`{name}`): the clip is at {_value(row['stranger'])} to the "
                f"stranger in its reference and at {_value(row['identity'])} to the person."
            )
    verdicts = []
    for name in [f"{p} w {w:g} s {S}" for w in (PAPER, base) for p in ("tpige_code", "tpige_aligned")] + [
        f"tpige_figure W_c {w:g} W_i {S}" for w in (PAPER, base)
    ]:
        if "difference" in rows.get(name, {}):
            verdicts.append(_sign(rows[name]["difference"]["identity"]))
            out.append(_method(name, rows))
    if verdicts:
        out.insert(0, _verdict(verdicts))
    for part in ("skip only", "drop only", "absent only"):
        for w in (PAPER, base):
            name = f"{part} w {w:g} s {S}"
            if "difference" in rows.get(name, {}):
                out.append(f"Of its parts, {part} (w {w:g}): identity {_change(rows[name]['difference']['identity'])}.")
    best = max((n for n in rows if _swept(rows[n])), key=lambda n: rows[n]["difference"]["identity"][0], default=None)
    if best:
        out.append(
            f"The best weak block of the sweep is in `{best}`: identity "
            f"{_change(rows[best]['difference']['identity'])}, caption "
            f"{_change(rows[best]['difference']['attributes'], 100, 1)} points; the largest of "
            f"{sum(_swept(r) for r in rows.values())}, so part of it is luck."
        )
    return out


def _swept(row: dict) -> bool:
    return row["table"] == "block" and "difference" in row


def _target(name: str, row: dict) -> str:
    apart = row["identity"][1] > row["stranger"][2]
    reached = "reached" if row["attributes"][0] >= TARGET else "not reached"
    return (
        f"`{name}`: identity {_value(row['identity'])} to the person's reference, {_value(row['stranger'])} to a "
        f"stranger's ({'clearly apart' if apart else 'NOT clearly apart'}); {100 * row['attributes'][0]:.1f} % of the "
        f"captions' attributes ({100 * TARGET:.0f} %: {reached})."
    )


def _verdict(signs: list[int]) -> str:
    said = "Does identity-aware guidance (GE) raise identity over a CFG of equal weight, on this checkpoint? "
    total, up, down = len(signs), signs.count(1), signs.count(-1)
    if up == total:
        return said + f"Yes: in all {total} settings compared."
    if up and not down:
        return said + f"In {up} of {total} settings; in the others no difference is shown."
    if not up and down == total:
        return said + f"No: it lowers identity in all {total} settings compared."
    if not up and not down:
        return said + f"No difference is shown in any of {total} settings."
    return said + f"It depends: higher in {up}, lower in {down}, no difference shown in {total - up - down} of {total}."


def _method(name: str, rows: dict) -> str:
    row, control = rows[name], rows[rows[name]["control"]]
    d, own = row["difference"], row["identity"][0]
    verb = {1: "raises identity", -1: "lowers identity", 0: "shows no difference in identity"}[_sign(d["identity"])]
    return (
        f"`{name}` {verb} against `{row['control']}` ({own:.3f} against {own - d['identity'][0]:.3f}): "
        f"{_change(d['identity'])}. The cost: caption {_change(d['attributes'], 100, 1)} points, unevenness "
        f"{_change(d['uneven'], 1, 2)}, clipped values {_change(d['clipped'], 100, 1)} points, Fréchet distance of "
        f"faces {_change(d['frechet_face'])}; {row['forwards']} forwards a clip instead of {control['forwards']}."
    )


def _sign(change: list[float]) -> int:
    return 1 if change[1] > 0 else -1 if change[2] < 0 else 0


def _value(v: list[float], factor: float = 1, digits: int = 3) -> str:
    return f"{factor * v[0]:.{digits}f} [{factor * v[1]:.{digits}f}, {factor * v[2]:.{digits}f}]"


def _change(v: list[float], factor: float = 1, digits: int = 3) -> str:
    a, b, c = (factor * x for x in v)
    return f"{a:+.{digits}f} [{b:+.{digits}f}, {c:+.{digits}f}]"


# ---- the page ----


def page(table: dict, base: float) -> str:
    rows, s = table["rows"], table["settings"]
    main = [n for n in rows if rows[n]["table"] == "main"]
    counts = sorted({rows[n]["pairs"] for n in main if rows[n]["forwards"]})
    pairs = str(counts[-1]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]} (column pairs)"
    whole = counts[0] >= FULL[0] and s["steps"] >= FULL[1]
    asked = "" if whole else f" A whole run has {FULL[0]} pairs an arm and {FULL[1]} steps: this is a part of it."
    parts = [
        "# Identity, measured on the bundled checkpoint",
        "Written by `benchmarks/identity.py report` from figures in identity.json; nothing here is typed in by hand.",
        "\n".join(f"- {line}" for line in table["answer"]),
        f"{pairs} held-out people, each with a caption and one portrait in another scene; captions never name the "
        f"face.{asked} {s['steps']} steps, shift {s['shift']:g}, the same noise for every arm, {s['dtype']} on "
        f"{s['device']}; {table['cpu_seconds']} s of CPU in all. Weights {s['weights']}, pairs {s['pairs_sha256']}. "
        "In brackets: 95 % intervals, by a bootstrap over pairs.",
        "![Middle frames: a row an arm, a column a pair](identity.jpg)",
        "**Columns.** " + "; ".join(f"{heading.removesuffix(' %')}: {table['measures'][key]}"
                                    for key, heading, _, _ in COLUMNS) + "; "
        "Fréchet: distance of the face embeddings of all frames, and of the probe's logits, to those of other rendered "
        "clips (falls with the number of pairs: compare rows of as many); forwards: of the model, a clip. "
        + _detector(table["detector"]),
        "## Arms", _arms(rows, main),
        "## Differences to the control", "Each method against the CFG of equal weight, pair by pair.",
        _differences(rows, main),
    ]  # fmt: skip
    swept = [n for n in rows if rows[n]["table"] == "s"]
    if swept:
        parts += ["## Weight s of the weak branch", _both(rows, swept)]
    blocks = [n for n in rows if rows[n]["table"] == "block"]
    if blocks:
        parts += ["## Which block is left out", f"{rows[blocks[0]]['steps']} steps, against a control of as many.",
                  _both(rows, blocks)]  # fmt: skip
    if table["ratios"]:
        parts += ["## How far the branches are from cond", _ratios(table["ratios"], base)]
    conflict = [n for n in rows if rows[n]["table"] == "conflict"]
    if conflict:
        parts += ["## Prompt and reference enhancement on conflicting pairs", _conflict(table, rows, conflict)]
    if table["missing"]:
        parts += [f"Not measured yet, {len(table['missing'])} arms: {', '.join(table['missing'])}."]
    return "\n\n".join(parts) + "\n"


def _detector(kinds: dict) -> str:
    """How often the judge behind "face seen" is wrong."""
    of = lambda face: ", ".join(f"{k} {100 * v['wrong']:.1f}" for k, v in kinds.items() if v["face"] is face)  # noqa: E731
    return (
        "The judge that sees faces is wrong on held-out people in so many % of pictures: with a face, "
        f"{of(True)}; without, {of(False)} (`models/tiny/seen.py`)."
    )


def _table(head: list[str], lines: list[list[str]]) -> str:
    return "\n".join("| " + " | ".join(x) + " |" for x in (head, ["---"] * len(head), *lines))


def _arms(rows: dict, names: list[str]) -> str:
    head = ["arm", "pairs", *(heading for _, heading, _, _ in COLUMNS), "Fréchet face, probe", "forwards"]
    lines = []
    for name in names:
        row = rows[name]
        cells = [
            _value(row[k], f, d) if k in ("identity", "attributes") else f"{f * row[k][0]:.{d}f}"
            for k, _, f, d in COLUMNS
        ]
        frechet = f"{row['frechet']['face']:.3f}, {row['frechet']['probe']:.0f}"
        lines.append([name, str(row["pairs"]), *cells, frechet, str(row["forwards"])])
    return _table(head, lines)


def _differences(rows: dict, names: list[str]) -> str:
    head = ["arm", "control", "identity", "face seen %", "caption %", "person %", "unevenness", "clipped %",
            "Fréchet face", "Fréchet probe"]  # fmt: skip
    lines = []
    for name in names:
        d = rows[name].get("difference")
        if d:
            cells = [_change(d["identity"]), *(_change(d[k], 100, 1) for k in ("detected", "attributes", "person")),
                     _change(d["uneven"], 1, 2), _change(d["clipped"], 100, 1), _change(d["frechet_face"]),
                     _change(d["frechet_probe"], 1, 0)]  # fmt: skip
            cells[0] = f"**{cells[0]}**" if _sign(d["identity"]) else cells[0]
            lines.append([name, rows[name]["control"], *cells])
    return _table(head, lines)


def _both(rows: dict, names: list[str]) -> str:
    return _arms(rows, names) + "\n\n" + _differences(rows, names)


def _ratios(ratios: dict, base: float) -> str:
    sigma = ratios["sigma"]
    at = [0, *(min(range(len(sigma)), key=lambda i: abs(sigma[i] - x)) for x in (0.9, 0.75, 0.5, 0.25)), len(sigma) - 1]
    at = sorted(set(at))
    head = ["difference to cond", *(f"sigma {sigma[i]:.2f}" for i in at), "cosine to absent, mean"]
    lines = [["size of cond itself", *(f"{ratios['cond'][i]:.2f}" for i in at), ""]]
    for name, share in ratios["share"].items():
        cosine = ratios["cosine_to_absent"][name]
        lines.append([name, *(f"{100 * share[i]:.1f} %" for i in at), f"{sum(cosine) / len(cosine):.2f}"])
    return (
        f"Root mean square over the video's latents, as a share of |cond|, along `{cfg(base).name}`; {ratios['pairs']} "
        "pairs. uncond and null are texts; drop and absent the two ways to take the reference away; block k: that "
        "block left out, the reference kept.\n\n" + _table(head, lines)
    )


def _conflict(table: dict, rows: dict, names: list[str]) -> str:
    e = table["enhanced"]
    text = (
        "The reference wears glasses and the caption's person does not, or the other way round; expression, light, "
        "background and clothes differ too. Identity is always to the original reference.\n\n"
    )
    if e:
        text += (
            f"PE changed {e['prompts_changed']} of {e['pairs']} captions (“{e['example']['caption']}” into "
            f"“{e['example']['prompt']}”); IE replaced {e['references_replaced']} references, at a mean cosine of "
            f"{e['similarity_of_replacements']}; where no candidate was the same person the original stayed.\n\n"
        )
    heads = ["accessory", "expression", "clothes", "background"]
    head = ["arm", *(f"{h} %" for h in heads)]
    lines = [[n, *(f"{100 * rows[n]['heads'][h]:.1f}" for h in heads)] for n in names]
    return text + _table(head, lines) + "\n\n" + _both(rows, names)
