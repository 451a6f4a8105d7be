"""What a processor file needs: `from worker import Done, Effect, Fail, Record, Retry, Skip, processor`."""

from worker.core.context import Context
from worker.core.models import Done, Effect, Fail, Outage, Outcome, Record, Retry, Skip
from worker.processors import processor

__all__ = ["Context", "Done", "Effect", "Fail", "Outage", "Outcome", "Record", "Retry", "Skip", "processor"]
