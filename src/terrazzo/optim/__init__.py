"""Optimizers, parameter roles and schedules."""

from terrazzo.optim.adamw import AdamWConfig as AdamWConfig
from terrazzo.optim.base import optimizer_state_bytes as optimizer_state_bytes
from terrazzo.optim.choice import OPTIMIZERS as OPTIMIZERS
from terrazzo.optim.choice import OptimizerConfig as OptimizerConfig
from terrazzo.optim.lion import Lion as Lion
from terrazzo.optim.lion import LionConfig as LionConfig
from terrazzo.optim.muon import Muon as Muon
from terrazzo.optim.muon import MuonConfig as MuonConfig
from terrazzo.optim.roles import ROLES as ROLES
from terrazzo.optim.roles import Role as Role
from terrazzo.optim.roles import roles as roles
from terrazzo.optim.schedules import Ramp as Ramp
from terrazzo.optim.schedules import Schedule as Schedule
from terrazzo.optim.schedules import ScheduleConfig as ScheduleConfig
from terrazzo.optim.stable_adamw import StableAdamW as StableAdamW
from terrazzo.optim.stable_adamw import StableAdamWConfig as StableAdamWConfig
