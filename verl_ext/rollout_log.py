"""verl's agent loops log the traceback of every request: an engine that dies writes 31,000 lines. Once is enough.

Imported by verl in every process (`VERL_USE_EXTERNAL_MODULES`, see quiet.py).
"""

import logging

from verl_ext.quiet import Once

logging.getLogger("verl.trainer.ppo.v1.agent_loop_tq").addFilter(Once())
