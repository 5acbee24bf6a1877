"""``python -m benchmarks`` measures speed; ``python -m benchmarks NAME ...`` runs the others."""

import sys
from collections.abc import Callable

from benchmarks import capture_sizes, fit_inrs, laws, speed

BENCHMARKS: dict[str, Callable[[], int | None]] = {
    "fit_inrs": fit_inrs.main,
    "capture_sizes": capture_sizes.main,
    "laws": laws.main,
}
"""Those that are run by name; speed is what runs without one."""


def main(words: list[str] | None = None) -> int:
    """Run the benchmark of speed with its options, or those with these names in turn.

    Args:
        words: Names of ``BENCHMARKS``, or options of ``benchmarks.speed``.

    Returns:
        1 when one of them failed or does not exist, else 0.
    """
    chosen = words or []
    if not chosen or chosen[0].startswith("-"):
        return speed.main(chosen)
    for name in chosen:
        if name not in BENCHMARKS:
            print(
                f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}, and without a name "
                "that of speed (python -m benchmarks --help)",
                file=sys.stderr,
            )
            return 1
    return max([BENCHMARKS[name]() or 0 for name in chosen])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
