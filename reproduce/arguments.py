"""Arguments of ``cli.py`` that experiments are made of."""

# Parts of a config, on the command line.
MODEL, DATA, TRAINER = "--model.init_args", "--data.init_args", "--trainer"
FLOW = f"{MODEL}.flow.init_args"
FIELD, NETWORK = f"{FLOW}.vector_field.init_args", f"{MODEL}.network.init_args"


def options(room: str, **values: object) -> tuple[str, ...]:
    """Arguments of ``cli.py`` for one part of the config.

    Example:
        >>> options(DATA, batch_size=4, image_size=16)
        ('--data.init_args.batch_size=4', '--data.init_args.image_size=16')
    """
    return tuple(f"{room}.{name}={value}" for name, value in values.items())


# Two optimisation steps, a check after each, one batch everywhere else.
SMOKE = options(
    TRAINER, max_epochs=1, max_steps=-1, limit_train_batches=2, val_check_interval=1,
    limit_val_batches=1, limit_test_batches=1, num_sanity_val_steps=0,
)  # fmt: skip


def decaying(n_steps: int, **schedule: object) -> tuple[str, ...]:
    """STEER whose b changes over the first 70 % of the steps."""
    return options("--steer.b", **schedule, length=max(1, round(0.7 * n_steps)))


def widths(*values: float, prefix: str = "STEER, ") -> dict[str, tuple[str, ...]]:
    """Labels and arguments of STEER with several half-widths."""
    return {f"{prefix}b = {b:g}": (f"--steer.b={b}",) for b in values}
