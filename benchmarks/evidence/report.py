"""From the arms' stored results to benchmarks/results/identity.{json,md,png}."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from . import statistics as st
from . import words, work
from .arms import OTHER, PAPER, Arm, S

SHEET = ("reference", "rendered", "through the codec", "none", "tpige_code w {w} s 0.5", "tpige_aligned w {w} s 0.5",
         "skip only w {w} s 0.5", "drop only w {w} s 0.5", "three_stream s_T 1 s_R 2", "cfg 2", "cfg 7",
         "tpige_code w 5 s 0.5", "none, absent reference", "none, stranger's reference")  # fmt: skip


class Results:
    """The arms that have a file, measured. rows: name -> dict of plain data."""

    def __init__(self, arms: list[Arm], setting: work.Setting, folder: Path):
        from identity import load

        self.arms = {a.name: a for a in arms}
        self.data = {a.name: found for a in arms if (found := load(folder / a.file))}
        if OTHER not in self.data:
            raise SystemExit(f"{folder}: no results of {OTHER!r}: do `run` first")
        self.about = json.loads((work.folder_of_judges() / "judges.json").read_text())
        self.setting = setting
        self.truth = {k: self._truth(k) for k in ("main", "conflict")}
        clips = {n: d for n, d in self.data.items() if "face" in d and n != OTHER}
        self.measures = {n: self._measures(n) for n in clips}
        other = self.data[OTHER]
        self.frechet = {"face": st.Frechet(_flat(other["face"])), "probe": st.Frechet(other["probe"])}
        self.rows = {n: self._row(n) for n in clips}

    def _truth(self, pairs: str) -> dict:
        with np.load(self.setting.data) as data:
            pictures = data[f"{pairs}_reference"].transpose(0, 3, 1, 2).astype(np.float32) / 127.5 - 1
            return {
                "reference": work.judge("face")(pictures).astype(np.float64), "scene": data[f"{pairs}_scene"],
                "scene_heads": data["heads"].tolist(), "person": data[f"{pairs}_person"],
                "person_heads": data["person_heads"].tolist(),
            }  # fmt: skip

    def _measures(self, name: str) -> dict:
        from ipvg.face import BUNDLED_SAME

        return st.measures(self.data[name], self.truth[self.arms[name].pairs], self.about, BUNDLED_SAME)

    def _row(self, name: str) -> dict:
        arm, data, m = self.arms[name], self.data[name], self.measures[name]
        row = {"table": arm.table, "control": arm.control, "pairs": len(data["pairs"]),
               "forwards": int(np.max(data["forwards"])), "cpu_seconds": round(float(data["seconds"][:, 1].mean()), 3),
               "steps": arm.steps or self.setting.steps}  # fmt: skip
        row |= {k: _rounded(st.interval(m[k])) for k in (*st.MEASURES, "stranger")}
        row["heads"] = {k[4:]: round(float(v.mean()), 4) for k, v in m.items() if k.startswith("hit ")}
        row["frechet"] = {k: _rounded([f(_flat(data[k]))])[0] for k, f in self.frechet.items()}
        if arm.rule is not None:
            row["guidance"] = repr(arm.rule)
        if arm.control in self.measures:
            row["difference"] = self.difference(name, arm.control)
        return row

    def difference(self, name: str, control: str) -> dict:
        """Of each measure to another arm: [mean, 2.5 %, 97.5 %]."""
        a, b = self.data[name], self.data[control]
        found = {k: st.paired((a["pairs"], self.measures[name][k]), (b["pairs"], self.measures[control][k]))
                 for k in st.MEASURES}  # fmt: skip
        for k, f in self.frechet.items():
            found[f"frechet_{k}"] = f.difference((a["pairs"], a[k]), (b["pairs"], b[k]))
        return {k: _rounded(v) for k, v in found.items()}

    def ratios(self) -> dict:
        """Size of the differences over sigma, as shares of |cond|: {"sigma": (steps,), "share": {name: (steps,)}}."""
        if "ratios" not in self.data:
            return {}
        d = self.data["ratios"]
        rms, names = d["rms"].astype(np.float64), d["names"][0].tolist()
        share = rms[:, :, 1:] / rms[:, :, :1]
        return {
            "pairs": len(rms), "sigma": _rounded(d["sigma"][0]), "cond": _rounded(rms[:, :, 0].mean(0)),
            "share": {n: _rounded(share[:, :, i].mean(0)) for i, n in enumerate(names[1:])},
            "cosine_to_absent": {n: _rounded(d["cosine"][:, :, i].mean(0)) for i, n in enumerate(names[1:])},
        }  # fmt: skip


def write(arms: list[Arm], setting: work.Setting, folder: Path, out: Path, base: float) -> int:
    work.begin(setting)
    found = Results(arms, setting, folder)
    one = json.loads(str(next(iter(found.data.values()))["about"]))
    devices = sorted({str(device) for data in found.data.values() for device in data["device"]})
    settings = {k: one[k] for k in ("dtype", "steps", "shift", "seed", "weights", "pairs_sha256")}
    settings["device"] = " and ".join(devices)
    seconds = {name: float(data["seconds"][:, 1].sum()) for name, data in found.data.items()}
    table = {"settings": settings | {"w": base, "paper_w": PAPER, "s": S},
             "missing": [a.name for a in arms if a.name not in found.data], "measures": st.MEASURES,
             "rows": found.rows, "ratios": found.ratios(), "cpu_seconds": round(sum(seconds.values())),
             "enhanced": _enhanced(found), "detector": found.about["seen_figures"]}  # fmt: skip
    earlier = out / "identity.json"
    if kept := earlier.is_file():
        kept = keep(table, json.loads(earlier.read_text(encoding="utf-8")), [a.name for a in arms], seconds)
    table["answer"] = words.answer(table, base)
    out.mkdir(parents=True, exist_ok=True)
    _write(earlier, json.dumps(table, indent=1) + "\n")
    _write(out / "identity.md", words.page(table, base))
    if not kept:
        sheet(found, out / "identity.jpg", base)
    print(*table["answer"], sep="\n")
    if kept:
        print(f"of {kept} arms whose results are not here, what the earlier report says is kept, and its pictures")
    if missing := table["missing"]:
        print(f"{len(missing)} arms are not in the report, since there are no results of them")
    return 0


def keep(table: dict, earlier: dict, names: list[str], seconds: dict[str, float]) -> int:
    """Adds to a report what an earlier one says of arms whose results are not here, if it is of the same settings: the
    number of them. names: of all arms, in order. seconds: of CPU, of the arms that are here."""
    one, two = ({k: v for k, v in t["settings"].items() if k != "device"} for t in (table, earlier))
    said = {*earlier["rows"], *(part for part in ("ratios", "enhanced") if earlier[part])}
    known = [name for name in table["missing"] if name in said]
    if one != two or not known:
        return 0
    devices = {d for t in (table, earlier) for d in t["settings"]["device"].split(" and ")}
    table["settings"]["device"] = " and ".join(sorted(devices))
    rows = {name: earlier["rows"][name] for name in known if name in earlier["rows"]} | table["rows"]
    table["rows"] = {name: rows[name] for name in names if name in rows}
    table["missing"] = [name for name in table["missing"] if name not in known]
    table["cpu_seconds"] = round(earlier["cpu_seconds"] + sum(v for name, v in seconds.items() if name not in said))
    for part in ("ratios", "enhanced"):
        table[part] = table[part] or earlier[part]
    return len(known)


def sheet(found: Results, path: Path, base: float) -> None:
    """Middle frames of the first pairs: a row an arm, its name at the left."""
    from ipvg.grid import label
    from ipvg.video import encode_jpeg

    rows = []
    for name in (n.format(w=f"{base:g}") for n in SHEET):
        if name == "reference":
            pictures = work.table("main_reference")[: work.SHOWN]
        elif "shown" in found.data.get(name, ()):
            pictures = found.data[name]["shown"][:, 1]
        else:
            continue
        strip = np.concatenate(list(pictures), 1)
        side = np.full((strip.shape[0], 128, 3), 255, np.uint8)
        text = label(name, 122, 1)[: strip.shape[0] - 6]
        side[4 : 4 + len(text), 3 : 3 + text.shape[1]] = text
        rows.append(np.concatenate([side, strip], 1))
    width = max(r.shape[1] for r in rows)
    rows = [np.pad(r, ((0, 2), (0, width - r.shape[1]), (0, 0)), constant_values=255) for r in rows]
    path.write_bytes(encode_jpeg(np.concatenate(rows), max_side=16384))


def _enhanced(found: Results) -> dict:
    """What PE and IE did to the conflicting pairs."""
    if "enhanced" not in found.data:
        return {}
    records = [json.loads(str(r)) for r in found.data["enhanced"]["record"]]
    likeness = [r["similarity"] for r in records if r["similarity"] is not None]
    return {
        "pairs": len(records),
        "prompts_changed": sum(r["prompt"] != r["caption"] for r in records),
        "references_replaced": len(likeness),
        "similarity_of_replacements": _rounded([np.mean(likeness)])[0] if likeness else None,
        "example": records[0],
    }


def _flat(x: np.ndarray) -> np.ndarray:
    return x.reshape(-1, x.shape[-1])


def _rounded(values) -> list[float]:
    return [float(f"{v:.4g}") for v in np.asarray(values, np.float64)]


def _write(path: Path, text: str) -> None:
    part = path.with_name(path.name + ".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)
