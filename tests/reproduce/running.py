"""A tiny run, and what has to be equal of two."""

from dataclasses import replace
from pathlib import Path

from reproduce.catalogue.flows import figure3
from reproduce.runs import Run, Settings

TINY = figure3("smoke").comparisons[0]
# Six steps, a check after each.
EPOCHS = ("--trainer.max_epochs=3",)
ALARM = "--trainer.callbacks+=tests.reproduce.records.Alarm"


def make(variant=TINY.baseline, seed=0, overrides=(), output="results"):
    variant = replace(variant, overrides=(*variant.overrides, *EPOCHS))
    return Run(variant, seed, Settings("smoke", Path(output), Path("data"), overrides))


def numbers(run):
    """What has to be equal: all but the clocks."""
    record = run.record()
    assert record.status == "finished", record.message
    checks = [check._replace(seconds=0.0, cpu_seconds=0.0) for check in record.checks]
    return record.values, checks
