"""`/docs`: the OpenAPI document as one page, without scripts or anything from elsewhere."""

from __future__ import annotations

import json
from collections.abc import Iterator
from html import escape
from typing import Any, Final

_STYLE: Final = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem }
code, pre { font: 13px/1.4 ui-monospace, monospace }
pre { background: #8881; padding: .7rem; overflow-x: auto; border-radius: 4px }
h2 { margin-top: 2.5rem; text-transform: capitalize }
h3 { margin-top: 2rem; border-top: 1px solid #8884; padding-top: 1rem }
.method { font-weight: 700 }
td, th { text-align: left; vertical-align: top; padding: .1rem 1rem .1rem 0 }
:root { color-scheme: light dark }
"""


def page(document: dict[str, Any]) -> str:
    """The page of an OpenAPI document: each operation with parameters, examples and statuses."""
    about = document["info"]
    by_topic: dict[str, list[str]] = {}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            topic = operation.get("tags", ["other"])[0]
            by_topic.setdefault(topic, []).append(
                "\n".join(_operation(document, method.upper(), path, operation))
            )
    topics = "\n".join(
        f"<h2>{escape(topic)}</h2>\n" + "\n".join(parts) for topic, parts in by_topic.items()
    )
    title = escape(f"{about['title']} {about['version']}")
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{title}</title>"
        f"<style>{_STYLE}</style><h1>{title}</h1>{_text(about['description'])}"
        '<p>For programs: <a href="openapi.json">openapi.json</a>. Where there are API keys, send '
        f"one as <code>Authorization: Bearer KEY</code>.</p>{topics}</html>"
    )


def _operation(
    document: dict[str, Any], method: str, path: str, operation: dict[str, Any]
) -> Iterator[str]:
    yield (
        f'<h3 id="{escape(operation["operationId"])}"><code><span class="method">{method}</span> '
        f"{escape(path)}</code></h3><p><b>{escape(operation['summary'])}</b></p>"
    )
    yield _text(operation.get("description", ""))
    if parameters := operation.get("parameters"):
        rows = "".join(_parameter(one) for one in parameters)
        yield f"<table><tr><th>parameter</th><th>in</th><th>meaning</th></tr>{rows}</table>"
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<p>Body: <code>{escape(kind)}</code></p>{_example(document, content)}"
    answers: dict[str, Any] = operation["responses"]
    for status, answer in answers.items():
        if status.startswith("2"):
            yield f"<p>{_status(status, answer)}</p>"
            for content in answer.get("content", {}).values():
                yield _example(document, content)
    problems = [_status(s, answer) for s, answer in answers.items() if not s.startswith("2")]
    if problems:
        yield f"<p>Otherwise {', '.join(problems)}.</p>"


def _status(status: str, answer: dict[str, Any]) -> str:
    return f"<b>{escape(status)}</b> {_inline(answer.get('description', ''))}"


def _parameter(one: dict[str, Any]) -> str:
    schema = one["schema"]
    choices: list[object] = schema.get("enum") or next(
        (part["enum"] for part in schema.get("anyOf", ()) if "enum" in part), []
    )
    told = [one.get("description", "").removesuffix(".")]
    if choices:
        told.append("one of " + ", ".join(f"`{choice}`" for choice in choices))
    if schema.get("default") not in (None, ""):
        told.append(f"`{schema['default']}` where it is left out")
    meaning = _inline(". ".join(part[:1].upper() + part[1:] for part in told if part))
    need = " (needed)" if one.get("required") else ""
    return (
        f"<tr><td><code>{escape(one['name'])}</code>{need}</td><td>{escape(one['in'])}</td>"
        f"<td>{meaning}</td></tr>"
    )


def _example(document: dict[str, Any], content: dict[str, Any]) -> str:
    """The example that a content has, or one put together from the examples of its fields."""
    if "example" in content:
        value = content["example"]
    elif "examples" in content:
        value = next(iter(content["examples"].values()))["value"]
    else:
        value = _made_up(document, content.get("schema", {}))
    if value is None:
        return ""
    return f"<pre>{escape(json.dumps(value, indent=1, ensure_ascii=False))}</pre>"


def _made_up(document: dict[str, Any], schema: dict[str, Any], depth: int = 0) -> Any:
    """A value of a schema from the examples that it names; None where there are none."""
    if reference := schema.get("$ref"):
        schema = document["components"]["schemas"][reference.rpartition("/")[2]]
    if examples := schema.get("examples"):
        return examples[0]
    if "default" in schema:
        return schema["default"]
    if schema.get("type") == "array" and depth < 4:
        item = _made_up(document, schema.get("items", {}), depth + 1)
        return None if item is None else [item]
    if "properties" in schema and depth < 4:
        fields = {
            name: _made_up(document, field, depth + 1)
            for name, field in schema["properties"].items()
        }
        return {name: value for name, value in fields.items() if value is not None} or None
    return None


def _text(markdown: str) -> str:
    """Paragraphs."""
    paragraphs = filter(None, markdown.split("\n\n"))
    return "\n".join(f"<p>{_inline(paragraph)}</p>" for paragraph in paragraphs)


def _inline(markdown: str) -> str:
    """Words between backticks as code."""
    pieces = escape(markdown).split("`")
    return "".join(f"<code>{p}</code>" if i % 2 else p for i, p in enumerate(pieces))
