"""The `exgrpo:` settings that a preset changes, read from the yaml files that runs are composed of."""

from typing import Any

from omegaconf import OmegaConf

from recipe.exgrpo.presets.compose import CONFIG_DIR

GROUPS = ("method", "ablation")


def preset_names(group: str) -> list[str]:
    """The presets of a group (`method`, `ablation`), sorted."""
    return sorted(path.stem for path in (CONFIG_DIR / group).glob("*.yaml"))


def preset_settings(group: str, name: str) -> dict[str, Any]:
    """What `group=name` changes below `exgrpo:`; FileNotFoundError when there is no such preset."""
    return OmegaConf.to_container(OmegaConf.load(CONFIG_DIR / group / f"{name}.yaml")).get("exgrpo", {})
