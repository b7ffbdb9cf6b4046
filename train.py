"""Fine-tune: ``python train.py [key=value ...]``; ``--help`` lists groups and keys, ``-m`` runs a sweep."""

import os
import sys

# Inside a wheel this file lies in the package, whose types.py and tokenizers/ must not hide the world's.
if os.path.exists(os.path.join(sys.path[0], "__init__.py")):  # noqa: PTH110, PTH118
    del sys.path[0]

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from glm_lightning import config, sweeps


@hydra.main(version_base="1.3", config_path=str(config.conf_dir()), config_name="train")
def main(cfg: DictConfig) -> float | None:
    """Run one job, or one job of a sweep."""
    with config.exit_on_user_error():
        if sweeps.is_search(cfg):
            return sweeps.search(cfg)
        if HydraConfig.get().mode is RunMode.MULTIRUN:
            return sweeps.run_job(cfg)
        from glm_lightning.training import run

        run(cfg, overrides=list(HydraConfig.get().overrides.task))
        return None


if __name__ == "__main__":
    with config.exit_on_user_error():
        sys.argv[1:] = config.arguments(sys.argv[1:])
    main()
