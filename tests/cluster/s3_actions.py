"""Which IAM action each request to an S3 store needs, and a plan for the proxy of `tests.faults` that notes them."""

from urllib.parse import parse_qs, urlsplit

from tests.faults import Request


def action(method: str, path: str) -> str:
    """The action that allows a request, from AWS's table of S3's operations and permissions."""
    parts = urlsplit(path)
    bucket, _, key = parts.path.strip("/").partition("/")
    query = parse_qs(parts.query, keep_blank_values=True).keys()
    if not bucket:
        return "s3:ListAllMyBuckets"
    if not key:
        special = {"location": "s3:GetBucketLocation", "uploads": "s3:ListBucketMultipartUploads"}
        known = {"GET": "s3:ListBucket", "HEAD": "s3:ListBucket", "POST": "s3:DeleteObject", "PUT": "s3:CreateBucket"}
        return next((special[name] for name in query if name in special), known.get(method, f"s3:Bucket{method}"))
    if "uploadId" in query and method in ("GET", "DELETE"):
        return {"GET": "s3:ListMultipartUploadParts", "DELETE": "s3:AbortMultipartUpload"}[method]
    if others := sorted({"acl", "tagging", "attributes", "retention", "versionId"} & query):
        return f"s3:{method}Object{others[0]}"
    known = {"GET": "s3:GetObject", "HEAD": "s3:GetObject", "DELETE": "s3:DeleteObject"}
    return known.get(method, "s3:PutObject")


class Noted:
    """A plan without faults that keeps the actions of the requests it sees."""

    def __init__(self) -> None:
        self.actions: set[str] = set()

    def __call__(self, request: Request) -> None:
        self.actions.add(action(request.method, request.path))
