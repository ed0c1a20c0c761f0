"""Top activating tokens in context: where in running text a unit is largest, and how a reader is shown it."""

import html
from collections.abc import Sequence

import numpy as np

from mmlib.llm import LanguageModel
from mmlib.windows import Window


def pieces_of(lm: LanguageModel, token_ids: Sequence[int]) -> list[str]:
    """The text of each token, spaces included: what a token adds to the text of the one before it."""
    ids = [int(i) for i in token_ids]
    alone = lm.tokenizer.batch_decode([[i] for i in ids])
    both = lm.tokenizer.batch_decode([ids[i - 1 : i + 1] for i in range(1, len(ids))])
    return [
        *alone[:1],
        *(
            two[len(one) :] if two.startswith(one) else now
            for one, two, now in zip(alone, both, alone[1:])
        ),
    ]


def top_contexts(
    values_n: np.ndarray,
    windows: Sequence[Window],
    pieces: Sequence[Sequence[str]],
    count: int,
    reach: int,
) -> list[dict]:
    """Where a unit is largest, one place a window, largest first: the tokens around it, and the unit at each.

    Args:
        values_n: the unit at every token of the windows, one window after another.
        pieces: of the windows' tokens, see `pieces_of`.
        reach: tokens before it, and half as many behind it.
    Returns:
        Dictionaries of `pieces`, `values` (from 0, the unit's median and below, to 1, its largest) and `at`, the place of the token among them.
    Raises:
        ValueError: as many values as tokens were expected.
    """
    ends = np.cumsum([len(window.token_ids) for window in windows])
    if len(values_n) != ends[-1]:
        raise ValueError(f"{len(values_n)} values for {ends[-1]} tokens")
    parts = np.split(values_n, ends[:-1])
    least, largest, found = float(np.median(values_n)), float(values_n.max()), []
    for i in np.argsort([-part.max() for part in parts], kind="stable")[:count]:
        place = int(parts[i].argmax())
        around = slice(max(0, place - reach), place + reach // 2 + 1)
        found.append(
            {
                "pieces": list(pieces[i][around]),
                "at": place - around.start,
                "values": [
                    round(float(v), 3)
                    for v in np.clip((parts[i][around] - least) / max(largest - least, 1e-12), 0, 1)
                ],
            }
        )
    return found


def as_html(title: str, contexts: Sequence[dict]) -> str:
    """The contexts with each token shaded by its value; the text is escaped."""
    lines = []
    for context in contexts:
        tokens = [
            f'<span style="background:rgba(213,94,0,{0.75 * value:.2f})">{html.escape(piece).replace(chr(10), "↵")}</span>'
            for piece, value in zip(context["pieces"], context["values"])
        ]
        at = context["at"]
        tokens[at] = f"<b>{tokens[at]}</b>"
        lines.append(
            f'<div style="font-family:monospace;font-size:85%;white-space:pre-wrap">…{"".join(tokens)}…</div>'
        )
    return f'<div style="margin:0.6em 0"><b>{html.escape(title)}</b>{"".join(lines)}</div>'
