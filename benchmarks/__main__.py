"""Run every benchmark: ``python -m benchmarks``."""

from benchmarks import (
    callback_cost,
    classifier_step,
    cnf_step,
    first_step,
    flow_step,
    ode_rnn,
    recompilations,
    stiff,
    work_precision,
)
from benchmarks.timing import machine

if __name__ == "__main__":
    print(machine())
    for benchmark in (
        callback_cost, flow_step, first_step, cnf_step, classifier_step, ode_rnn, recompilations,
        stiff, work_precision,
    ):  # fmt: skip
        print(f"\n## {(benchmark.__doc__ or '').splitlines()[0]}\n\n{benchmark.run()}")
