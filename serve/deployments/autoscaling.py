"""How many replicas of the model there should be: a custom autoscaling policy of Ray Serve.

Serve's own policy counts requests. Here, a request may be one image or ten, of 1 step or 250, so the policy looks at
rows and at seconds of work, which each replica reports. Serve applies bounds, delays and factors to its answer.

Serve pickles this module by value and runs it in its controller, which may lack this package: it imports nothing of it.
"""

from typing import Any

ROWS = "rows"  # images in slots, in the queue and at the decoder, and conversations
WORK = "work_s"  # seconds until the replica has done what it holds now


class RowsAndWork:
    """Enough replicas for the rows in work and for the wait ahead, whichever needs more, and some to spare."""

    def __init__(self, target_wait_s: float, spare_replicas: int = 0) -> None:
        """`target_wait_s`: seconds of work per replica. The rows per replica are Serve's `target_ongoing_requests`.

        `spare_replicas` come on top of what the load needs; without load, Serve's lower bound has them.
        """
        self._target_wait_s = target_wait_s
        self._spare_replicas = spare_replicas

    def __call__(self, context: Any) -> tuple[float, dict[str, Any]]:  # noqa: ANN401 - Serve's AutoscalingContext
        """The number of replicas wanted, as a fraction, and no state. Called by Serve at every tick.

        Requests that wait in front of the replicas are in no replica's report: each counts as a row.
        """
        reports = context.aggregated_metrics or {}
        waiting = max(context.total_queued_requests or 0.0, 0.0)
        rows = max(sum(reports.get(ROWS, {}).values()) + waiting, context.total_num_requests)
        work_s = sum(reports.get(WORK, {}).values())
        target_rows = context.config.get_target_ongoing_requests()
        return max(rows / target_rows, work_s / self._target_wait_s) + self._spare_replicas, {}
