"""Coverage: how many architectures capture reads, and whether what it claims holds on them.

``make coverage-report`` captures and verifies the networks of the tests, layers of PyTorch
Geometric, and model types of transformers built with tiny random weights, and writes
``benchmarks/results/coverage.md`` and ``coverage.json``. A failure is a row like any other, and
lets the command fail.

    architecture.py   what a row is about
    tiny_configs.py   sizes by the names of attributes of configurations
    transformers_*.py tables of model types;  pyg.py  layers on graphs;  hazards.py  of the tests
    architectures.py  all of them, in order
    precision.py      running a network in float64 although it asks for float32 inside
    measuring.py      one row: capture, verify, round trip, completeness
    running.py        one process per architecture, with a time limit
    report.py         table, totals, files
"""
