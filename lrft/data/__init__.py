"""Data: from files to tokenised rows, sampling and batches.

read, hub: records -> format, collect: samples -> template: pieces -> tokenize, measure, split: rows
"""

from lrft.data.config import reading, require_options, resolve_chat_template, with_options, with_template
from lrft.data.dataset import Row, Rows
from lrft.data.embedding import refuse_missing_rows
from lrft.data.prepare import Prepared, prepare, prepare_file, with_rows_apart
from lrft.data.report import DataReport, SourceReport
from lrft.data.sampler import BatchSchedule, epoch_order
from lrft.data.token_mask import encode_prompt

__all__ = [
    "BatchSchedule",
    "DataReport",
    "Prepared",
    "Row",
    "Rows",
    "SourceReport",
    "encode_prompt",
    "epoch_order",
    "prepare",
    "prepare_file",
    "reading",
    "refuse_missing_rows",
    "require_options",
    "resolve_chat_template",
    "with_options",
    "with_rows_apart",
    "with_template",
]
