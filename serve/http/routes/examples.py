"""Examples of requests and replies, for the description of the API. A test sends those and compares these."""

from typing import Any

Json = dict[str, Any]

_PICTURE = "iVBORw0KGgo..."
_USAGE = {"input_tokens": 12, "output_tokens": 16, "total_tokens": 28}

REQUESTS: dict[str, Json] = {
    "/v1/images/generations": {"prompt": "a red circle", "n": 1, "seed": 1, "num_inference_steps": 10},
    "/v1/chat/completions": {
        "messages": [{"role": "user", "content": "What color is the sky?"}],
        "max_completion_tokens": 16,
        "temperature": 0,
    },
    "/v1/responses": {"input": "What color is the sky?", "max_output_tokens": 16},
}
REPLIES: dict[str, Json] = {
    "/v1/images/generations": {
        "created": 1767225600,
        "data": [{"b64_json": _PICTURE, "seed": 1}],
        "size": "64x64",
        "quality": "medium",
        "background": "opaque",
        "output_format": "png",
        "num_inference_steps": 10,
        "guidance_scale": 2.0,
        "usage": _USAGE,
    },
    "/v1/chat/completions": {
        "id": "chatcmpl-1f0c",
        "object": "chat.completion",
        "created": 1767225600,
        "model": "blip3o",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": "blue"}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 12, "completion_tokens": 1, "total_tokens": 13},
    },
    "/v1/responses": {
        "id": "resp_1f0c",
        "object": "response",
        "created_at": 1767225600,
        "model": "blip3o",
        "status": "completed",
        "output": [
            {
                "id": "msg_1f0c",
                "type": "message",
                "role": "assistant",
                "status": "completed",
                "content": [{"type": "output_text", "text": "blue", "annotations": []}],
            }
        ],
        "usage": _USAGE,
    },
}
