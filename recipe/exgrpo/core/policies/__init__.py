"""What a training step asks of a method: one class a method, driven by the verl trainer and the laboratory alike."""

from recipe.exgrpo.core.config import ExGRPOConfig, build
from recipe.exgrpo.core.policies.anchored import Anchored
from recipe.exgrpo.core.policies.exgrpo import ExGRPO
from recipe.exgrpo.core.policies.grpo import GRPO
from recipe.exgrpo.core.policies.headroom import Headroom
from recipe.exgrpo.core.policies.luffy import Luffy
from recipe.exgrpo.core.policies.masked import Masked
from recipe.exgrpo.core.policies.policy import Policy
from recipe.exgrpo.core.policies.prompts import Prompts
from recipe.exgrpo.core.policies.refill import Refill
from recipe.exgrpo.core.policies.repo import RePO
from recipe.exgrpo.core.policies.rescue import Rescue
from recipe.exgrpo.core.policies.rl_zvp import RlZvp
from recipe.exgrpo.core.policies.rlep import Rlep
from recipe.exgrpo.core.policies.rules import find

__all__ = ["POLICIES", "Policy", "make_policy", "policy_class"]

POLICIES: dict[str, type[Policy]] = {
    "exgrpo": ExGRPO,
    "on_policy": Policy,
    "refill": Refill,
    "headroom": Headroom,
    "rescue": Rescue,
    "anchored": Anchored,
    "repo": RePO,
    "prompts": Prompts,
    "grpo": GRPO,
    "rl_zvp": RlZvp,
    "masked": Masked,
    "luffy": Luffy,
    "rlep": Rlep,
}


def policy_class(name: str) -> type[Policy]:
    """The class that `exgrpo.policy` names, by name or as `package.module:Class`; ValueError when it is none."""
    found = find("exgrpo.policy", name, POLICIES)
    if not (isinstance(found, type) and issubclass(found, Policy)):
        raise ValueError(f"exgrpo.policy={name} is not a class derived from recipe.exgrpo.core.policies.Policy.")
    return found


def make_policy(config: ExGRPOConfig, group_size: int) -> Policy:
    """The policy of `config` for groups of `group_size` = K; ValueError naming the key that it cannot work with."""
    kind = policy_class(config.policy)
    if kind.Options is None and config.options:
        raise ValueError(f"exgrpo.options is set, and exgrpo.policy={config.policy} has none.")
    options = None if kind.Options is None else build(kind.Options, config.options or {}, "exgrpo.options")
    return kind(config, group_size, options)
