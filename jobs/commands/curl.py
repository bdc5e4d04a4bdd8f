"""Lines that a user can paste to try a server: an image to a file, a question, the models."""


def examples(url: str) -> tuple[str, ...]:
    """Three commands for any curl; the first writes circle.png. Each fits in 80 columns, line by line."""
    is_json = "  -H 'Content-Type: application/json' \\\n"
    return (
        f"curl -s {url}/v1/images/generations \\\n{is_json}"
        """  -d '{"prompt": "a red circle", "seed": 1}' |\n"""
        r"""  sed 's/.*"b64_json":"\([^"]*\)".*/\1/' | base64 -d > circle.png""",
        f"curl -sN {url}/v1/chat/completions \\\n{is_json}"
        """  -d '{"messages": [{"role": "user", "content": "Hi"}], "stream": true}'""",
        f"curl -s {url}/v1/models",
    )
