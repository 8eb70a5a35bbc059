"""Turn weights of the public FFJORD or RNODE code into a checkpoint for ``cli.py``.

python scripts/import_released.py --config configs/cnf/mnist_rnode.yaml WEIGHTS.pth OUTPUT.ckpt
python cli.py test --config configs/cnf/mnist_rnode.yaml --ckpt_path OUTPUT.ckpt
"""

import argparse
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from cli import main  # noqa: E402
from steer_lightning.nn.flows.released_weights import (  # noqa: E402
    load_released_weights,
    read_released_weights,
)


def import_weights(config: str, weights: Path, output: Path) -> None:
    """Build the model of a config, give it the weights, and save it."""
    state_dict = read_released_weights(weights)
    built = main(["--config", config, "--trainer.logger=false"], run=False)
    load_released_weights(built.model.flow, state_dict)
    built.trainer.strategy.connect(built.model)
    built.trainer.save_checkpoint(output, weights_only=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--config", required=True, help="config of the same architecture")
    parser.add_argument("weights", type=Path, help="file that the public code saved")
    parser.add_argument("output", type=Path, help="Lightning checkpoint to write")
    arguments = parser.parse_args()
    import_weights(arguments.config, arguments.weights, arguments.output)
    print(f"Wrote {arguments.output}")
