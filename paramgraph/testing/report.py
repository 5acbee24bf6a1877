"""What a check measured: one row per law and network, and a table of them."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass

__all__ = ["LawReport", "LawRow"]

_WIDTH = 100
_MOST = 8  # broken rows of one law, laws with one reason


@dataclass(frozen=True)
class LawRow:
    """One law on one network.

    Attributes:
        law: Name of the law.
        network: Name of the network.
        error: What was measured; ``None`` if the law does not apply to the network.
        tolerance: The bound on it.
        note: Where the largest error was, or why the law does not apply.
        must_exceed: Whether the bound is a lower one (something must change) or an upper one.

    Example:
        >>> LawRow("sensitive", "mlp", 1e-12, 1e-5, must_exceed=True).passed
        False
    """

    law: str
    network: str
    error: float | None
    tolerance: float
    note: str = ""
    must_exceed: bool = False

    @property
    def applies(self) -> bool:
        """Whether the law says anything about the network."""
        return self.error is not None

    @property
    def passed(self) -> bool | None:
        """Whether the law holds (NaN never does); ``None`` if it does not apply."""
        if self.error is None:
            return None
        return self.error > self.tolerance if self.must_exceed else self.error <= self.tolerance

    def __str__(self) -> str:
        if self.error is None:
            return f"{self.law} on {self.network}: does not apply, {self.note}"
        bound = "more than" if self.must_exceed else "at most"
        note = f" ({self.note})" if self.note else ""
        return (
            f"{self.law} on {self.network}: {self.error:.1e}, {bound} {self.tolerance:.0e} "
            f"expected{note}"
        )


@dataclass(frozen=True)
class LawReport:
    """All laws on all networks.

    Attributes:
        name: What was checked.
        rows: One per law and network, those that do not apply included.

    Example:
        >>> report = LawReport("Mine", (LawRow("permutation", "mlp", 1e-15, 1e-8),))
        >>> report.passed
        True
        >>> print(report)
        Mine: passed 1 of 1 checks
        law          networks  worst    bound     at   verdict
        -----------  --------  -------  --------  ---  -------
        permutation  1         1.0e-15  <= 1e-08  mlp  passed
        <BLANKLINE>
        networks: mlp
    """

    name: str
    rows: tuple[LawRow, ...]

    @property
    def passed(self) -> bool:
        """Whether no law is broken; a report in which nothing applies has not passed."""
        return not self.failures and any(row.applies for row in self.rows)

    @property
    def failures(self) -> tuple[LawRow, ...]:
        """The broken laws."""
        return tuple(row for row in self.rows if row.passed is False)

    def of(self, law: str) -> tuple[LawRow, ...]:
        """The rows of one law.

        Args:
            law: Its name.

        Returns:
            One row per network.

        Raises:
            KeyError: The report has no such law.
        """
        rows = tuple(row for row in self.rows if row.law == law)
        if not rows:
            raise KeyError(f"no law {law!r} in the report; it has {self.laws}.")
        return rows

    @property
    def laws(self) -> tuple[str, ...]:
        """Names of the laws, in the order checked."""
        return tuple(dict.fromkeys(row.law for row in self.rows))

    @property
    def networks(self) -> tuple[str, ...]:
        """Names of the networks, in the order given."""
        return tuple(dict.fromkeys(row.network for row in self.rows))

    def __str__(self) -> str:
        applied = [row for row in self.rows if row.applies]
        num_passed = len(applied) - len(self.failures)
        verdict = "passed" if self.passed else "FAILED:"
        lines = [f"{self.name}: {verdict} {num_passed} of {len(applied)} checks"]
        lines += _table(
            [("law", "networks", "worst", "bound", "at", "verdict")]
            + [_line(law, self.of(law)) for law in self.laws]
        )
        lines += ["", *_wrapped(f"networks: {', '.join(self.networks)}", indent="")]
        if self.failures:
            lines += ["", "broken:"]
            for law in dict.fromkeys(row.law for row in self.failures):
                lines += _failures([row for row in self.failures if row.law == law])
        elsewhere = [row for row in self.rows if not row.applies]
        if elsewhere:
            lines += ["", "does not apply:", *_reasons(elsewhere)]
        return "\n".join(lines)


def _line(law: str, rows: tuple[LawRow, ...]) -> tuple[str, ...]:
    """The worst network of a law."""
    applied = [(row, row.error) for row in rows if row.error is not None]
    if not applied:
        return (law, "0", "-", "-", "-", "does not apply")
    # NaN counts as worst, and compares false with everything.
    broken = [(row, error) for row, error in applied if not row.passed]
    must_exceed = rows[0].must_exceed
    row, error = (min if must_exceed else max)(broken or applied, key=lambda pair: pair[1])
    bound = f"{'> ' if must_exceed else '<='} {row.tolerance:.0e}"
    verdict = f"FAILED on {len(broken)}" if broken else "passed"
    return (law, str(len(applied)), f"{error:.1e}", bound, row.network, verdict)


def _failures(rows: list[LawRow]) -> list[str]:
    """The broken rows of a law: all, or where there are many the first and the other names."""
    shown = rows if len(rows) <= _MOST else rows[: _MOST // 2]
    lines = [line for row in shown for line in _wrapped(str(row))]
    if others := [row.network for row in rows[len(shown) :]]:
        lines += _wrapped(f"{rows[0].law} also on {len(others)} others: {', '.join(others)}")
    return lines


def _reasons(rows: list[LawRow]) -> list[str]:
    """Rows that do not apply, those with the same law and reason on one line."""
    num_laws = Counter((row.network, row.note) for row in rows)
    together: dict[tuple[str, str], list[str]] = {}
    for row in rows:
        # A network that is refused is so for the same reason under each law.
        law = "all laws" if num_laws[row.network, row.note] > _MOST else row.law
        names = together.setdefault((law, row.note), [])
        if row.network not in names:
            names.append(row.network)
    lines = []
    for (law, why), names in together.items():
        shown = ", ".join(names) if len(names) <= 4 else f"{len(names)} networks"
        lines += _wrapped(f"{law} on {shown}: {why}")
    return lines


def _wrapped(text: str, indent: str = "  ") -> list[str]:
    """Lines that fit into a terminal."""
    further = indent + "  "
    return textwrap.wrap(text, _WIDTH, initial_indent=indent, subsequent_indent=further)


def _table(rows: Iterable[tuple[str, ...]]) -> list[str]:
    rows = list(rows)
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    lines = ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in rows]
    return [lines[0], "  ".join("-" * w for w in widths), *lines[1:]]
