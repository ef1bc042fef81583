"""The sections of the report that are text and tables: each gives its HTML, or `None` if there is no data for it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .markup import Markup, element, join, table

__all__ = ["notes", "results", "sanity", "setup", "summary", "worst_case"]

Document = Mapping[str, Any]

# Longer lists (the names of a thousand classes, one radius for each image) are cut.
_SHOWN = 12
_VERDICTS = {"pass": "pass", "fail": "fail"}


def percent(value: Mapping[str, Any]) -> str:
    """`93.5 %` of an accuracy in the document."""
    return f"{100 * value['accuracy']:.1f} %"


def interval(value: Mapping[str, Any]) -> str:
    """`91.8 to 94.9` of an accuracy in the document."""
    low, high = value["interval_95"]
    return f"{100 * low:.1f} to {100 * high:.1f}"


def number(value: float | None, digits: int) -> str | None:
    """The number with so many decimals, `None` if there is none."""
    return None if value is None else f"{value:,.{digits}f}"


def summary(document: Document) -> Markup:
    """Verdict of the sanity checks, the headline numbers and the bars."""
    clean, worst = document["clean"], document.get("worst_case")
    attacks = document["attacks"]
    tiles = [_tile("Clean accuracy", percent(clean), f"95 %: {interval(clean)}")]
    if worst:
        tiles.append(_tile("Robust, worst case", percent(worst), f"95 %: {interval(worst)}"))
    if attacks:
        least = min(each["robust"]["accuracy"] for each in attacks)
        first, *others = [each for each in attacks if each["robust"]["accuracy"] == least]
        name = ", ".join(each["name"] for each in (first, *others))
        tiles.append(
            _tile("Strongest attacks" if others else "Strongest attack", name, f"leaves {percent(first['robust'])}")
        )
    if "images" in document.get("data", {}):
        tiles.append(_tile("Images", f"{document['data']['images']:,}", str(document["data"].get("name", ""))))
    bars = [_bar("clean", clean, "clean")]
    bars += [_bar(each["name"], each["robust"], "") for each in attacks]
    if worst:
        bars.append(_bar("worst case", worst, "worst"))
    return join(
        [
            _banner(document),
            element("dl", *tiles, class_="tiles"),
            element("h3", "Accuracy under attack"),
            element(
                "p",
                "Share of images that are classified correctly, with Wilson’s 95 % interval. The worst case counts an "
                "image as correct only if it is so without attack and under every attack.",
                class_="muted",
            ),
            element("ul", *bars, class_="bars"),
        ]
    )


def _banner(document: Document) -> Markup:
    checks = document.get("sanity")
    if not checks:
        return element("div", element("p", "No sanity checks were run."), class_="banner quiet")
    failed = [check for check in checks if check["verdict"] == "fail"]
    counts = {verdict: sum(check["verdict"] == verdict for check in checks) for verdict in _order(checks)}
    told = ", ".join(f"{count} {verdict}" for verdict, count in counts.items())
    if not failed:
        return element("div", element("p", f"Sanity checks: no failure ({told})."), class_="banner good")
    lines = (
        element(
            "li", element("strong", check["name"]), f": {check['value']} (limit: {check['limit']}). {check['text']}"
        )
        for check in failed
    )
    head = element("p", element("strong", "Sanity checks failed: read these before the numbers"), f" ({told}).")
    return element("div", head, element("ul", *lines), class_="banner bad")


def _order(checks: Sequence[Mapping[str, Any]]) -> list[str]:
    first = [verdict for verdict in ("fail", "pass") if any(check["verdict"] == verdict for check in checks)]
    return list(dict.fromkeys([*first, *(check["verdict"] for check in checks)]))


def _tile(name: str, value: str, below: str) -> Markup:
    return element("div", element("dt", name), element("dd", value, element("small", below)), class_="tile")


def _bar(name: str, value: Mapping[str, Any], kind: str) -> Markup:
    low, high = (100 * bound for bound in value["interval_95"])
    track = element(
        "span",
        element("span", class_=f"fill {kind}".strip(), style=f"width:{100 * value['accuracy']:.2f}%"),
        element("span", class_="whisker", style=f"left:{low:.2f}%;width:{high - low:.2f}%"),
        class_="track",
        aria_hidden="true",
    )
    told = element("span", f"{percent(value)} ", element("small", f"({interval(value)})"), class_="value")
    return element("li", element("span", name, class_="name"), track, told)


def sanity(document: Document) -> Markup | None:
    """All checks: the failures, and the others folded away."""
    checks = document.get("sanity")
    if not checks:
        return None
    order = _order(checks)
    ranked = sorted(checks, key=lambda check: order.index(check["verdict"]))
    failed = [check for check in ranked if check["verdict"] == "fail"]
    others = ranked[len(failed) :]
    parts = [_checks("Checks of the evaluation itself that failed", failed)] if failed else []
    if others:
        body = _checks("Checks of the evaluation itself", others)
        parts.append(element("details", element("summary", f"{len(others)} checks without failure"), body))
    return join(parts)


def _checks(caption: str, checks: Sequence[Mapping[str, Any]]) -> Markup:
    rows = [
        [
            check["name"],
            _verdict(check["verdict"]),
            str(check.get("group", "")),
            str(check["value"]),
            str(check["limit"]),
            check["text"],
        ]
        for check in checks
    ]
    return table(caption, ["check", "verdict", "group", "value", "limit", "meaning"], rows, text_columns=range(1, 6))


def _verdict(verdict: str) -> Markup:
    return element("span", verdict, class_=f"verdict {_VERDICTS.get(verdict, 'other')}")


def results(document: Document) -> Markup:
    """The main table."""
    clean = document["clean"]
    none = [None] * 8
    rows = [["clean", _share(clean), number(clean.get("mean_loss"), 4), *none]]
    rows += [_attack_row(each) for each in document["attacks"]]
    head = [
        "attack", "accuracy (95 % interval)", "mean loss", "gradients", "forwards", "Krylov dim. (max)", "PSNR, dB",
        "SSIM", "largest Linf", "mean L2", "seconds",
    ]  # fmt: skip
    worst = document.get("worst_case")
    footer = ["worst case", _share(worst), *[None] * 9] if worst else None
    kept = [column for column in range(len(head)) if column < 2 or any(row[column] is not None for row in rows)]
    quality = [name for name in (head[column] for column in kept) if name in ("PSNR, dB", "SSIM", "mean L2")]
    over = f"; {', '.join(quality)} over the images that the attack changed" if quality else ""
    body = table(
        f"Robust accuracy and its cost. Numbers are means over the images{over}",
        [head[column] for column in kept],
        [[row[column] for column in kept] for row in rows],
        footer=None if footer is None else [footer[column] for column in kept],
    )
    explained = element(
        "p",
        "An exact Hessian-vector product counts as two gradients, a one-sided difference as one. An image stops "
        "costing anything once it is fooled. Forwards include the checks before and after the attack.",
        class_="muted",
    )
    return join([body, explained, _paired(document)])


def _share(value: Mapping[str, Any]) -> str:
    return f"{percent(value)} ({interval(value)})"


def _attack_row(each: Mapping[str, Any]) -> list[str | None]:
    dims = each.get("krylov_dims")
    return [
        each["name"],
        _share(each["robust"]),
        number(each.get("mean_loss"), 4),
        number(each.get("gradients_per_image"), 1),
        number(each.get("forwards_per_image"), 1),
        None if not dims else f"{dims['mean']:.2f} ({dims['max']})",
        number(each.get("psnr"), 1),
        number(each.get("ssim"), 3),
        number(each.get("linf_max"), 4),
        number(each.get("l2_mean"), 3),
        number(each.get("seconds"), 1),
    ]


def _paired(document: Document) -> Markup | None:
    """Differences between attacks on the same images, if the document has them."""
    rows = []
    seen: set[str] = set()
    for each in document["attacks"]:
        seen.add(each["name"])
        for other, value in (each.get("paired_vs") or {}).items():
            if other in seen:
                continue
            low, high = value["interval_95"]
            told = f"{100 * value['difference']:+.1f} points ({100 * low:+.1f} to {100 * high:+.1f})"
            rows.append([f"{each['name']} – {other}", told])
    if not rows:
        return None
    caption = (
        "Differences of robust accuracy on the same images, with 95 % intervals. Below zero: the first is stronger"
    )
    return element("details", element("summary", "Paired differences"), table(caption, ["attacks", "difference"], rows))


def worst_case(document: Document) -> Markup | None:
    """Which attack breaks how many images."""
    worst = document.get("worst_case")
    if not worst or not worst.get("broken_by"):
        return None
    only = worst.get("only_by", {})
    correct = document["clean"]["correct"]
    rows = [
        [
            name,
            f"{count:,}",
            f"{100 * count / correct:.1f} %" if correct else None,
            f"{only[name]:,}" if name in only else None,
        ]
        for name, count in sorted(worst["broken_by"].items(), key=lambda pair: -pair[1])
    ]
    return table(
        f"Of the {correct:,} images that are classified correctly without attack",
        ["broken by", "images", "share", "by no other attack"],
        rows,
    )


def notes(document: Document) -> Markup | None:
    """What a reader must know to read the numbers right."""
    lines = document.get("notes")
    return element("ul", *(element("li", str(line)) for line in lines)) if lines else None


def setup(document: Document) -> Markup:
    """Configuration, network, data, versions, hardware, and the command that repeats it all."""
    parts: list[Markup] = []
    command = document.get("command_line") or document.get("command")
    if command:
        text = command if isinstance(command, str) else " ".join(map(str, command))
        parts += [element("h3", "How to reproduce"), element("pre", element("code", text))]
    for title, key in (
        ("Network", "model"),
        ("Data", "data"),
        ("Configuration", "config"),
        ("Versions", "versions"),
        ("Hardware", "hardware"),
    ):
        if document.get(key):
            parts += [element("h3", title), _facts(document[key])]
    options = {each["name"]: each["options"] for each in document["attacks"] if each.get("options")}
    if options:
        parts.append(element("h3", "Options of the attacks"))
        parts += [element("details", element("summary", name), _facts(value)) for name, value in options.items()]
    return join(parts)


def _facts(value: Any) -> Markup:
    """Names and values of a mapping, nested ones with a dotted name; anything else as text."""
    if not isinstance(value, Mapping):
        return element("p", _plain(value))
    pairs = (
        join([element("dt", name.replace("_", " ")), element("dd", _plain(fact))]) for name, fact in _flat(value, "")
    )
    return element("dl", *pairs, class_="facts")


def _flat(value: Mapping[str, Any], prefix: str) -> list[tuple[str, Any]]:
    pairs: list[tuple[str, Any]] = []
    for name, fact in value.items():
        if isinstance(fact, Mapping):
            pairs += _flat(fact, f"{prefix}{name}.")
        else:
            pairs.append((f"{prefix}{name}", fact))
    return pairs


def _plain(fact: Any) -> str:
    if fact is None:
        return "not set"
    if isinstance(fact, bool):
        return "yes" if fact else "no"
    if isinstance(fact, list):
        shown = ", ".join(map(_plain, fact[:_SHOWN]))
        return f"{shown}, … ({len(fact)} in all)" if len(fact) > _SHOWN else shown or "none"
    return f"{fact:g}" if isinstance(fact, float) else str(fact)
