"""ipvg guidance list | show"""

from __future__ import annotations

import argparse
import json

from .parts import OK, UsageError, command, count


def add(commands) -> None:
    sub = commands.add_parser(
        "guidance", help="The guidance methods: formula, branches, cost.", description="The guidance methods.",
        epilog="examples:\n  ipvg guidance list\n  ipvg guidance show tpige_code\n"
        "  ipvg guidance show 'cfg(w=6) + stg_r(s=1, blocks=[9])' --json",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )  # fmt: skip
    actions = sub.add_subparsers(metavar="ACTION", required=True)
    command(actions, "list", run_list, "All presets: what they are called, compute and cost.", "  ipvg guidance list")
    show = command(
        actions, "show", run_show, "One guidance: its formula, branches, weights and what it costs.",
        "  ipvg guidance show tpige_code\n"
        "  ipvg guidance show 'interval(w=6)' --steps 20 --json\n"
        "  ipvg guidance show my_guidance.json",
    )  # fmt: skip
    show.add_argument("name", metavar="PRESET|FILE.json", help="as --guidance takes it").complete = ("presets",)
    show.add_argument("--steps", type=count, default=50, help="of the run whose cost is told (default: 50)")


def run_list(args) -> int:
    from ..guidance import PRESETS, forwards

    rows = []
    for name, make in PRESETS.items():
        rule = make()
        about = " ".join(make.__doc__.split()).split(". ")[0].rstrip(".")
        rows.append({"name": name, "about": about, "formula": rule.combine, "forwards": max(forwards(rule))})
    if args.json:
        print(json.dumps(rows, indent=1))
    else:
        print("forwards of the model at a step, name, formula")
        for row in rows:
            print(f"{row['forwards']}  {row['name']:15} {row['formula']}\n{'':19}{row['about']}")
    return OK


def run_show(args) -> int:
    from ..guidance import forwards, read
    from ..schedule import Schedule

    try:
        rule = read(args.name)
    except ValueError as error:
        raise UsageError(str(error)) from None
    cost = forwards(rule, Schedule(args.steps))
    if args.json:
        print(json.dumps({**rule.to_dict(), "forwards": cost, "forwards_total": sum(cost)}, indent=1))
        return OK
    print(rule)
    if len(set(cost)) == 1:
        print(f"cost: {cost[0]} forward{'s' * (cost[0] != 1)} a step, {sum(cost)} in {args.steps} steps")
    else:
        print(f"cost: {min(cost)} to {max(cost)} forwards a step, {sum(cost)} in {args.steps} steps")
    return OK
