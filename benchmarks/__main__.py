"""Run every benchmark: ``python -m benchmarks``."""

from importlib import import_module

from benchmarks.timing import machine

NAMES = (
    "callback_cost", "flow_step", "first_step", "cnf_step", "classifier_step", "ode_rnn",
    "recompilations", "stiff", "work_precision",
)  # fmt: skip

if __name__ == "__main__":
    print(machine())
    for name in NAMES:
        benchmark = import_module(f"benchmarks.{name}")
        print(f"\n## {(benchmark.__doc__ or '').splitlines()[0]}\n\n{benchmark.run()}")
