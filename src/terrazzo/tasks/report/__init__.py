"""OUT/report.html: one self-contained page about a fine-tuning."""

from terrazzo.tasks.report.page import write_finetune_report

__all__ = ["write_finetune_report"]
