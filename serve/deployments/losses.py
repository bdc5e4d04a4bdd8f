"""Which exceptions of Ray mean that a request was lost with a process or a node, and not that it was wrong.

Ray has no common class for them. A test goes through all classes of `ray.exceptions`, so that a new one is placed here.
"""

from ray.exceptions import (
    ActorPlacementGroupRemoved,
    ActorUnschedulableError,
    LocalRayletDiedError,
    NodeDiedError,
    ObjectLostError,
    ObjectStoreFullError,
    OutOfDiskError,
    OutOfMemoryError,
    PendingCallsLimitExceeded,
    RayActorError,
    RpcError,
    TaskCancelledError,
    TaskPlacementGroupRemoved,
    TaskUnschedulableError,
    WorkerCrashedError,
)
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, ReplicaUnavailableError

# The replica, its node, or the reply in its node's memory is gone: another replica can do the work. An exception of a
# replica's own code is a `RayTaskError`, which is one of these only if the code waited for a process that was lost.
LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    LocalRayletDiedError,
    ObjectLostError,
    OutOfMemoryError,
    RpcError,
    ReplicaUnavailableError,
)

# Nobody can do it now, or somebody has ended it: the client may try again, and we do not.
UNAVAILABLE = (
    DeploymentUnavailableError,
    TaskCancelledError,
    ObjectStoreFullError,
    OutOfDiskError,
    ActorUnschedulableError,
    ActorPlacementGroupRemoved,
    TaskUnschedulableError,
    TaskPlacementGroupRemoved,
)

# Too many requests wait in front of the replicas.
BUSY = (BackPressureError, PendingCallsLimitExceeded)
