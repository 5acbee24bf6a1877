"""Run benchmarks: ``python -m benchmarks`` for all, ``python -m benchmarks NAME ...`` for some."""

import sys
from collections.abc import Callable

from benchmarks import capture_sizes, fit_inrs, laws, train_step

BENCHMARKS: dict[str, Callable[[], int | None]] = {
    "train_step": train_step.main,
    "fit_inrs": fit_inrs.main,
    "capture_sizes": capture_sizes.main,
    "laws": laws.main,
}


def main(names: list[str] | None = None) -> int:
    """Run the benchmarks with these names, one after the other.

    Args:
        names: Keys of ``BENCHMARKS``; all of them if there are none.

    Returns:
        1 when one of them failed or does not exist, else 0.
    """
    chosen = names or list(BENCHMARKS)
    for name in chosen:
        if name not in BENCHMARKS:
            print(f"no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}", file=sys.stderr)
            return 1
    return max([BENCHMARKS[name]() or 0 for name in chosen])


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
