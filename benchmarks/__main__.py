"""Run every benchmark: ``python -m benchmarks``."""

from benchmarks import fit_inrs, train_step


def main() -> None:
    """Fit INRs, then measure training steps of the metanetworks."""
    train_step.main()
    fit_inrs.main()


if __name__ == "__main__":
    main()
