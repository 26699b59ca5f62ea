"""The data statistics of the report: what was kept, how long it is, how it splits into tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from terrazzo.data import Corpus
from terrazzo.errors import InputError
from terrazzo.train.report.charts import Figure, XAxis, histogram
from terrazzo.train.report.markup import Html, facts, table, tag
from terrazzo.train.report.record import RunRecord
from terrazzo.train.report.sections import nothing, section, trained_tokens
from terrazzo.train.units import percent, short, significant, whole

_BINS = 32


def documents_words(run: RunRecord) -> str:
    return ""


def data(run: RunRecord) -> Html:
    return section("Data", nothing("pending"))
