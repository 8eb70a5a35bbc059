"""Every experiment: the tables and figures of the paper, two sweeps over b, the regularisers."""

from reproduce.catalogue import classifiers, flows, regularizers, series, stiff, sweeps

# By name, in the order of ``all``: the most runs last.
EXPERIMENTS = {
    make.__name__: make
    for make in (
        flows.figure1,
        flows.figure3,
        sweeps.sweep_b_flow,
        classifiers.table5,
        classifiers.figure2,
        sweeps.sweep_b_classifier,
        stiff.figure5,
        stiff.figure4,
        stiff.stiff_solvers,
        series.figure6,
        series.table2,
        series.table3,
        series.table3_as_run,
        series.table4,
        flows.table1,
        regularizers.regularizers_toy2d,
        regularizers.regularizers_mnist_node_small,
        regularizers.regularizers_mnist_node_mlp,
        regularizers.regularizers_physionet,
    )
}
# What else a name on the command line may mean.
GROUPS = {
    "all": tuple(EXPERIMENTS),
    "sweep_b": ("sweep_b_flow", "sweep_b_classifier"),
    "regularizers": tuple(f"regularizers_{task}" for task in regularizers.TASKS),
}
